// Makes nodes wide enough for their titles and the names of their inputs, which would be cut off.

import { app } from "../../scripts/app.js"
import { isOurs } from "./ours.js"

// The collapse button before a title, and the room behind it.
const AROUND = 64
// Where Vue draws nodes, a name has less than half of the width.
const LEAST = 270

const context = document.createElement("canvas").getContext("2d")

app.registerExtension({
  name: "lycoris.titles",

  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return
    context.font = `${LiteGraph.NODE_TEXT_SIZE ?? 14}px ${LiteGraph.NODE_FONT ?? "Arial"}`
    const width = Math.max(LEAST, Math.ceil(context.measureText(node.title ?? "").width) + AROUND)
    // By what a node needs, because others set it to that.
    const { computeSize } = node
    node.computeSize = function (...options) {
      const size = computeSize.apply(this, options)
      size[0] = Math.max(size[0], width)
      return size
    }
    node.setSize([Math.max(node.size[0], width), node.size[1]])
  },
})
