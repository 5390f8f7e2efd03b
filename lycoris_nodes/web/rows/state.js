// The rows as text and as objects. `lycoris_nodes/rows.py` says what may be in them and checks it.

import { app } from "../../../scripts/app.js"

const VERSION = 1

const isText = (value) => typeof value === "string"
// As a text it is what was typed, which may be no number.
const isStrength = (value) => Number.isFinite(value) || isText(value)
const FIELDS = new Map([
  ["file", isText],
  ["on", (value) => typeof value === "boolean"],
  ["strength_model", isStrength],
  ["strength_clip", isStrength],
  ["rules", isText],
])

function isRow(row) {
  if (typeof row !== "object" || row === null || !("file" in row)) return false
  return Object.entries(row).every(([name, value]) => FIELDS.get(name)?.(value))
}

function parsed(text) {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

/** The rows of a text in our own form, null for any other text. */
export function parseRows(text) {
  if (!text.trim()) return []
  const { version = VERSION, rows } = parsed(text) ?? {}
  return version === VERSION && Array.isArray(rows) && rows.every(isRow) ? rows : null
}

/**
 * The rows that a text of any known form states, as the server reads it, with the files' names as they are here.
 * Throws an error with the reason where it states none or where one of them cannot be used.
 */
export async function readRows(text) {
  const answer = await app.api.fetchApi("/lycoris/rows", { method: "POST", body: text })
  const { rows, error } = await answer.json()
  if (error) throw new Error(error)
  return rows
}

/** The text of rows, with a line for each. */
export function formatRows(rows) {
  const lines = rows.map((row) => `  ${JSON.stringify(row)}`)
  return `{"version": ${VERSION}, "rows": [${lines.length ? `\n${lines.join(",\n")}\n` : ""}]}`
}

export function newRow(file) {
  return { on: true, file, strength_model: 1 }
}

export const isOn = (row) => row.on ?? true
export const modelStrength = (row) => row.strength_model ?? 1
export const clipStrength = (row) => row.strength_clip ?? modelStrength(row)
export const hasClip = (rows) => rows.some((row) => row.strength_clip !== undefined)

/** The rows with strengths of their own for the text encoder, or with one strength for both. */
export function withClip(rows, separate) {
  return rows.map((row) => {
    const { strength_clip: _, ...rest } = row
    return separate ? { ...rest, strength_clip: clipStrength(row) } : rest
  })
}

export function moved(rows, from, to) {
  const result = [...rows]
  result.splice(to, 0, ...result.splice(from, 1))
  return result
}
