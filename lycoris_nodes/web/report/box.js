// The box with a report on a node, below its other widgets: one sentence, and the rest folded below it.
//
// It never covers another node, and is not saved in the workflow.

import { app } from "../../../scripts/app.js"
import { make } from "../elements.js"
import { bareHeight, changing, grow, hold, release, settle } from "../height.js"
import { t } from "../language.js"
import { drawn, showElement } from "../nodes.js"
import { canScroll, shareWheel } from "../host.js"
import { pictureOf } from "./picture.js"
import { freeBelow, partsOf } from "./words.js"

// The most lines of a box, and of one with a picture.
const LINES = 16
const DRAWN = 36

/**
 * `height` is the height of the box on the canvas, and `lines` how many lines it may have. `open`: the user has unfolded
 * the details, and the next report shows them too. `fills` counts its changes.
 *
 * @typedef {{widget: DomWidget, fills: number, height: number, lines: number, open: boolean, shown?: Shown}} Box
 */

/** What a box was filled with. @typedef {[state: string, report: string, whole?: string, drawing?: string]} Shown */

/** @type {WeakMap<GraphNode, Box>} */
const boxes = new WeakMap()

/** What the box of a node shows: `waiting`, `refused`, `error`, or the state of a report; undefined without a box. */
export const stateOf = (/** @type {GraphNode} */ node) => boxes.get(node)?.widget.element.dataset.state

export const shownOn = (/** @type {GraphNode} */ node) => boxes.get(node)?.shown

/**
 * How high a box can be: down to the next node below, but never less than its first line needs.
 *
 * @param {GraphNode} node
 * @param {Box} box
 * @param {number} needed by its other widgets
 */
function roomFor(node, { lines }, needed) {
  const height = bareHeight(node)
  const { NODE_SLOT_HEIGHT: gap, NODE_TITLE_HEIGHT: title, NODE_WIDGET_HEIGHT: line } = LiteGraph
  const [x, y] = node.pos
  const others = (node.graph?.nodes ?? [])
    .filter((other) => other !== node)
    .map(({ pos, size }) => ({ left: pos[0], right: pos[0] + size[0], top: pos[1] - title }))
  const free = freeBelow({ left: x, right: x + node.size[0], bottom: y + Math.max(height, needed) }, others)
  // Empty space of the node below its widgets is free too.
  const spare = Math.max(0, height - needed)
  return Math.round(Math.max(2.5 * line, Math.min(lines * line, free - gap + spare)))
}

/** @param {GraphNode} node */
function addBox(node) {
  const element = make("div", { class: "lycoris-report", tabIndex: 0 })
  shareWheel(element)
  /** @type {Box} */
  const box = { widget: /** @type {any} */ (null), fills: 0, height: 0, lines: LINES, open: false }
  hold(node, box)
  box.widget = showElement(node, "report", element, {
    getMinHeight: () => box.height,
    getMaxHeight: () => 40 * LiteGraph.NODE_WIDGET_HEIGHT,
    getValue: () => element.innerText,
  })
  boxes.set(node, box)
  return box
}

/**
 * How high an element is in this width, measured in a copy: where the canvas is zoomed out, or the node is not in
 * view, the front end hides the elements of nodes, and a hidden one has no height.
 *
 * @param {HTMLElement} element
 * @param {number} width
 */
function heightOf(element, width) {
  const copy = /** @type {HTMLElement} */ (element.cloneNode(true))
  copy.style.cssText = `position: fixed; visibility: hidden; height: auto; width: ${width}px`
  document.body.append(copy)
  const { offsetHeight } = copy
  copy.remove()
  return offsetHeight
}

/**
 * Fit the box to its content, and the node to the box.
 *
 * @param {GraphNode} node
 * @param {Box} box
 */
async function fit(node, box) {
  const { element, margin } = box.widget
  const fills = ++box.fills
  changing(node)
  const vue = LiteGraph.vueNodesMode
  // Vue makes a node as high as its content.
  if (vue) element.style.maxHeight = `${roomFor(node, box, bareHeight(node))}px`
  else await drawn()
  if (fills !== box.fills || boxes.get(node) !== box) return
  if (!vue) {
    box.height = 0
    const [, needed] = node.computeSize()
    box.height = Math.min(heightOf(element, node.size[0] - 2 * margin) + 2 * margin, roomFor(node, box, needed))
    grow(node)
  }
  app.canvas.setDirty(true, true)
  await drawn()
  if (vue && fills === box.fills) settle(node)
  // Vue's nodes leave the wheel to elements with this mark.
  element.dataset.captureWheel = String(canScroll(element))
}

/**
 * Show a report on a node: its first paragraph, and the rest folded, except while the node runs.
 *
 * @param {GraphNode} node
 * @param {string} state
 * @param {string} report
 * @param {string} [whole] what the report leaves out, to be shown folded
 * @param {string} [drawing] a picture, as SVG
 */
export async function fill(node, state, report, whole, drawing) {
  const box = boxes.get(node) ?? addBox(node)
  const { element } = box.widget
  const waits = state === "waiting"
  element.dataset.state = state
  box.shown = [state, report, whole, drawing]
  const { first, rest, folded } = partsOf(report)
  /** @type {HTMLElement[]} */
  const parts = [make("pre", { class: "first", textContent: first })]
  box.lines = drawing ? DRAWN : LINES
  if (drawing) parts.push(pictureOf(drawing))
  if (rest) parts.push(make("pre", { class: "rest", textContent: rest }))
  if (folded && waits) parts.push(make("pre", { class: "rest", textContent: folded }))
  else if (folded || whole) {
    /** @type {HTMLElement[]} */
    const within = [make("pre", { class: "rest", textContent: folded })]
    if (whole) {
      const text = make("pre", { class: "whole", textContent: whole })
      within.push(fold(t("everything that was left out"), [text], () => fit(node, box)))
    }
    const details = fold(t("details"), within, () => {
      box.open = details.open
      fit(node, box)
    })
    details.open = box.open
    parts.push(details)
  }
  element.replaceChildren(...parts)
  element.scrollTop = 0
  await fit(node, box)
}

/**
 * @param {string} title
 * @param {HTMLElement[]} within
 * @param {() => void} ontoggle
 */
const fold = (title, within, ontoggle) =>
  make("details", { ontoggle }, make("summary", { textContent: title }), ...within)

/** @param {GraphNode} node */
export function remove(node) {
  const box = boxes.get(node)
  if (!box) return
  boxes.delete(node)
  node.removeWidget(box.widget)
  release(node, box)
}
