// What the server says of the adapter files.

import { app } from "../../../scripts/app.js"
import { askServer } from "../locale.js"
import { nearestOf } from "./names.js"

const ROOT = "/lycoris/adapters"

/**
 * What a file says of itself, as `lycoris_nodes/routes.py` answers; `error` alone where it cannot be read.
 *
 * @typedef {{
 *   error?: string, file: string, kind: string, rank: string, family: string, families: string[], base: string, date: string,
 *   dialect: string, size: number, facts: [string, string][], stated: boolean, triggers: string[],
 *   tags: [string, number][], notes: string[], problems: string[], title: string, preview: string,
 *   tags_beside: string[], signals: Signal[], expert: "high noise" | "low noise" | null, pair: Pair | null,
 * }} About
 */

/** @typedef {import("./state.js").Signal} Signal */

/**
 * The files for the two experts of a model, and whether their names leave no doubt.
 *
 * @typedef {{file: string, low_noise: string, sure: boolean}} Pair
 */

/**
 * What the picker shows of a file, as `lycoris_nodes/files/facts.py` has it; `preview` is "picture", "clip" or "".
 *
 * @typedef {{
 *   error: string, kind: string, rank: string, family: string, families: string[], triggers: string[],
 *   tags: string[], title: string, base: string, favourite: boolean, preview: string, problems: string[],
 * }} Facts
 * @typedef {[file: string, size: number, changed: number]} Listed with bytes and seconds since 1970
 */

/** @type {Map<string, Promise<About>>} */
const known = new Map()
/** @type {Map<string, {listed: string, facts: Facts}>} */
const facts = new Map()

/**
 * All files as they are now.
 *
 * @returns {Promise<Listed[]>}
 */
export async function listed() {
  const answer = await askServer(ROOT)
  return answer.json()
}

/** @type {ReturnType<typeof askNames> | null} */
let names = null

async function askNames() {
  const files = (await listed()).map(([file]) => file)
  return { files: new Set(files), nearest: nearestOf(files) }
}

/** The names of all files, and a function that finds the nearest ones to a name. Kept until the lists are refreshed. */
export const fileNames = () =>
  (names ??= askNames().catch((error) => {
    names = null
    throw error
  }))

/**
 * The facts of a file from an earlier answer, if it has not changed since.
 *
 * @param {Listed} file
 */
export function knownFacts(file) {
  const found = facts.get(file[0])
  return found?.listed === String(file) ? found.facts : null
}

/** @param {Listed[]} files */
export async function askFacts(files) {
  const body = JSON.stringify(files.map(([file]) => file))
  const answer = await askServer(`${ROOT}/facts`, { method: "POST", body })
  /** @type {Record<string, Facts>} */
  const found = await answer.json()
  for (const file of files) {
    if (!found[file[0]]) continue
    facts.set(file[0], { listed: String(file), facts: found[file[0]] })
  }
  return found
}

/**
 * @param {string} file
 * @returns {Promise<About>}
 */
async function ask(file) {
  const answer = await askServer(`${ROOT}/about?file=${encodeURIComponent(file)}`)
  return answer.json()
}

/**
 * What a file says of itself. Each file is asked for once, and again only where no answer came.
 *
 * @param {string} file
 */
export function aboutFile(file) {
  const asked =
    known.get(file) ??
    ask(file).catch((error) => {
      known.delete(file)
      return /** @type {any} */ ({ error: String(error) })
    })
  known.set(file, asked)
  return asked
}

/** @param {string} file */
export function forgetFile(file) {
  known.delete(file)
  facts.delete(file)
  names = null
}

export function forgetFiles() {
  known.clear()
  facts.clear()
  names = null
}

/**
 * The address of a file's picture or clip.
 *
 * @param {string} file
 */
export function previewOf(file) {
  return app.api.apiURL(`${ROOT}/preview?file=${encodeURIComponent(file)}`)
}

/**
 * The rows in a text of any known form, as the server reads it, with the names that the files have here. Throws an
 * Error with the reason if the text has another form or a row cannot be used.
 *
 * @param {string} text
 * @returns {Promise<import("./state.js").Row[]>}
 */
export async function readRows(text) {
  const answer = await askServer("/lycoris/rows", { method: "POST", body: text })
  const { rows, error } = await answer.json()
  if (error) throw new Error(error)
  return rows
}
