// What errors say of rows: "row 2: the file is not there".


const ROW = /^(?:(?<file>.*): )?row (?<number>[0-9]+): (?<what>.*)$/u

/**
 * Split an error into the reasons, by the places of their rows, and the rest. Lines after the line of a row belong to
 * that row.
 *
 * @param {string} text
 * @returns {{rows: Map<number, string>, rest: string}}
 */
export function reasonsOf(text) {
  /** @type {Map<number, string>} */
  const rows = new Map()
  /** @type {string[]} */
  const rest = []
  let place = -1
  for (const line of text.split("\n")) {
    const { number, what } = ROW.exec(line)?.groups ?? {}
    if (number) place = Number(number) - 1
    if (place < 0) rest.push(line)
    else rows.set(place, number ? what : `${rows.get(place)}\n${line}`)
  }
  for (const [index, words] of rows) rows.set(index, words.trim())
  return { rows, rest: rest.join("\n").trim() }
}

/**
 * What a row shows of a reason: in the user's language, without what is folded elsewhere after an empty line.
 *
 * @param {string} why
 */
export const shownOf = (why) => why.split("\n\n")[0]

// About as many letters as fit into a row's height, in two lines, at the node's first width.
const SHORT = 110

/**
 * How many rows high a reason is. A Chinese or Japanese letter is as wide as two others.
 *
 * @param {string | null} why
 */
export function heightOf(why) {
  if (!why) return 0
  return [...shownOf(why)].reduce((sum, letter) => sum + (letter > "\u2e7f" ? 2 : 1), 0) > SHORT ? 2 : 1
}

/** @type {WeakMap<GraphNode, (text: string) => boolean>} */
const takers = new WeakMap()

/**
 * Register the function that shows errors on the rows of a node.
 *
 * @param {GraphNode} node
 * @param {(text: string) => boolean} take returns whether it shows all that a text says
 */
export const onReasons = (node, take) => void takers.set(node, take)

/**
 * Show an error on the rows of a node; an empty text clears it. Returns whether the rows show all of it.
 *
 * @param {GraphNode} node
 * @param {string} text
 */
export const showReasons = (node, text) => takers.get(node)?.(text) ?? false
