// The words of the page in the user's language. English is the key: a text without a translation stays English.

/** @type {Record<string, string>} */
let words = {}

/**
 * The server's sentences, each with a pattern of its English; the ones with the most fixed text come first.
 *
 * @type {{pattern: RegExp, names: string[], plain: number, text: string}[]}
 */
let sentences = []

const NAME = /\{(\w+)\}/gu
// A one-letter name stands for a number. The text of a longer name ends where the next part of the sentence begins.
const NUMBER = String.raw`(-?\d[\d.,]*)`
const TEXT = "((?:(?!: |; ).)+?)"
// What an error found and what it wanted stand in brackets, and may be any text.
const ANY = "(.+?)"
const IN_BRACKETS = new Set(["got", "wanted"])
/** @param {string} name */
const valueOf = (name) => (IN_BRACKETS.has(name) ? ANY : name.length > 1 ? TEXT : NUMBER)

/**
 * @param {Record<string, string>} table the page's texts, by their English
 * @param {Record<string, string>} [said] the server's texts likewise, with a `{name}` for each value
 */
export function speak(table, said = {}) {
  words = table
  sentences = Object.entries(said).map(([english, text]) => {
    const names = [...english.matchAll(NAME)].map(([, name]) => name)
    const plain = english.split(/\{\w+\}/u)
    const parts = plain.map((part) => part.replace(/[\\^$.*+?()[\]{}|/]/gu, "\\$&"))
    const pattern = parts.reduce((found, part, at) => found + valueOf(names[at - 1]) + part)
    return { pattern: new RegExp(`^${pattern}$`, "u"), names, plain: plain.join("").length, text }
  })
  sentences.sort((one, other) => other.plain - one.plain)
}

/**
 * A text with a value in place of each `{name}`.
 *
 * @param {string} text
 * @param {Record<string, string | number>} values
 */
const filled = (text, values) => text.replace(NAME, (whole, name) => String(values[name] ?? whole))

/**
 * A text in the user's language, with a value in place of each `{name}`.
 *
 * @param {string} english
 * @param {Record<string, string | number>} [values]
 */
export function t(english, values = {}) {
  return filled(words[english] ?? english, values)
}

/**
 * A text of the server in the user's language, line by line. The server composes its sentences, so each line is matched
 * as a whole, or else part by part.
 *
 * @param {string} english
 */
export function told(english) {
  return sentences.length ? english.split("\n").map((line) => said(line)).join("\n") : english
}

/**
 * An answer of the server with its error in the user's language, where it has one.
 *
 * @template {{error?: string}} Answer
 * @param {Answer} answer
 */
export const answered = (answer) => (answer.error ? { ...answer, error: told(answer.error) } : answer)

/**
 * @param {string} line
 * @param {Map<string, string>} [known] the translations found so far, because parts recur within others
 * @returns {string}
 */
function said(line, known = new Map()) {
  const found = known.get(line)
  if (found !== undefined) return found
  const [, before, body, after] = /** @type {RegExpExecArray} */ (/^(\s*)(.*?)(\.?)$/u.exec(line))
  const own = inWhole(body, known) ?? inParts(body, known)
  const text = own === undefined ? line : `${before}${own}${after && t(".")}`
  known.set(line, text)
  return text
}

/**
 * @param {string} body
 * @param {Map<string, string>} known
 */
function inWhole(body, known) {
  for (const { pattern, names, text } of sentences) {
    const values = pattern.exec(body)?.slice(1)
    if (values) return filled(text, Object.fromEntries(names.map((name, at) => [name, said(values[at], known)])))
  }
}

/**
 * @param {string} body
 * @param {Map<string, string>} known
 */
function inParts(body, known) {
  // First the sentence after brackets, which may hold the other marks.
  for (const [mark, own, before = ""] of [
    [". ", t(". "), ")"],
    [": ", t(": ")],
    ["; ", t("; ")],
    [". ", t(". ")],
    [", and ", t(", and ")],
    [", ", t(", ")],
  ]) {
    const at = body.indexOf(before + mark)
    if (at < 0) continue
    const end = at + before.length
    const parts = [body.slice(0, end), body.slice(end + mark.length)]
    const [first, second] = parts.map((part) => said(part, known))
    if (first !== parts[0] || second !== parts[1]) return `${first}${own}${second}`
  }
}
