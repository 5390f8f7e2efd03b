// The rows as text and as objects. `lycoris_nodes/rows.py` says what may be in them and checks it.

const VERSION = 1

const isText = (value) => typeof value === "string"
const FIELDS = {
  file: [isText, "a text"],
  on: [(value) => typeof value === "boolean", "true or false"],
  strength_model: [Number.isFinite, "a number"],
  strength_clip: [Number.isFinite, "a number"],
  rules: [isText, "a text"],
}

/** Throws an error with the reason where a row cannot be shown. */
export function checkRows(rows) {
  for (const [index, row] of rows.entries()) {
    const where = `row ${index + 1}`
    if (typeof row !== "object" || row === null) throw new Error(`${where} is no table`)
    if (!("file" in row)) throw new Error(`${where} names no file`)
    for (const [name, [fits, words]] of Object.entries(FIELDS)) {
      if (name in row && !fits(row[name])) throw new Error(`in ${where} the field ${name} is not ${words}`)
    }
  }
}

/** The rows that a text states. Throws an error with the reason where it states none. */
export function parseRows(text) {
  if (!text.trim()) return []
  const table = JSON.parse(text)
  const { version, rows } = table ?? {}
  if (version !== undefined && version !== VERSION) throw new Error(`it is of version ${version}, not ${VERSION}`)
  if (!Array.isArray(rows)) throw new Error("it has no list of rows")
  if (version === undefined) throw new Error("it has no version")
  checkRows(rows)
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
