// Folds the advanced inputs of our nodes, and makes the nodes wide enough for their titles and inputs, which would
// be cut off otherwise. "Show Advanced" in the menu of a node unfolds its inputs.

import { app } from "../../scripts/app.js"
import { isOurs } from "./nodes.js"

const context = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"))

/**
 * Fold the widgets of a node whose options say that they are advanced. Vue does this by itself.
 *
 * @param {GraphNode} node
 */
export function fold(node) {
  const widgets = /** @type {Widget[]} */ (node.widgets ?? [])
  const advanced = widgets.filter((widget) => widget.options?.advanced)
  if (!advanced.length) return
  for (const widget of advanced) widget.advanced = true
  node.setSize(node.computeSize())
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

app.registerExtension({
  name: "lycoris.sizes",

  nodeCreated(/** @type {GraphNode} */ node) {
    if (!isOurs(node.comfyClass)) return
    fold(node)
    node.setSize([Math.max(node.size[0], leastWidth(node.title)), node.size[1]])
  },
})
