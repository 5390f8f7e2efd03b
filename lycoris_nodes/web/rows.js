// Shows the JSON of Load LoRA / LyCORIS (rows) as a list. The text stays the node's only input: the list reads
// and writes it, so the workflow, the API, copies, undo and subgraphs have nothing else to know.

import { app } from "../../scripts/app.js"
import { after, drawn, onValue, ourNodes, showElement, widgetOf } from "./nodes.js"
import { forgetWeights } from "./rows/blocksserver.js"
import { createList } from "./rows/list.js"
import { followModel, modelOf } from "./rows/model.js"
import { onReasons } from "./rows/reasons.js"
import { forgetFiles } from "./rows/server.js"
import { fold } from "./sizes.js"

const TEXT = "rows"
const MARGIN = 6
const WIDTH = 500

/** @type {WeakMap<GraphNode, ReturnType<typeof createList>>} */
const lists = new WeakMap()

/**
 * The bounds of a strength: those of the node that loads one file.
 *
 * @type {{min: number, max: number}}
 */
let bounds

/**
 * @param {GraphNode} node
 * @param {number} height
 */
function setHeight(node, height) {
  if (height !== node.size[1]) node.setSize([node.size[0], height])
}

// Ends the step that is still open.
let finish = () => {}

/** Begin a step that can be undone. Returns the function that ends it. */
function begin() {
  finish()
  app.canvas.emitBeforeChange()
  let open = true
  return async () => {
    finish()
    const end = () => {
      if (open) app.canvas.emitAfterChange()
      open = false
    }
    finish = end
    // If Vue measured the size after the step, it would be a step of its own.
    await drawn()
    end()
  }
}

/**
 * Change a widget's value as one step that can be undone, or as part of the open one.
 *
 * @param {GraphNode} node
 * @param {Widget} widget
 * @param {string} value
 */
function write(node, widget, value) {
  const before = widget.value
  if (value === before) return
  const end = begin()
  // The node grows and shrinks with the list, and keeps what the user has added to its height.
  const added = node.size[1] - node.computeSize()[1]
  widget.value = value
  setHeight(node, node.computeSize()[1] + added)
  node.onWidgetChanged?.(widget.name, value, before, widget)
  node.graph?.setDirtyCanvas(true, true)
  end()
}

/** @param {GraphNode} node */
export function addList(node) {
  const text = widgetOf(node, TEXT)
  if (!text) return
  // Folded like other advanced inputs: "Show Advanced" shows the text.
  text.options.advanced = true
  const list = createList({
    read: () => text.value,
    write: (value) => write(node, text, value),
    begin,
    undo(again) {
      finish()
      app.extensionManager.command.execute(again ? "Comfy.Redo" : "Comfy.Undo")
    },
    isLinked: () => node.inputs.some((input, slot) => input.widget?.name === TEXT && node.isInputConnected(slot)),
    resized: () => setHeight(node, Math.max(node.size[1], node.computeSize()[1])),
    bounds,
    model: () => modelOf(node),
  })
  lists.set(node, list)
  followModel(node, list.draw)
  onReasons(node, { ask: list.explain, clear: list.clear })
  const getMinHeight = () => list.height() + 2 * MARGIN
  showElement(node, "list", list.element, { hideOnZoom: false, margin: MARGIN, getMinHeight })
  onValue(text, list.draw)
  fold(node)
  list.draw()
  node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])
}

/**
 * Read the bounds of a strength from the node that loads one file.
 *
 * @param {NodeDefinition} definition
 */
export function readBounds({ input }) {
  bounds = /** @type {any} */ (input?.required?.strength_model)[1]
}

/** @param {NodeClass} nodeType */
export function prepareRows(nodeType) {
  after(nodeType, "onConnectionsChange", (node) => lists.get(node)?.draw())
  after(nodeType, "onRemoved", (node) => lists.get(node)?.close())
}

/** Called when the user refreshes the lists of files. */
export function refreshRows() {
  forgetFiles()
  forgetWeights()
  for (const node of ourNodes()) lists.get(node)?.draw()
}
