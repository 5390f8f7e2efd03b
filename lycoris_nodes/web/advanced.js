// Folds the advanced inputs of nodes that are drawn on the canvas. Nodes that Vue draws fold them themselves.
// "Show Advanced" in the menu of a node unfolds them.

import { app } from "../../scripts/app.js"
import { isOurs } from "./ours.js"

/** Fold the widgets of a node whose options say that they are advanced. */
export function fold(node) {
  const advanced = node.widgets?.filter((widget) => widget.options?.advanced) ?? []
  if (!advanced.length) return
  // The front end tells Vue of it by the options alone.
  for (const widget of advanced) widget.advanced = true
  // Its own method leaves room for those that are folded, above what is shown after a run.
  node.getLayoutWidgets = () => node.widgets?.filter((widget) => node.isWidgetVisible(widget)) ?? []
  node.setSize(node.computeSize())
}

app.registerExtension({
  name: "lycoris.advanced",

  nodeCreated(node) {
    if (isOurs(node.comfyClass)) fold(node)
  },
})
