// The box with a report on a node, below its other widgets.
//
// It takes no room that another node has, and is no part of the workflow: the node is saved in the size that it has
// without the box.

import { app } from "../../../scripts/app.js"
import { addStyle, make } from "../elements.js"
import { t } from "../language.js"
import { drawn, showElement } from "../nodes.js"
import { canScroll, shareWheel } from "../wheel.js"
import { pictureOf } from "./picture.js"
import { firstAndRest, freeBelow } from "./words.js"

addStyle("./style.css", import.meta.url)

// The most lines that a box with a picture has.
const DRAWN = 36

/**
 * `bare` is the height of the node without its box. `drawn` is the one with it, once the latest of its `fills` has
 * been drawn: what changes later is the user's doing.
 *
 * @typedef {{widget: DomWidget, bare: number, drawn: number | null, fills: number}} Box
 */

/** @type {WeakMap<GraphNode, Box>} */
const boxes = new WeakMap()

/** What the box of a node shows: `waiting`, `refused`, `error`, or the state of a report; undefined without a box. */
export const stateOf = (/** @type {GraphNode} */ node) => boxes.get(node)?.widget.element.dataset.state

/**
 * The height of a node without its box.
 *
 * @param {GraphNode} node
 */
export function bareHeight(node) {
  const { bare = node.size[1], drawn = null } = boxes.get(node) ?? {}
  return drawn === null ? bare : bare + (node.size[1] - drawn)
}

/**
 * How high a box can be: down to the next node below, but never less than its first line needs.
 *
 * @param {GraphNode} node
 * @param {number} lines that it has at most
 */
function heightFor(node, lines) {
  const { NODE_SLOT_HEIGHT: gap, NODE_TITLE_HEIGHT: title, NODE_WIDGET_HEIGHT: line } = LiteGraph
  const [x, y] = node.pos
  const [width, height] = node.size
  const needed = LiteGraph.vueNodesMode ? height : node.computeSize()[1]
  const others = (node.graph?.nodes ?? [])
    .filter((other) => other !== node)
    .map(({ pos, size }) => ({ left: pos[0], right: pos[0] + size[0], top: pos[1] - title }))
  const free = freeBelow({ left: x, right: x + width, bottom: y + Math.max(height, needed) }, others)
  // What the node has below its widgets is free too.
  const spare = Math.max(0, height - needed)
  return Math.round(Math.max(2.5 * line, Math.min(lines * line, free - gap + spare)))
}

/**
 * @param {GraphNode} node
 * @param {number} lines
 */
function addBox(node, lines) {
  const element = make("div", { class: "lycoris-report", tabIndex: 0 })
  shareWheel(element)
  const bare = node.size[1]
  const room = heightFor(node, lines)
  // Vue makes a node as high as what is in it.
  if (LiteGraph.vueNodesMode) element.style.maxHeight = `${room}px`
  const widget = showElement(node, "report", element, {
    getMinHeight: () => room,
    getMaxHeight: () => 40 * LiteGraph.NODE_WIDGET_HEIGHT,
    getValue: () => element.innerText,
  })
  const box = { widget, bare, drawn: null, fills: 0 }
  boxes.set(node, box)
  const [, height] = node.computeSize()
  if (height > node.size[1]) node.setSize([node.size[0], height])
  return box
}

/**
 * Show a report on a node.
 *
 * @param {GraphNode} node
 * @param {string} state
 * @param {string} report
 * @param {string} [whole] what the report leaves out, folded
 * @param {string} [drawing] a picture, as SVG
 */
export async function fill(node, state, report, whole, drawing) {
  const lines = drawing ? DRAWN : 10
  // A box of a text alone has no room for a picture.
  if (drawing && boxes.get(node)?.widget.element.dataset.drawn !== "true") remove(node)
  const box = boxes.get(node) ?? addBox(node, lines)
  const { element } = box.widget
  box.bare = bareHeight(node)
  box.drawn = null
  const fills = ++box.fills
  element.dataset.state = state
  // Where Vue draws nodes, its word for what keeps the wheel to itself.
  const capture = () => (element.dataset.captureWheel = String(canScroll(element)))
  const [first, rest] = firstAndRest(report)
  element.dataset.drawn = String(Boolean(drawing))
  const parts = [
    make("pre", { class: "first", textContent: first }),
    ...(drawing ? [pictureOf(drawing)] : []),
    make("pre", { class: "rest", textContent: rest }),
  ]
  if (whole) {
    const summary = make("summary", { textContent: t("everything that was left out") })
    const text = make("pre", { class: "whole", textContent: whole })
    element.replaceChildren(...parts, make("details", { ontoggle: capture }, summary, text))
  } else element.replaceChildren(...parts)
  element.scrollTop = 0
  app.canvas.setDirty(true, true)
  await drawn()
  capture()
  if (fills === box.fills) box.drawn = node.size[1]
}

/** @param {GraphNode} node */
export function remove(node) {
  const box = boxes.get(node)
  if (!box) return
  const height = bareHeight(node)
  boxes.delete(node)
  node.removeWidget(box.widget)
  node.setSize([node.size[0], height])
  app.canvas.setDirty(true, true)
}
