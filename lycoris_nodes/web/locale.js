// Reads the words of the user's language, and shows choices and notes in it.

import { app } from "../../scripts/app.js"
import { get, post, userLanguage } from "./ask.js"
import { speak } from "./language.js"
import { widgetOf } from "./nodes.js"

// How choices are shown, by node, input and value. The front end's own translations have names and tooltips alone.
/** @type {Record<string, Record<string, Record<string, string>>>} */
let shown = {}

/**
 * The notes of our templates and their title.
 *
 * @type {Map<string, string>}
 */
let ofEnglish = new Map()

/** Let the server speak the user's language in the prompts of this page. It forgets this when it is started anew. */
export async function sayLanguage() {
  await post("/lycoris/language", { page: app.api.clientId ?? "", language: userLanguage() })
}

/** Read the words before any node is made. */
export async function readWords() {
  const { page, notes, choices } = await get("/lycoris/words", { language: userLanguage() })
  speak(page)
  shown = choices
  ofEnglish = new Map(Object.entries(notes))
}

/**
 * Show the choices of a node in the user's language. The value itself stays as it is, in the workflow and in the prompt.
 *
 * @param {GraphNode} node
 */
export function translateChoices(node) {
  for (const [name, words] of Object.entries(shown[node.comfyClass ?? ""] ?? {})) {
    const widget = /** @type {any} */ (widgetOf(node, name))
    if (widget) widget.options.getOptionLabel = (/** @type {string | null} */ value) => words[value ?? ""] ?? value ?? ""
  }
}

/** Show the notes of our templates in the user's language. The host makes notes without calling `nodeCreated`. */
export function translateNotes(graph = app.rootGraph) {
  if (!ofEnglish.size) return
  for (const node of /** @type {GraphNode[]} */ (graph.nodes)) {
    if (node.subgraph) translateNotes(node.subgraph)
    if (node.type === "MarkdownNote") translateNote(node)
  }
}

/** @param {GraphNode} node */
function translateNote(node) {
  const [text] = /** @type {Widget[]} */ (node.widgets)
  const english = { text: text.value, title: node.title }
  const own = ofEnglish.get(english.text)
  if (own === undefined) return
  text.value = own
  node.title = ofEnglish.get(english.title) ?? english.title
  const { title } = node
  // A workflow is saved with its notes as it was delivered, until the user changes one.
  node.onSerialize = (/** @type {any} */ data) => {
    if (data.widgets_values?.[0] !== own) return
    data.widgets_values[0] = english.text
    if (data.title === title) data.title = english.title
  }
}
