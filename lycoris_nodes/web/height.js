// The bare height of a node is its height without the elements that we show below its widgets for a while. Nodes are
// saved with their bare heights, so that an element does not change the workflow. `by` is any value that identifies the
// element.
//
//   hold(node, by)      call it before the element makes the node higher
//   changing(node)      the height of an element changes, and not because the user drags
//   grow(node)          after such a change: makes the node as high as it needs
//   release(node, by)   call it after the element is removed

import { app } from "../../scripts/app.js"
import { after, drawn, isOurs, ourNodes } from "./nodes.js"

/** `grown` counts the changes of the elements. @typedef {{bare: number, by: Set<any>, grown: number}} Held */
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
  const known = held.get(node) ?? { bare: node.size[1], by: new Set(), grown: 0 }
  known.by.add(by)
  held.set(node, known)
}

/** @param {GraphNode} node */
export function changing(node) {
  const known = held.get(node)
  if (known) known.grown++
}

/** @param {GraphNode} node */
export function grow(node) {
  const known = /** @type {Held} */ (held.get(node))
  changing(node)
  // Vue makes a node at least as high as what is in it.
  const needed = LiteGraph.vueNodesMode ? 0 : node.computeSize()[1]
  node.setSize([node.size[0], Math.max(known.bare, needed)])
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

// Dragging a node higher raises its bare height by as much.
addEventListener(
  "pointerdown",
  ({ target, clientY: from }) => {
    const element = /** @type {Element} */ (target)
    if (!app.rootGraph || !element.closest) return
    const onNode = /** @type {HTMLElement | null} */ (element.closest("[data-node-id]"))?.dataset.nodeId
    const heights = [...ourNodes()].flatMap((node) => {
      if (element !== app.canvas.canvas && onNode !== String(node.id)) return []
      const known = held.get(node)
      return known ? [{ node, known, grown: known.grown, height: node.size[1] }] : []
    })
    if (!heights.length) return
    const dragged = async (/** @type {PointerEvent} */ { clientY: to }) => {
      // Vue may make a node higher, for our elements, while the user clicks somewhere.
      if (to === from) return
      await drawn()
      for (const { node, known, grown, height } of heights) {
        if (held.get(node) === known && known.grown === grown) known.bare += node.size[1] - height
      }
    }
    addEventListener("pointerup", dragged, { once: true, capture: true })
  },
  true,
)

app.registerExtension({
  name: "lycoris.height",

  beforeRegisterNodeDef(nodeType, { name }) {
    if (!isOurs(name)) return
    after(nodeType, "onSerialize", (node, data) => {
      if (held.has(node)) data.size = [data.size[0], bareHeight(node)]
    })
  },
})
