// Asks the server for the bars of a row, and for what rules do to them.

import { askServer } from "../locale.js"

/**
 * The row's file, and the files that the loaders of the model name (`names` of model.js).
 *
 * @typedef {{file: string, model: string[], clip: string[]}} Question
 * @typedef {{
 *   error?: string, model: string, connected: boolean, groups: import("./blocks.js").Group[],
 *   presets: Record<string, string>, done: number, of: number, unmeasured: number,
 * }} Bars
 * @typedef {{
 *   error?: string, line: number[], weights: Record<string, [mean: number, least: number, most: number]>,
 *   idle: string[],
 * }} Weighed
 */

const KEPT = 200
/** @type {Map<string, Promise<Weighed>>} */
const known = new Map()

/**
 * @param {string} route
 * @param {string} body
 * @param {AbortSignal} [signal]
 */
async function answerTo(route, body, signal) {
  const answer = await askServer(route, { method: "POST", body, signal })
  return answer.json()
}

/**
 * Ask for the bars until all shares are measured: `show` gets each answer. It ends with the signal.
 *
 * @param {Question} question
 * @param {(bars: Bars) => void} show
 * @param {AbortSignal} signal
 */
export async function followBars(question, show, signal) {
  const body = JSON.stringify(question)
  try {
    for (;;) {
      const bars = /** @type {Bars} */ (await answerTo("/lycoris/bars", body, signal))
      if (signal.aborted) return
      show(bars)
      if (bars.error || bars.done >= bars.of) return
    }
  } catch (error) {
    if (!signal.aborted) show(/** @type {any} */ ({ error: String(error) }))
  }
}

/**
 * What rules do to the bars; only `error` if they cannot be used. A question is asked once, and again only if no answer
 * came.
 *
 * @param {Question} question
 * @param {string} rules
 * @returns {Promise<Weighed>}
 */
export function weighedBy(question, rules) {
  const body = JSON.stringify({ ...question, rules })
  const asked =
    known.get(body) ??
    answerTo("/lycoris/rules", body).catch((error) => {
      known.delete(body)
      return /** @type {any} */ ({ error: String(error) })
    })
  known.delete(body)
  known.set(body, asked)
  if (known.size > KEPT) known.delete(/** @type {string} */ (known.keys().next().value))
  return asked
}

/** Ask anew: files or presets may have changed. */
export function forgetWeights() {
  known.clear()
}
