// Strengths as people type them, and as they are shown. `lycoris_nodes/stacks/typed.py` reads the same.

const NUMBER = /^[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?$/u
// The full-width forms of ASCII, as Chinese, Japanese and Korean keyboards type them.
const WIDE = /[\uff01-\uff5e]/gu
const narrow = (/** @type {string} */ letter) => String.fromCharCode(letter.charCodeAt(0) - 0xfee0)

/**
 * The number that a text states, with either decimal separator; NaN for a text that states none. A text with two
 * separators states none: nobody can tell which of them is the decimal one.
 *
 * @param {string} text
 */
export function readNumber(text) {
  const plain = text.trim().replaceAll("\u2212", "-").replace(WIDE, narrow)
  return NUMBER.test(plain) ? Number(plain.replace(",", ".")) : NaN
}

/**
 * A number with two decimals, or with more where it has more.
 *
 * @param {number} value
 */
export function shownNumber(value) {
  const rounded = value.toFixed(2)
  return Math.abs(Number(rounded) - value) < 1e-9 ? rounded : String(value)
}
