// The words of the page in the user's language. English is the key: a text without a translation stays English.

/** @type {Record<string, string>} */
let words = {}

const NAME = /\{(\w+)\}/gu

/** @param {Record<string, string>} table the page's texts, by their English */
export function speak(table) {
  words = table
}

/**
 * A text in the user's language, with a value in place of each `{name}`.
 *
 * @param {string} english
 * @param {Record<string, string | number>} [values]
 */
export function t(english, values = {}) {
  return (words[english] ?? english).replace(NAME, (whole, name) => String(values[name] ?? whole))
}
