// The rows as text and as objects. `lycoris_nodes/stacks/rows.py` says what may be in them and checks it.

import { ROW_FIELDS, ROW_VERSION, SIGNALS } from "../routes.js"

/** @typedef {import("../routes.js").Row} Row a strength that is a text is as the user typed it, and may be no number */
/** @typedef {typeof SIGNALS[number]} Signal a part of a model's output whose layers a row can scale alone */

export { SIGNALS }

/** @param {unknown} row */
function isRow(row) {
  if (typeof row !== "object" || row === null || !("file" in row)) return false
  return Object.entries(row).every(([name, value]) => {
    const kind = new Map(Object.entries(ROW_FIELDS)).get(name)
    return typeof value === kind || (kind === "number" && typeof value === "string")
  })
}

/** @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

/**
 * The rows of a text in our own form, null for any other text.
 *
 * @param {string} text
 * @returns {Row[] | null}
 */
export function parseRows(text) {
  if (!text.trim()) return []
  const { version = ROW_VERSION, rows } = parsed(text) ?? {}
  return version === ROW_VERSION && Array.isArray(rows) && rows.every(isRow) ? rows : null
}

/**
 * The text of rows, with a line for each.
 *
 * @param {Row[]} rows
 */
export function formatRows(rows) {
  const lines = rows.map((row) => `  ${JSON.stringify(row)}`)
  return `{"version": ${ROW_VERSION}, "rows": [${lines.length ? `\n${lines.join(",\n")}\n` : ""}]}`
}

/**
 * @param {string} file
 * @returns {Row}
 */
export const newRow = (file) => ({ on: true, file, strength_model: 1 })

export const isOn = (/** @type {Row} */ row) => row.on ?? true
export const modelStrength = (/** @type {Row} */ row) => row.strength_model ?? 1
export const clipStrength = (/** @type {Row} */ row) => row.strength_clip ?? modelStrength(row)
export const hasClip = (/** @type {Row[]} */ rows) => rows.some((row) => row.strength_clip !== undefined)

/**
 * The rows with strengths of their own for the text encoder, or with one strength for both.
 *
 * @param {Row[]} rows
 * @param {boolean} separate
 */
export function withClip(rows, separate) {
  return rows.map((row) => {
    const { strength_clip: _, ...rest } = row
    return separate ? { ...rest, strength_clip: clipStrength(row) } : rest
  })
}

/**
 * The rows with `change` applied to a strength of some. If any row has a strength of its own for text encoders, each
 * changed row gets one too, which no longer follows the model's.
 *
 * @param {Row[]} rows
 * @param {Set<number>} chosen
 * @param {"strength_model" | "strength_clip"} name
 * @param {(value: number | string) => number | string} change
 */
export function withStrength(rows, chosen, name, change) {
  const separate = hasClip(rows)
  return rows.map((row, index) => {
    if (!chosen.has(index)) return row
    const strengths = { strength_model: modelStrength(row), strength_clip: clipStrength(row) }
    const { strength_clip } = strengths
    return { ...row, ...(separate && { strength_clip }), [name]: change(strengths[name]) }
  })
}

/**
 * A row with block rules, or without any.
 *
 * @param {Row} row
 * @param {string} rules
 */
export function withRules(row, rules) {
  const { rules: _, ...rest } = row
  return rules.trim() ? { ...rest, rules } : rest
}

/**
 * A row with another file, or with the two of a pair.
 *
 * @param {Row} row
 * @param {{file: string, low_noise?: string}} files
 * @returns {Row}
 */
export function withFiles(row, { file, low_noise }) {
  const { low_noise: _, ...rest } = row
  return { ...rest, file, ...(low_noise && { low_noise }) }
}

/** The files of a row: two of a pair. */
export const filesOf = (/** @type {Row} */ { file, low_noise }) => (low_noise ? [file, low_noise] : [file])

const settingsOf = (/** @type {Row} */ row) =>
  JSON.stringify([isOn(row), modelStrength(row), clipStrength(row), row.rules ?? ""])

/**
 * The rows with both files of a pair in the row at `index`. A row with only the other file is removed if its settings
 * are the same or those of a new row: the pair replaces it.
 *
 * @param {Row[]} rows
 * @param {number} index
 * @param {{file: string, low_noise: string}} pair
 */
export function joined(rows, index, pair) {
  const row = rows[index]
  const partner = row.file === pair.file ? pair.low_noise : pair.file
  // If the row is off, so is the pair, and a new row of the other file is still needed.
  const plain = [row, ...(isOn(row) ? [newRow(partner)] : [])].map(settingsOf)
  const spare = rows.findIndex((one) => one.file === partner && !one.low_noise && plain.includes(settingsOf(one)))
  const made = rows.with(index, withFiles(row, pair))
  return spare < 0 ? made : made.toSpliced(spare, 1)
}

/**
 * The factor of a row's strength for the picture or for the sound.
 *
 * @param {Row} row
 * @param {Signal} signal
 */
export const signalOf = (row, signal) => row[signal] ?? 1

/**
 * A row with another factor for the picture or for the sound.
 *
 * @param {Row} row
 * @param {Signal} signal
 * @param {number | string} factor
 * @returns {Row}
 */
export function withSignal(row, signal, factor) {
  const { [signal]: _, ...rest } = row
  return factor === 1 ? rest : { ...rest, [signal]: factor }
}

/**
 * Rows that were run, or that the user has saved under a name, and when, in milliseconds since 1970.
 *
 * @typedef {{when: number, rows: Row[], name?: string}} RunSet
 */

/** How many sets without a name are kept. */
const SETS = 40

const filesOn = (/** @type {Row[]} */ rows) => JSON.stringify(rows.filter(isOn).flatMap(filesOf).sort())

/**
 * Put a set first. An earlier one of the same name is dropped; of those without a name, one of the same files.
 *
 * @param {RunSet[]} sets
 * @param {RunSet} latest
 */
export function withSet(sets, latest) {
  const others = sets.filter(({ name, rows }) => name !== latest.name || (!name && filesOn(rows) !== filesOn(latest.rows)))
  let left = latest.name ? SETS : SETS - 1
  return [latest, ...others.filter(({ name }) => name || left-- > 0)]
}
