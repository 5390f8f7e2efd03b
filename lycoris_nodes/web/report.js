// Shows the report of a node in a box on the node, while there is something to say.

import { app } from "../../scripts/app.js"
import { onPrompt } from "./frontend.js"
import { t } from "./language.js"
import { after, anyNodeOf, isOurs, nodeOf, ourNodes } from "./nodes.js"
import { bareHeight, fill, remove, stateOf } from "./report/box.js"
import { isAsIn, refusal } from "./report/words.js"

// How many of the runs that the host remembers are looked through.
const REMEMBERED = 32

// Whether a run goes on, and the keys of the nodes whose results it took from the cache.
let running = false
/** @type {string[]} */
let cached = []

// What nodes of this run have kept although they did not finish, in words.
/** @type {Map<string, string>} */
const rescued = new Map()

/** @param {string} state */
function removeAll(state) {
  for (const node of ourNodes()) if (stateOf(node) === state) remove(node)
}

/**
 * @param {GraphNode} node
 * @param {any} output
 */
function show(node, output) {
  if (!output?.text) return
  const [{ state, whole, drawing } = /** @type {any} */ ({})] = output.lycoris ?? []
  fill(node, state ?? "all", output.text.join("\n"), whole?.[0], drawing)
}

/**
 * Shows why nodes were refused. The front end itself says only that an input is invalid.
 *
 * @param {[key: string, error: any][]} errors
 */
function refuse(errors) {
  for (const [key, { errors: reasons }] of errors) {
    const node = nodeOf(key)
    if (!node) continue
    const words = refusal(reasons)
    fill(node, "refused", t("The run was refused: {words}", { words }))
    app.extensionManager.toast.add({ severity: "error", summary: node.title, detail: words, life: 10_000 })
  }
  // The reports of the last run would look like those of this one.
  if (!running) for (const node of ourNodes()) if (stateOf(node) !== "refused") remove(node)
}

/**
 * Shows reports of earlier runs of this workflow on nodes without one, where nothing before them has changed.
 *
 * @param {Iterable<GraphNode>} nodes
 */
async function recall(nodes) {
  const left = new Set(
    [...nodes].filter(
      (node) =>
        node.outputs?.some(({ name }) => name === "report") && [undefined, "waiting"].includes(stateOf(node)),
    ),
  )
  if (!left.size) return
  const answer = await app.api.fetchApi(`/history?max_items=${REMEMBERED}`)
  /** @type {any[]} */
  const runs = Object.values(await answer.json()).reverse()
  const own = runs.filter(({ prompt }) => prompt[3]?.extra_pnginfo?.workflow?.id === app.rootGraph.id)
  if (running) return
  for (const { prompt, outputs } of own) {
    for (const [key, output] of Object.entries(outputs)) {
      const node = nodeOf(key)
      if (!node || !left.has(node) || !isAsIn(prompt[2], key, anyNodeOf)) continue
      show(node, output)
      left.delete(node)
    }
  }
}

/**
 * Ends a run. Of a node whose result is in its cache the host sends nothing where the run failed, or where it is
 * older than 0.20. A box that has got no report goes.
 */
async function finish() {
  running = false
  try {
    await recall(cached.map(nodeOf).filter((node) => node != null))
  } finally {
    // The next run may have begun, and the boxes are about that.
    if (!running) removeAll("waiting")
  }
}

function listen() {
  const { api } = app
  /**
   * @param {string} name
   * @param {(node: string, text: string) => void} act
   */
  const hear = (name, act) =>
    api.addCustomEventListener(name, (/** @type {CustomEvent} */ { detail }) => act(String(detail.node), detail.text))
  hear("lycoris.meanwhile", (key, text) => {
    const node = nodeOf(key)
    if (node) fill(node, "waiting", text)
  })
  hear("lycoris.rescued", (key, text) => rescued.set(key, text))
  api.addEventListener("execution_start", () => {
    running = true
    rescued.clear()
    for (const node of ourNodes()) {
      if (![undefined, "refused"].includes(stateOf(node))) fill(node, "waiting", "...")
    }
  })
  api.addEventListener("execution_cached", ({ detail }) => (cached = detail.nodes.map(String)))
  api.addEventListener("execution_error", ({ detail }) => {
    const node = nodeOf(detail.node_id)
    const text = [detail.exception_message.trim(), rescued.get(String(detail.node_id))]
    if (node) fill(node, "error", text.filter(Boolean).join("\n"))
  })
  api.addEventListener("execution_interrupted", ({ detail }) => {
    const node = nodeOf(detail.node_id)
    const kept = rescued.get(String(detail.node_id))
    // Who presses Stop and has lost nothing has met no error.
    if (node) fill(node, kept ? "partly" : "error", kept ?? t("Interrupted: the node did not finish."))
  })
  api.addEventListener("execution_error", finish)
  api.addEventListener("execution_interrupted", finish)
  api.addEventListener("execution_success", finish)
}

app.registerExtension({
  name: "lycoris.report",

  setup() {
    listen()
    onPrompt({ ask: () => removeAll("refused"), refuse })
  },

  beforeRegisterNodeDef(nodeType, { name }) {
    if (!isOurs(name)) return
    after(nodeType, "onExecuted", show)
    // Without what the box has added, so that a report is no change of the workflow.
    after(nodeType, "onSerialize", (node, data) => {
      if (stateOf(node)) data.size = [data.size[0], bareHeight(node)]
    })
  },

  // The page is new, or another workflow is on it: what the host remembers of it comes back.
  afterConfigureGraph() {
    recall(ourNodes())
  },

  // Called when results come back together with a workflow: from another tab, or a run from the history.
  onNodeOutputsUpdated(/** @type {Record<string, any>} */ outputs) {
    for (const [key, output] of Object.entries(outputs ?? {})) {
      const node = nodeOf(key)
      if (node) show(node, output)
    }
  },
})
