// Reads the words of the user's language before any node is made.

import { app } from "../../scripts/app.js"
import { speak } from "./language.js"
import { widgetOf } from "./nodes.js"

const LANGUAGES = ["ja", "zh"]

// How choices are shown, by node, input and value. The front end's own translations have names and tooltips alone.
/** @type {Record<string, Record<string, Record<string, string>>>} */
let shown = {}

app.registerExtension({
  name: "lycoris.locale",

  async init() {
    // "zh-TW" is read as "zh": simplified characters are nearer than English.
    const language = String(app.ui.settings.getSettingValue("Comfy.Locale") ?? "en").split("-")[0]
    if (!LANGUAGES.includes(language)) return
    const answer = await fetch(new URL(`./words/${language}.json`, import.meta.url))
    const { page, server, choices } = await answer.json()
    speak(page, server)
    shown = choices
  },

  // The value itself stays as it is, in the workflow and in the prompt.
  nodeCreated(/** @type {GraphNode} */ node) {
    for (const [name, words] of Object.entries(shown[node.comfyClass ?? ""] ?? {})) {
      const widget = /** @type {any} */ (widgetOf(node, name))
      if (widget) widget.options.getOptionLabel = (/** @type {string | null} */ value) => words[value ?? ""] ?? value ?? ""
    }
  },
})
