// Reads the words of the user's language before any node is made.

import { app } from "../../scripts/app.js"
import { noteClass } from "./frontend.js"
import { speak } from "./language.js"
import { after, widgetOf } from "./nodes.js"

const LANGUAGES = ["ja", "zh"]

// How choices are shown, by node, input and value. The front end's own translations have names and tooltips alone.
/** @type {Record<string, Record<string, Record<string, string>>>} */
let shown = {}

/**
 * The notes of our templates and their title.
 *
 * @type {Map<string, string>}
 */
let ofEnglish = new Map()

/** Show a note of ours in the user's language. @param {GraphNode} node */
function translate(node) {
  const [text] = /** @type {Widget[]} */ (node.widgets)
  const own = ofEnglish.get(text.value)
  if (own === undefined) return
  text.value = own
  node.title = ofEnglish.get(node.title) ?? node.title
}

app.registerExtension({
  name: "lycoris.locale",

  async init() {
    // "zh-TW" is read as "zh": simplified characters are nearer than English.
    const language = String(app.ui.settings.getSettingValue("Comfy.Locale") ?? "en").split("-")[0]
    if (!LANGUAGES.includes(language)) return
    const answer = await fetch(new URL(`./words/${language}.json`, import.meta.url))
    const { page, notes, server, choices } = await answer.json()
    speak(page, server)
    shown = choices
    ofEnglish = new Map(Object.entries(notes))
  },

  // After the front end's own, with its notes.
  registerCustomNodes() {
    const english = new Map([...ofEnglish].map(([text, own]) => [own, text]))
    after(noteClass(), "onConfigure", translate)
    // A workflow is saved with its notes as it was delivered, until the user changes one.
    after(noteClass(), "onSerialize", (_node, data) => {
      const text = english.get(data.widgets_values?.[0])
      if (text === undefined) return
      data.widgets_values[0] = text
      data.title = english.get(data.title) ?? data.title
    })
  },

  // The value itself stays as it is, in the workflow and in the prompt.
  nodeCreated(/** @type {GraphNode} */ node) {
    for (const [name, words] of Object.entries(shown[node.comfyClass ?? ""] ?? {})) {
      const widget = /** @type {any} */ (widgetOf(node, name))
      if (widget) widget.options.getOptionLabel = (/** @type {string | null} */ value) => words[value ?? ""] ?? value ?? ""
    }
  },
})
