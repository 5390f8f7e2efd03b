// Asks the server in the user's language. `routes.js` says what each route takes and answers.

import { app } from "../../scripts/app.js"

/** @typedef {import("./routes.js").Gets} Gets */
/** @typedef {import("./routes.js").Posts} Posts */

export const userLanguage = () => String(app.ui.settings.getSettingValue("Comfy.Locale") ?? "en")

/**
 * @param {string} route
 * @param {RequestInit} [options]
 */
async function ask(route, options) {
  const answer = await app.api.fetchApi(route, { ...options, headers: { "Lycoris-Language": userLanguage() } })
  return answer.json()
}

/**
 * What the server answers to a question that changes with what is on the page; `error` alone where it cannot.
 *
 * @template {keyof Posts} Path
 * @param {Path} path
 * @param {Posts[Path]["0"]} question
 * @param {AbortSignal} [signal]
 * @returns {Promise<Posts[Path]["1"] & {error?: string}>}
 */
export const post = (path, question, signal) =>
  ask(path, { method: "POST", body: typeof question === "string" ? question : JSON.stringify(question), signal })

/**
 * What the server says of its files and runs; `error` alone where it cannot.
 *
 * @template {keyof Gets} Path
 * @param {Path} path
 * @param {Gets[Path]["0"]} [query]
 * @returns {Promise<Gets[Path]["1"] & {error?: string}>}
 */
export const get = (path, query = {}) => ask(`${path}?${new URLSearchParams(/** @type {any} */ (query))}`)
