// The bare height of a node is its height without the elements that we show below its widgets for a while. Nodes are
// saved with their bare heights, so that an element does not change the workflow. `by` is any value that identifies the
// element.
//
//   hold(node, by)      call it before the element makes the node higher
//   changing(node)      the height of an element changes, and not because the user drags
//   settle(node)        it has changed
//   grow(node)          makes the node as high as it needs, and settles it
//   release(node, by)   call it after the element is removed

import { app } from "../../scripts/app.js"
import { after } from "./nodes.js"

/** `height` is the last known one. @typedef {{bare: number, by: Set<any>, height: number, changing: boolean}} Held */
/** @type {WeakMap<GraphNode, Held>} */
const held = new WeakMap()

// For this many milliseconds Vue still measures a node with the removed element.
const LEAVES = 500

/**
 * The height of a node without our elements.
 *
 * @param {GraphNode} node
 */
export const bareHeight = (node) => held.get(node)?.bare ?? node.size[1]

/**
 * @param {GraphNode} node
 * @param {any} by
 */
export function hold(node, by) {
  const known = held.get(node) ?? { bare: node.size[1], by: new Set(), height: node.size[1], changing: true }
  known.by.add(by)
  known.changing = true
  held.set(node, known)
}

/** @param {GraphNode} node */
export function changing(node) {
  const known = held.get(node)
  if (known) known.changing = true
}

/** @param {GraphNode} node */
export function settle(node) {
  const known = held.get(node)
  if (known) Object.assign(known, { height: node.size[1], changing: false })
}

/** @param {GraphNode} node */
export function grow(node) {
  const known = /** @type {Held} */ (held.get(node))
  changing(node)
  // Vue makes a node at least as high as what is in it.
  const needed = LiteGraph.vueNodesMode ? 0 : node.computeSize()[1]
  node.setSize([node.size[0], Math.max(known.bare, needed)])
  settle(node)
  app.canvas.setDirty(true, true)
}

/**
 * @param {GraphNode} node
 * @param {any} by
 */
export async function release(node, by) {
  const known = held.get(node)
  if (!known?.by.delete(by)) return
  grow(node)
  if (known.by.size) return
  if (LiteGraph.vueNodesMode) {
    await new Promise((done) => setTimeout(done, LEAVES))
    if (known.by.size || held.get(node) !== known) return
    node.setSize([node.size[0], known.bare])
  }
  held.delete(node)
}

/** Dragging a node higher raises its bare height by as much. @param {GraphNode} node */
function followDrag(node) {
  const known = held.get(node)
  if (!known || known.changing) return
  // Vue also measures its nodes anew while no button is pressed.
  if (document.documentElement.matches(":active")) known.bare += node.size[1] - known.height
  known.height = node.size[1]
}

/**
 * Save the nodes of a class with their bare heights.
 *
 * @param {NodeClass} nodeType
 */
export function saveBareHeights(nodeType) {
  after(nodeType, "onResize", followDrag)
  after(nodeType, "onSerialize", (node, data) => {
    if (held.has(node)) data.size = [data.size[0], bareHeight(node)]
  })
}
