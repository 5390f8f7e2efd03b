// Expands %date:yyyy-MM-dd% and %Node.widget% in the names of files to save, as the front end does for its own
// nodes.

import { app } from "../../scripts/app.js"
import { isOurs } from "./ours.js"

app.registerExtension({
  name: "lycoris.prefixes",

  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return
    const prefix = node.widgets?.find((widget) => widget.name === "filename_prefix")
    const expand = window.comfyAPI?.utils?.applyTextReplacements
    if (prefix && expand) prefix.serializeValue = () => expand(app.rootGraph ?? app.graph, prefix.value)
  },
})
