// The host's page where it has no interface for extensions. Every change of its own tables and methods is here, and
// every use of what it does not promise. Checked with its versions 1.41.21, 1.47.12 and 1.58.1. If a later version
// shows something wrong, look here first.
//
// | patch              | reason                                                        | replaced by                   |
// |--------------------|---------------------------------------------------------------|-------------------------------|
// | `queuePrompt`      | its events name neither prompt nor workflow, nor refusals     | nothing up to 1.58.1          |
// | colours of wires   | a type that a palette lacks is grey, and palettes drop ours   | nothing up to 1.58.1          |
// | `getLayoutWidgets` | the canvas leaves a gap for folded widgets                    | nothing up to 1.58.1          |
// | order of a search  | goes by a list of how often nodes were used, without new ones | nothing up to 1.58.1          |
// | links of help      | a link from page to page opens an address that is none        | nothing up to 1.58.1          |
//
// It also reads `_restoringState`: nothing else says that a workflow is loaded by Undo.

import { app } from "../../scripts/app.js"
import { make } from "./elements.js"
import { drawn } from "./nodes.js"
import { isMet } from "./search.js"

/** @type {Record<string, string>} */
const COLOURS = { LYCORIS_STACK: "#58c7a8", LYCORIS_PLAN: "#c792e0", LORA_STACK: "#a0c75c" }
// When one of these settings changes, the front end drops the colours of types that its palette lacks.
const REPAINTED = ["Comfy.ColorPalette", "Comfy.Canvas.BackgroundImage"]

/** Give our types of wires their colours on the canvas. Colours that the palette sets for them stay. */
export function paint() {
  const { link_type_colors } = /** @type {any} */ (app.canvas.constructor)
  for (const table of [link_type_colors, app.canvas.default_connection_color_byType]) {
    for (const [type, colour] of Object.entries(COLOURS)) table[type] ||= colour
  }
  app.canvas.setDirty(true, true)
}

/** Keep the colours of our types of wires whatever the palette. */
export function keepColours() {
  // Links and slots that Vue draws. A palette's own value, set on the element, takes precedence.
  const lines = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
  document.head.append(make("style", { textContent: `:where(html) { ${lines.join(" ")} }` }))
  for (const setting of REPAINTED) {
    app.ui.settings.addEventListener(`${setting}.change`, async () => {
      await drawn()
      paint()
    })
  }
}

/**
 * Lay out only the widgets of a node that are shown.
 *
 * @param {NodeClass} nodeType
 */
export function closeGaps(nodeType) {
  nodeType.prototype.getLayoutWidgets = function () {
    return this.widgets?.filter((widget) => this.isWidgetVisible(widget)) ?? []
  }
}

/**
 * Put Load LoRA / LyCORIS (rows) first in a search for "lora" or "lycoris". The front end's own order goes by a list
 * of how often nodes are used, and by names without aliases.
 *
 * @param {Record<string, any>} definitions
 */
export function putFirst({ LycorisAdapterRows: rows }) {
  if (!rows) return
  // The search calls this on its own entry for the node, which has every field of a definition.
  rows.postProcessSearchScores = function (/** @type {number[]} */ [way, ...score]) {
    return isMet([this.name, this.display_name], [way, ...score]) ? [-1, 0, ...score] : [way, 0, ...score]
  }
}

/** Whether an element of ours has more than it shows. @param {Element} element */
export const canScroll = (element) => element.scrollHeight > element.clientHeight

/**
 * Let the wheel over an element of ours scroll what can scroll, and zoom the canvas elsewhere.
 *
 * @param {HTMLElement} element
 */
export function shareWheel(element, scrolls = canScroll) {
  element.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && scrolls(element)) event.stopPropagation()
    // Vue's nodes pass it on by themselves. Otherwise elements lie above the canvas, which would not get the event.
    else if (!LiteGraph.vueNodesMode) {
      event.preventDefault()
      app.canvas.canvas.dispatchEvent(new WheelEvent(event.type, event))
    }
  })
}

/**
 * The ids of the prompts that run or wait.
 *
 * @returns {Promise<Set<string>>}
 */
export async function queuedPrompts() {
  const answer = await app.api.fetchApi("/queue")
  const { queue_running: now, queue_pending: later } = await answer.json()
  return new Set([...now, ...later].map(([, id]) => id))
}

/** Whether the workflow that is loaded is an earlier or later state of the one on the page, by Undo or Redo. */
export const isRestoring = () =>
  /** @type {any} */ (app.extensionManager).workflow?.activeWorkflow?.changeTracker?._restoringState === true

/**
 * @typedef {{
 *   ask?: () => unknown,
 *   sent?: (prompt: string, workflow: string | undefined, nodes: Record<string, {class_type: string, inputs: any}>) => void,
 *   refuse?: (errors: [key: string, error: any][]) => void,
 * }} PromptListener
 */

/** @type {PromptListener[]} */
const listeners = []

/**
 * Call `ask`, and wait for it, before the page sends a prompt. Where the host accepts it, call `sent` with the ids of the prompt and of
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
    await Promise.all(listeners.map(({ ask }) => ask?.())).catch(reportError)
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
 * Call `open` for a click on a link from one help page to another, with the open page's element and the node.
 *
 * @param {(page: Element, node: string) => void} open
 */
export function onHelpLink(open) {
  const follow = (/** @type {Event} */ event) => {
    const link = /** @type {Element} */ (event.target).closest?.(".node-help-content a[href$='.md']")
    const node = link?.getAttribute("href")?.match(/(Lycoris\w+)(?:\/\w+)?\.md$/u)?.[1]
    const page = link?.closest(".node-help-content > *")
    if (!node || !page) return
    event.preventDefault()
    open(page, node)
  }
  document.addEventListener("click", follow, true)
}
