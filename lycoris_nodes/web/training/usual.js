// Values that are `auto`: "auto: 0.0001" on the node, with the usual value, and "auto" in whatever is saved or sent.
// This does not touch the page.

const AUTO = "auto"
const SHOWN = /^auto: ?(.*)$/u

/**
 * A value of a widget as it is saved and sent.
 *
 * @param {any} value
 */
export const plain = (value) => (typeof value === "string" && SHOWN.test(value) ? AUTO : value)

/**
 * What a widget shows for a value. `usual` is what `auto` stands for, undefined if that is not known. A changed number
 * behind "auto: " becomes the value.
 *
 * @param {any} value
 * @param {string | undefined} usual
 * @param {string | undefined} before what was usual when the text was shown
 */
export function shownValue(value, usual, before = usual) {
  const text = String(value ?? "").trim()
  const typed = SHOWN.exec(text)?.[1].trim()
  if (typed && typed !== before) return typed
  // Earlier versions had 0 for `auto`.
  const isUsual = !text || text === AUTO || typed !== undefined || Number(text) === 0
  if (!isUsual) return typeof value === "number" ? decimal(value) : text
  return usual ? `${AUTO}: ${usual}` : AUTO
}

/** @param {number} value */
function decimal(value) {
  const text = String(value)
  return text.includes("e") ? value.toFixed(12).replace(/0+$/u, "") : text
}
