// Expands %date:yyyy-MM-dd% and %Node.widget% in the names of files to save, as the front end does for its own
// nodes.

import { app } from "../../scripts/app.js"
import { applyTextReplacements } from "../../scripts/utils.js"
import { widgetOf } from "./nodes.js"

/** @param {GraphNode} node */
export function expandPrefix(node) {
  const prefix = widgetOf(node, "filename_prefix")
  if (prefix) prefix.serializeValue = () => applyTextReplacements(app.rootGraph, prefix.value)
}
