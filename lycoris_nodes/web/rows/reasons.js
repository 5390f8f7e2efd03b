// Why a run stops at rows, as the rows of a node show it.

/** @typedef {Pick<import("../routes.js").RefusedRow, "reason" | "details">} Reason */

// About as many letters as fit into a row's height, in two lines, at the node's first width.
const SHORT = 110

/**
 * How many rows high a reason is. A Chinese or Japanese letter is as wide as two others.
 *
 * @param {Reason | null} why
 */
export function heightOf(why) {
  if (!why) return 0
  return [...why.reason].reduce((sum, letter) => sum + (letter > "\u2e7f" ? 2 : 1), 0) > SHORT ? 2 : 1
}

/** @typedef {{ask: () => Promise<boolean>, clear: () => void}} Shower */

/** @type {WeakMap<GraphNode, Shower>} */
const showers = new WeakMap()

/**
 * Register what shows reasons on the rows of a node.
 *
 * @param {GraphNode} node
 * @param {Shower} shower `ask` asks the server why a run stops at the rows, shows it, and returns whether any row has a
 *   reason; `clear` takes the reasons away
 */
export const onReasons = (node, shower) => void showers.set(node, shower)

/**
 * Show on the rows of a node why a run stops at them. Returns whether any row has a reason.
 *
 * @param {GraphNode} node
 */
export const showReasons = async (node) => (await showers.get(node)?.ask()) ?? false

/** @param {GraphNode} node */
export const clearReasons = (node) => showers.get(node)?.clear()
