// Asks the server for the bars of a row, and for what rules do to them.

import { post } from "../ask.js"

/** @typedef {import("../routes.js").BarsQuestion} Question the row's file, and the files that the loaders of the model name */
/** @typedef {import("../routes.js").ShownBars & {error?: string}} Bars */
/** @typedef {import("../routes.js").WeighedBars & {error?: string}} Weighed */

const KEPT = 200
/** @type {Map<string, Promise<Weighed>>} */
const known = new Map()

/**
 * Ask for the bars until all shares are measured: `show` gets each answer. It ends with the signal.
 *
 * @param {Question} question
 * @param {(bars: Bars) => void} show
 * @param {AbortSignal} signal
 */
export async function followBars(question, show, signal) {
  try {
    for (;;) {
      const bars = await post("/lycoris/bars", question, signal)
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
    post("/lycoris/rules", { ...question, rules }).catch((error) => {
      known.delete(body)
      return /** @type {any} */ ({ error: String(error) })
    })
  known.delete(body)
  known.set(body, asked)
  if (known.size > KEPT) known.delete(/** @type {string} */ (known.keys().next().value))
  return asked
}

/**
 * The rules after some bars have been set.
 *
 * @param {Question} question
 * @param {string} rules
 * @param {Map<string, number>} weights
 */
export const paintedBy = (question, rules, weights) =>
  post("/lycoris/paint", { ...question, rules, weights: Object.fromEntries(weights) })

/** Ask anew: files or presets may have changed. */
export function forgetWeights() {
  known.clear()
}
