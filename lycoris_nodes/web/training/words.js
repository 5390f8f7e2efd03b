// The state of a training in words, and its curve as points. This does not touch the page.

import { t } from "../language.js"

/**
 * How far a training is, as `lycoris_nodes/training/node/live.py` and `told.py` say it.
 *
 * @typedef {{
 *   stage?: string, done?: number, of?: number, step?: number, steps?: number, resumed?: number, resume?: boolean,
 *   loss?: number, pace?: number | null, name?: string, folder?: string,
 *   losses?: [number, number][], validation?: [number, number][], samples?: [number, number][],
 *   differences?: string[], others?: Record<string, any>,
 *   heat?: number, heats?: number, entrant?: string, rate?: string, expert?: string, other?: string,
 * }} Shown
 */

/** @param {number} seconds */
export function duration(seconds) {
  const whole = Math.round(seconds)
  if (whole < 60) return t("{count} s", { count: whole })
  const minutes = Math.round(seconds / 60)
  if (minutes < 60) return t("{count} min", { count: minutes })
  return t("{hours} h {minutes} min", { hours: Math.floor(minutes / 60), minutes: minutes % 60 })
}

/**
 * A number with `count` significant digits, and an exponent only below 1e-6.
 *
 * @param {number} value
 */
export const digits = (value, count = 3) => String(Number(value.toPrecision(count)))

/**
 * What a node is doing, and for which of the two experts if it trains both.
 *
 * @param {Shown} shown
 */
export function inWords(shown) {
  const words = stageInWords(shown)
  if (!words || !shown.expert) return words
  return shown.expert === "high noise" ? t("High noise: {what}", { what: words }) : t("Low noise: {what}", { what: words })
}

/**
 * The stages are named by the server, see `stages` in `lycoris_nodes/schema/report.py`.
 *
 * @param {Shown} shown
 */
function stageInWords(shown) {
  const { stage = "", step = 0, steps = 0, done = 0, of = 0 } = shown
  if (stage === "waiting") return t("Waiting: runs before this one: {count}", { count: done })
  if (stage === "next") return t("Waiting for the nodes before it")
  if (stage === "loading") return t("Loading the model")
  if (stage === "pictures") return t("Encoding pictures {done} of {of}", { done, of })
  if (stage === "captions") return t("Encoding captions {done} of {of}", { done, of })
  if (stage === "measuring") return t("Measuring {done} of {of}", { done, of })
  if (stage === "picturing") return t("Sampling pictures {done} of {of}", { done, of })
  if (stage === "sampling") return t("Sampling at step {step}: {done} of {of}", { step, done, of })
  if (stage === "searching") return searchInWords(shown)
  if (stage === "stopped") return t("Stopped at {step} of {steps}", { step, steps })
  if (stage === "done") return ""
  const { pace, loss, other } = shown
  return [
    t("Step {done} of {of}", { done, of }),
    pace ? t("{pace} s a step", { pace: digits(pace, 2) }) : "",
    pace && done < of ? t("{time} left", { time: duration((of - done) * pace) }) : "",
    loss === undefined ? "" : t("loss {loss}", { loss: digits(loss) }),
    other ? t("begun anew: settings or data are not those of {name}", { name: other }) : "",
  ]
    .filter(Boolean)
    .join(", ")
}

/**
 * How far the search before a training is, and what it costs at most.
 *
 * @param {Shown} shown
 */
function searchInWords({ heat = 0, heats = 0, entrant = "", rate = "", done = 0, of = 0, steps = 0, pace }) {
  return [
    t("Searching: heat {heat} of at most {heats}, {entrant} at {rate}", { heat, heats, entrant, rate }),
    t("{done} of at most {of} steps ({share} % of the training)", { done, of, share: Math.round((100 * of) / steps) }),
    pace && done < of ? t("{time} left", { time: duration((of - done) * pace) }) : "",
  ]
    .filter(Boolean)
    .join(", ")
}

export const WIDTH = 260
export const HEIGHT = 96
export const EDGES = { left: 34, right: 6, top: 6, bottom: 14 }

/**
 * The bounds of some curves and their points in a drawing of `WIDTH` by `HEIGHT`.
 *
 * @param {[number, number][][]} curves of steps and losses
 * @param {number} steps
 */
export function layout(curves, steps) {
  const all = curves.flatMap((curve) => curve.map(([, loss]) => loss))
  const [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1]
  const last = Math.max(steps, 1, ...curves.flatMap((curve) => curve.map(([step]) => step)))
  const [right, bottom] = [WIDTH - EDGES.right, HEIGHT - EDGES.bottom]
  const x = (/** @type {number} */ step) => EDGES.left + (step / last) * (right - EDGES.left)
  // A flat curve is drawn in the middle.
  const y = (/** @type {number} */ loss) =>
    high > low ? bottom - ((loss - low) / (high - low)) * (bottom - EDGES.top) : (EDGES.top + bottom) / 2
  const lines = curves.map((curve) => curve.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" "))
  return { low, high, last, x, y, lines }
}

/**
 * A curve that is smoother the more points it has.
 *
 * @param {[number, number][]} points
 * @returns {[number, number][]}
 */
export function smooth(points) {
  const reach = Math.floor(points.length / 24)
  return points.map(([step], at) => {
    const near = points.slice(Math.max(0, at - reach), at + reach + 1)
    return [step, near.reduce((sum, [, loss]) => sum + loss, 0) / near.length]
  })
}

// What stands for the usual value: earlier versions had 0, and some workflows `auto: 16`.
const AUTO = /^(?:auto.*|0?)$/u

/**
 * The name of an input, with what is usual behind it where its value stands for that: "rank (16)".
 *
 * @param {string} name
 * @param {any} value
 * @param {string | undefined} usual
 */
export function withUsual(name, value, usual) {
  return usual && AUTO.test(String(value ?? "").trim()) ? `${name} (${usual})` : name
}
