// Folds the advanced inputs of our nodes, and makes the nodes wide enough for their titles and inputs, which would
// be cut off otherwise. "Show Advanced" in the menu of a node unfolds its inputs.

import { after, onValue } from "./nodes.js"

const context = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"))

/**
 * Fold the advanced widgets of a node on the canvas: by their options alone, only Vue folds them.
 *
 * @param {GraphNode} node
 */
function mark(node) {
  const widgets = /** @type {Widget[]} */ (node.widgets ?? [])
  const advanced = widgets.filter((widget) => widget.options?.advanced)
  for (const widget of advanced) widget.advanced = true
  return advanced
}

/** @param {GraphNode} node */
export function fold(node) {
  if (mark(node).length) node.setSize(node.computeSize())
}

/**
 * The width that shows a node's title beside its button. Nodes without widgets get the width of the others: in Vue's
 * nodes, the name of an input gets less than half of the width.
 *
 * @param {string} title
 */
function leastWidth(title) {
  context.font = `${LiteGraph.NODE_TEXT_SIZE}px ${LiteGraph.NODE_FONT}`
  const words = Math.ceil(context.measureText(title).width)
  return Math.max(words, 1.5 * LiteGraph.NODE_WIDTH) + 2 * LiteGraph.NODE_TITLE_HEIGHT
}

/**
 * Fold the widgets that the groups of a loaded workflow add. The front end has made the node higher for them.
 *
 * @param {NodeClass} nodeType
 */
export function foldGroups(nodeType) {
  after(nodeType, "onConfigure", (node, { size }) => {
    if (mark(node).length && size) node.setSize([node.size[0], Math.max(size[1], node.computeSize()[1])])
  })
}

/** @param {GraphNode} node */
export function fit(node) {
  fold(node)
  // The widgets of a group come when it is chosen.
  for (const widget of mark(node)) onValue(widget, () => mark(node))
  node.setSize([Math.max(node.size[0], leastWidth(node.title)), node.size[1]])
}
