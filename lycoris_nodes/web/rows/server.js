// What the server says of the adapter files.

import { app } from "../../../scripts/app.js"

const ROOT = "/lycoris/adapters"

/**
 * What a file says of itself, as `lycoris_nodes/routes.py` answers; `error` alone where it cannot be read.
 *
 * @typedef {{
 *   error?: string, file: string, kind: string, rank: string, family: string, families: string[], base: string, date: string,
 *   dialect: string, size: number, facts: [string, string][], stated: boolean, triggers: string[],
 *   tags: [string, number][], notes: string[], problems: string[],
 * }} About
 */

/** @type {Map<string, Promise<About>>} */
const known = new Map()

/**
 * The names of all files, as they are now.
 *
 * @returns {Promise<string[]>}
 */
export async function listFiles() {
  const answer = await app.api.fetchApi(ROOT)
  return answer.json()
}

/**
 * @param {string} file
 * @returns {Promise<About>}
 */
async function ask(file) {
  const answer = await app.api.fetchApi(`${ROOT}/about?file=${encodeURIComponent(file)}`)
  return answer.json()
}

/**
 * What a file says of itself. Each file is asked for once.
 *
 * @param {string} file
 */
export function aboutFile(file) {
  const asked = known.get(file) ?? ask(file).catch((error) => /** @type {any} */ ({ error: String(error) }))
  known.set(file, asked)
  return asked
}

export function forgetFiles() {
  known.clear()
}

/** @param {string} file */
export function previewOf(file) {
  return app.api.apiURL(`${ROOT}/preview?file=${encodeURIComponent(file)}`)
}

/**
 * The rows that a text of any known form states, as the server reads it, with the files' names as they are here.
 * Throws an error with the reason where it states none or where one of them cannot be used.
 *
 * @param {string} text
 * @returns {Promise<import("./state.js").Row[]>}
 */
export async function readRows(text) {
  const answer = await app.api.fetchApi("/lycoris/rows", { method: "POST", body: text })
  const { rows, error } = await answer.json()
  if (error) throw new Error(error)
  return rows
}
