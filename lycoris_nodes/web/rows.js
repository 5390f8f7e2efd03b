// Shows the JSON of Load LoRA / LyCORIS (rows) as a list. The text stays the node's only input: the list reads
// and writes it, so the workflow, the API, copies, undo and subgraphs have nothing else to know.

import { app } from "../../scripts/app.js"
import { fold } from "./advanced.js"
import { forgetFiles } from "./rows/files.js"
import { createList } from "./rows/list.js"

const NODE = "LycorisAdapterRows"
const LOADER = "LycorisLoadAdapter"
const TEXT = "rows"
const LIST = "list"
const MARGIN = 6
const WIDTH = 460

const lists = new Set()

/** The bounds and the step of a strength: those of the node that loads one file. */
let strengths

function resize(node, height) {
  if (height !== node.size[1]) node.setSize([node.size[0], height])
}

const frame = () => new Promise(requestAnimationFrame)

/** Change a widget's value as one step that can be undone. */
async function write(node, widget, value) {
  const before = widget.value
  if (value === before) return
  app.canvas.emitBeforeChange()
  // The node grows and shrinks with the list, and keeps what the user has added to its height.
  const added = node.size[1] - node.computeSize()[1]
  widget.value = value
  resize(node, node.computeSize()[1] + added)
  node.onWidgetChanged?.(widget.name, value, before, widget)
  node.graph?.setDirtyCanvas(true, true)
  // Vue sizes its nodes a little later, which would be a step of its own.
  await frame()
  await frame()
  app.canvas.emitAfterChange()
}

function isLinked(node) {
  return node.inputs?.some((input) => input.widget?.name === TEXT && input.link != null) ?? false
}

function addList(node) {
  const text = node.widgets?.find((widget) => widget.name === TEXT)
  if (!text) return
  // Folded like other advanced inputs: "Show Advanced" shows the text.
  text.options.advanced = true
  let needed = 0
  const list = createList({
    read: () => text.value,
    write: (value) => write(node, text, value),
    isLinked: () => isLinked(node),
    resized: (height) => (needed = height),
    strengths,
  })
  const widget = node.addDOMWidget(LIST, "lycoris_rows", list.element, {
    // The text alone is in the prompt and in the workflow.
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getMinHeight: () => needed + 2 * MARGIN,
    getValue: () => "",
    setValue: () => {},
  })
  widget.serialize = false
  fold(node)
  lists.add(list)

  const grow = () => resize(node, Math.max(node.size[1], node.computeSize()[1]))
  const draw = () => {
    const later = list.draw()
    grow()
    later?.then(grow)
  }

  // Called for each new value: of a loaded workflow, of an undone step, of the text itself.
  const callback = text.callback
  text.callback = function (...values) {
    const result = callback?.apply(this, values)
    draw()
    return result
  }
  const onConnectionsChange = node.onConnectionsChange
  node.onConnectionsChange = function (...values) {
    onConnectionsChange?.apply(this, values)
    list.draw()
  }
  const onRemoved = node.onRemoved
  node.onRemoved = function (...values) {
    onRemoved?.apply(this, values)
    list.close()
    lists.delete(list)
  }
  list.draw()
  node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])
}

app.registerExtension({
  name: "lycoris.rows",

  setup() {
    const style = document.createElement("link")
    style.rel = "stylesheet"
    style.href = new URL("./rows/style.css", import.meta.url).href
    document.head.append(style)
  },

  beforeRegisterNodeDef(_, nodeData) {
    if (nodeData.name === LOADER) strengths = nodeData.input.required.strength_model[1]
  },

  nodeCreated(node) {
    if (node.comfyClass === NODE) addList(node)
  },

  // Called when the user refreshes the lists of files.
  refreshComboInNodes() {
    forgetFiles()
    for (const list of lists) list.draw()
  },
})
