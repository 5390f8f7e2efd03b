// Rows out of texts of other packs: rgthree's Power Lora Loader, LORA_STACK, Lora-Manager, and <lora:...> tags.

import { aboutFile } from "./files.js"
import { checkRows, parseRows } from "./state.js"

const NUMBER = String.raw`\s*(-?[\d.]+(?:[eE][-+]?\d+)?)\s*`
// ("name", 0.8, 0.7) with quotes of either kind, as Python and JSON write it.
const TUPLE = new RegExp(String.raw`[[(]\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)')\s*,${NUMBER},${NUMBER}`, "gu")
const TAG = new RegExp(String.raw`<(?:lora|lyco):([^:>]+)(?::${NUMBER})?(?::${NUMBER})?([^>]*)>`, "gu")
// Block weights in a tag: numbers, or the name of a preset.
const WEIGHTS = /:\s*lbw=([^:;>]+)/iu

function row(file, model, clip, on = true) {
  const strength = Number(model ?? 1)
  const other = clip === undefined || clip === null ? strength : Number(clip)
  const found = { on: Boolean(on), file, strength_model: strength }
  if (other !== strength) found.strength_clip = other
  return found
}

/** The rows in any JSON, in the order in which they stand there. */
function* walk(value) {
  if (Array.isArray(value)) {
    const [name, model, clip] = value
    if (typeof name === "string" && typeof model === "number" && typeof clip === "number") {
      yield row(name, model, clip)
      return
    }
    for (const each of value) yield* walk(each)
    return
  }
  if (typeof value !== "object" || value === null) return
  // rgthree: {on, lora, strength, strengthTwo}; Lora-Manager: {name, strength, clipStrength, active}.
  if (typeof value.lora === "string") yield row(value.lora, value.strength, value.strengthTwo, value.on)
  else if (typeof value.name === "string" && "strength" in value) {
    yield row(value.name, value.strength, value.clipStrength, value.active ?? true)
  } else if (typeof value.file === "string" && "strength_model" in value) yield value
  else for (const each of Object.values(value)) yield* walk(each)
}

function fromJson(text) {
  try {
    return [...walk(JSON.parse(text))]
  } catch {
    return null
  }
}

function unescaped(text) {
  return text.replace(/\\(.)/gsu, "$1")
}

function rowsIn(text) {
  try {
    return parseRows(text)
  } catch {
    // Another form.
  }
  const found = fromJson(text)
  if (found?.length) return found
  const tuples = [...text.matchAll(TUPLE)].map(([, a, b, ...rest]) => row(unescaped(a ?? b), ...rest))
  if (tuples.length) return tuples
  return [...text.matchAll(TAG)].map(([, name, model, clip, rest]) => {
    const found = row(name.trim(), model, clip)
    const weights = WEIGHTS.exec(rest)
    return weights ? { ...found, rules: weights[1].trim() } : found
  })
}

/**
 * The rows that a text of any known form states, with the files' names as they are here. Throws an error with the
 * reason where one of them cannot be used.
 */
export async function rowsFromAnywhere(text) {
  const found = rowsIn(text).filter(({ file }) => file && file !== "None")
  checkRows(found)
  return Promise.all(
    found.map(async (one) => {
      const about = await aboutFile(one.file)
      return about.error ? one : { ...one, file: about.file }
    }),
  )
}
