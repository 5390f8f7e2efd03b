// What the server says of the adapter files.

import { app } from "../../../scripts/app.js"
import { get, post } from "../ask.js"
import { nearestOf } from "./names.js"

const ROOT = "/lycoris/adapters"

/** @typedef {import("../routes.js").AboutFile & {error?: string}} About */
/** @typedef {import("../routes.js").Facts} Facts */
/** @typedef {import("../routes.js").ListedFile} Listed */

/** @type {Map<string, Promise<About>>} */
const known = new Map()
/** @type {Map<string, {listed: string, facts: Facts}>} */
const facts = new Map()

/** All files as they are now. */
export const listed = () => get(ROOT)

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
  const found = await post(`${ROOT}/facts`, { files: files.map(([file]) => file) })
  for (const file of files) {
    if (!found[file[0]]) continue
    facts.set(file[0], { listed: String(file), facts: found[file[0]] })
  }
  return found
}

/**
 * What a file says of itself. Each file is asked for once, and again only where no answer came.
 *
 * @param {string} file
 */
export function aboutFile(file) {
  const asked =
    known.get(file) ??
    get(`${ROOT}/about`, { file }).catch((error) => {
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
 * @returns {Promise<import("../routes.js").Row[]>}
 */
export async function readRows(text) {
  const { rows, error } = await post("/lycoris/rows", text)
  if (error) throw new Error(error)
  return rows
}

/**
 * Why a run stops at rows; none where no single row is the reason.
 *
 * @param {string} text
 */
export async function refusedRows(text) {
  const refused = await post("/lycoris/rows/refused", text)
  return refused.error ? [] : refused
}
