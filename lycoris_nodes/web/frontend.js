// Changes that the front end has no hook for: they are made in its own tables, methods and elements. Checked with its
// versions 1.41.21, 1.47.12 and 1.58.1. If a later version shows something wrong, look here first.

import { app } from "../../scripts/app.js"
import { make } from "./elements.js"
import { drawn, isOurs } from "./nodes.js"
import { isMet } from "./search.js"

/** The class of notes with Markdown. The hook for classes of nodes is called only for those of the host. */
export const noteClass = () => LiteGraph.registered_node_types.MarkdownNote

/** @type {Record<string, string>} */
const COLOURS = { LYCORIS_STACK: "#58c7a8", LYCORIS_PLAN: "#c792e0", LORA_STACK: "#a0c75c" }
// When one of these settings changes, the front end drops the colours of types that its palette lacks.
const REPAINTED = ["Comfy.ColorPalette", "Comfy.Canvas.BackgroundImage"]

/** Give our types of wires their colours on the canvas. Colours that the palette sets for them stay. */
function paint() {
  const { link_type_colors } = /** @type {any} */ (app.canvas.constructor)
  for (const table of [link_type_colors, app.canvas.default_connection_color_byType]) {
    for (const [type, colour] of Object.entries(COLOURS)) table[type] ||= colour
  }
  app.canvas.setDirty(true, true)
}

/** Show the elements of a node that has the id of an earlier one, as after Undo: Vue keeps those of the earlier one. */
export function showNewElements() {
  for (const node of app.canvas.graph?.nodes ?? []) {
    if (!isOurs(/** @type {GraphNode} */ (node).comfyClass)) continue
    for (const { element } of /** @type {DomWidget[]} */ (node.widgets ?? [])) {
      if (!element?.className.startsWith("lycoris-") || element.isConnected) continue
      document.querySelector(`[data-node-id="${node.id}"] .${element.classList[0]}`)?.replaceWith(element)
    }
  }
}

/** Whether the workflow that is loaded is an earlier or later state of the one on the page, by Undo or Redo. */
export const isRestoring = () =>
  /** @type {any} */ (app.extensionManager).workflow?.activeWorkflow?.changeTracker?._restoringState === true

/**
 * @typedef {{
 *   ask?: () => void,
 *   sent?: (prompt: string, workflow: string | undefined, nodes: Record<string, {class_type: string, inputs: any}>) => void,
 *   refuse?: (errors: [key: string, error: any][]) => void,
 * }} PromptListener
 */

/** @type {PromptListener[]} */
const listeners = []

/**
 * Call `ask` before the page sends a prompt. Where the host accepts it, call `sent` with the ids of the prompt and of
 * its workflow, and with its nodes; where the host refuses nodes, call `refuse` with their errors by their keys. The
 * front end's own event comes only for accepted prompts, and does not name the workflow.
 *
 * An error of a listener is reported as one of the page, and changes nothing of the run.
 *
 * @param {PromptListener} listener
 */
export function onPrompt(listener) {
  listeners.push(listener)
  if (listeners.length > 1) return
  const { queuePrompt } = app.api
  app.api.queuePrompt = async function (...options) {
    tell(({ ask }) => ask?.())
    /** @type {any} */
    let answer
    try {
      answer = await queuePrompt.apply(this, options)
      return answer
    } catch (error) {
      answer = /** @type {any} */ (error).response
      throw error
    } finally {
      const { workflow, output } = /** @type {any} */ (options[1] ?? {})
      if (answer?.prompt_id) tell(({ sent }) => sent?.(answer.prompt_id, workflow?.id, output ?? {}))
      const errors = Object.entries(answer?.node_errors ?? {})
      if (errors.length) tell(({ refuse }) => refuse?.(errors))
    }
  }
}

/** @param {(listener: PromptListener) => void} say */
function tell(say) {
  for (const listener of listeners) {
    try {
      say(listener)
    } catch (error) {
      reportError(error)
    }
  }
}

/**
 * Put Load LoRA / LyCORIS (rows) first in a search for "lora" or "lycoris". The front end's own order goes by a list
 * of how often nodes are used, and by names without aliases.
 *
 * @param {Record<string, any>} definitions
 */
function putFirst({ LycorisAdapterRows: rows }) {
  if (!rows) return
  // The search calls this on its own entry for the node, which has every field of a definition.
  rows.postProcessSearchScores = function (/** @type {number[]} */ [way, ...score]) {
    return isMet([this.name, this.display_name], [way, ...score]) ? [-1, 0, ...score] : [way, 0, ...score]
  }
}

app.registerExtension({
  name: "lycoris.frontend",

  addCustomNodeDefs: putFirst,

  setup() {
    // Links and slots that Vue draws. A palette's own value, set on the element, takes precedence.
    const lines = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
    document.head.append(make("style", { textContent: `:where(html) { ${lines.join(" ")} }` }))
    for (const setting of REPAINTED) {
      app.ui.settings.addEventListener(`${setting}.change`, async () => {
        await drawn()
        paint()
      })
    }
  },

  beforeRegisterNodeDef(nodeType, { name }) {
    if (!isOurs(name)) return
    // On the canvas the front end's own method leaves a gap for folded widgets above the report.
    nodeType.prototype.getLayoutWidgets = function () {
      return this.widgets?.filter((widget) => this.isWidgetVisible(widget)) ?? []
    }
  },

  // Palettes are loaded before the first graph.
  afterConfigureGraph() {
    paint()
    showNewElements()
  },
})
