// Shows the elements of nodes that are new under an old number, as after Undo. Vue may keep what it has drawn of
// the node before, with that node's elements.

import { app } from "../../scripts/app.js"
import { isOurs } from "./ours.js"

app.registerExtension({
  name: "lycoris.remount",

  afterConfigureGraph() {
    for (const node of app.canvas.graph?.nodes ?? []) {
      if (!isOurs(node.comfyClass)) continue
      for (const { element } of node.widgets ?? []) {
        if (!element?.className.startsWith("lycoris-") || element.isConnected) continue
        document.querySelector(`[data-node-id="${node.id}"] .${element.classList[0]}`)?.replaceWith(element)
      }
    }
  },
})
