// Shows the report of a node on the node itself, as read-only text below its other widgets.

import { app } from "../../scripts/app.js"

const REPORT = "report"
const CATEGORY = "lycoris"
const MIN_WIDTH = 380
const MIN_HEIGHT = 180

// The types of nodes that have a report.
const reporting = new Set()

function addWidget(node) {
  const element = document.createElement("textarea")
  element.className = "comfy-multiline-input"
  element.readOnly = true
  element.spellcheck = false
  // The wheel scrolls a text that is longer than the widget. Otherwise it zooms the canvas, as elsewhere.
  element.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && element.scrollHeight > element.clientHeight) event.stopPropagation()
  })
  let text = ""
  // ComfyUI's front end does not know this type of widget, so it shows the element itself, whether nodes
  // are drawn on the canvas or by Vue.
  const widget = node.addDOMWidget(REPORT, "lycoris_report", element, {
    // `options.serialize` keeps the text out of the prompt, `widget.serialize` out of the saved workflow.
    serialize: false,
    getMinHeight: () => MIN_HEIGHT,
    getValue: () => text,
    setValue: (value) => {
      text = element.value = value
    },
  })
  widget.serialize = false
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width, MIN_WIDTH), Math.max(node.size[1], height)])
  return widget
}

function show(node, output) {
  if (!output?.text) return
  const widget = node.widgets?.find((known) => known.name === REPORT) ?? addWidget(node)
  widget.value = output.text.join("\n")
  app.graph.setDirtyCanvas(true, true)
}

/** The node that a key of the outputs names: `5`, or `<subgraph>:5` for a node in a subgraph. */
function nodeOf(key) {
  const [id, subgraph] = String(key).split(":").reverse()
  const graph = subgraph ? app.rootGraph.subgraphs.get(subgraph) : app.rootGraph
  return graph?.getNodeById(id)
}

app.registerExtension({
  name: "lycoris.report",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.category?.startsWith(CATEGORY) || !nodeData.output_name?.includes(REPORT)) return
    reporting.add(nodeData.name)
    const onExecuted = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.call(this, output)
      show(this, output)
    }
  },

  // Called when results come back together with a workflow: from another tab, or a run from the history.
  onNodeOutputsUpdated(outputs) {
    for (const [key, output] of Object.entries(outputs ?? {})) {
      const node = nodeOf(key)
      if (reporting.has(node?.type)) show(node, output)
    }
  },
})
