// Shows the report of a node in a box on the node, while there is something to say.

import { app } from "../../scripts/app.js"
import { get } from "./ask.js"
import { isRestoring, onPrompt, queuedPrompts } from "./host.js"
import { t } from "./language.js"
import { anyNodeOf, nodeOf, ourKeyedNodes, ourNodes } from "./nodes.js"
import { fill, remove, shownOn, stateOf } from "./report/box.js"
import { isAsIn, refusal, together } from "./report/words.js"
import { clearReasons, showReasons } from "./rows/reasons.js"

// The workflow's id of each prompt that this page has sent and that has not ended.
/** @type {Map<string, string | undefined>} */
const workflows = new Map()

// The prompt that runs, and the keys of its nodes that have results so far.
/** @type {string | null} */
let running = null
/** @type {Set<string>} */
const done = new Set()

// How many runs the page has asked for.
let queued = 0

// What unfinished nodes of this run have saved, in words.
/** @type {Map<string, string>} */
const rescued = new Map()

/**
 * Whether a prompt, by default the running one, belongs to the workflow on the page: in another tab the same key is
 * another node's. A prompt from before a reload of the page is taken to belong to it.
 */
export const isHere = (prompt = running) => !workflows.has(prompt ?? "") || workflows.get(prompt ?? "") === app.rootGraph.id

/** What Undo would take from the page: it makes all nodes anew. @type {[key: string, shown: import("./report/box.js").Shown][]} */
let kept = []

/** @type {((node: GraphNode, output: any) => void)[]} */
const listeners = []

/**
 * Call `listener` with each node whose report is shown and with the node's whole output, after a run and after a reload
 * of the page.
 *
 * @param {(node: GraphNode, output: any) => void} listener
 */
export const onOutput = (listener) => listeners.push(listener)

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
  for (const listener of listeners) listener(node, output)
  const [{ state, whole, drawing, note } = /** @type {any} */ ({})] = output.lycoris ?? []
  const report = [...(note ? [note] : []), output.text.join("\n")].join("\n\n")
  fill(node, note ? "partly" : (state ?? "all"), report, whole?.[0], drawing)
}

/**
 * Show an error on the rows of a node, or in a box if no row is the reason.
 *
 * @param {GraphNode} node
 * @param {string} state
 * @param {string} text
 */
async function blame(node, state, text) {
  const run = queued
  const shown = await showReasons(node)
  // The answer may come after the next run has begun.
  if (run !== queued) return
  if (shown) remove(node)
  else fill(node, state, text)
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
    void blame(node, "refused", t("The run was refused: {words}", { words: refusal(reasons) }))
  }
  // The reports of the last run would look like those of this one.
  if (!running) for (const node of ourNodes()) if (stateOf(node) !== "refused") remove(node)
}

/**
 * Shows the server's last reports on nodes without one, if nothing upstream of them has changed since.
 *
 * @param {Iterable<[key: string, node: GraphNode]>} nodes
 */
async function recall(nodes) {
  const left = new Map([...nodes].filter(([, node]) => [undefined, "waiting"].includes(stateOf(node))))
  if (!left.size) return
  const graph = app.rootGraph
  for (const { node: key, prompt, output } of await get("/lycoris/reports", { nodes: [...left.keys()].join(",") })) {
    const node = left.get(key)
    if (graph !== app.rootGraph || !node || !isAsIn(/** @type {any} */ (prompt), key, anyNodeOf)) continue
    if ([undefined, "waiting"].includes(stateOf(node))) show(node, output)
    left.delete(key)
  }
}

/** @param {Iterable<string>} keys */
function* nodesOf(keys) {
  for (const key of keys) {
    const node = nodeOf(key)
    if (node) yield /** @type {[string, GraphNode]} */ ([key, node])
  }
}

/**
 * Ends a run. For cached nodes the host sends nothing if the run failed or the host is older than 0.20, so their
 * reports are recalled. A box without a report is removed.
 */
async function finish() {
  const here = isHere()
  workflows.delete(running ?? "")
  running = null
  if (!here) return
  try {
    await recall(nodesOf(done))
  } finally {
    // If the next run has begun, the boxes wait for that one.
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
    api.addCustomEventListener(name, (/** @type {CustomEvent} */ { detail }) => {
      if (isHere()) act(String(detail.node), detail.text)
    })
  /** @param {any} detail */
  const nodeIn = (detail) => (isHere(detail.prompt_id) ? nodeOf(detail.display_node ?? detail.node ?? detail.node_id) : null)
  hear("lycoris.meanwhile", (key, text) => {
    const node = nodeOf(key)
    if (node) fill(node, "waiting", text)
  })
  // What a later node adds to the report of a node that has run.
  api.addCustomEventListener("lycoris.noted", (/** @type {CustomEvent} */ { detail }) => {
    const node = nodeIn(detail)
    if (node) show(node, detail.output)
  })
  hear("lycoris.rescued", (key, text) => rescued.set(key, text))
  api.addEventListener("execution_start", ({ detail }) => {
    running = detail.prompt_id
    done.clear()
    rescued.clear()
    if (!isHere()) return
    for (const node of ourNodes()) {
      clearReasons(node)
      if (![undefined, "refused"].includes(stateOf(node))) fill(node, "waiting", "...")
    }
  })
  api.addEventListener("execution_cached", ({ detail }) => {
    detail.nodes.forEach((key) => done.add(String(key)))
    // The rest of the run may take hours.
    if (isHere()) recall(nodesOf(done))
  })
  api.addEventListener("executed", ({ detail }) => {
    done.add(String(detail.node))
    const node = nodeIn(detail)
    if (node) show(node, detail.output)
  })
  api.addEventListener("execution_error", ({ detail }) => {
    const node = nodeIn(detail)
    const text = together([detail.exception_message.trim(), rescued.get(String(detail.node_id)) ?? ""])
    if (node) void blame(node, "error", text)
  })
  api.addEventListener("execution_interrupted", ({ detail }) => {
    const node = nodeIn(detail)
    const kept = rescued.get(String(detail.node_id))
    // A stop that lost nothing is no error.
    if (node) fill(node, kept ? "partly" : "error", kept ?? t("Interrupted: the node did not finish."))
  })
  api.addEventListener("execution_error", finish)
  api.addEventListener("execution_interrupted", finish)
  api.addEventListener("execution_success", finish)
  // A run may have ended while the page was disconnected.
  api.addEventListener("reconnected", async () => {
    const lost = running
    if (lost && (await queuedPrompts()).has(lost)) return
    if (lost && lost === running) await finish()
    await recall(ourKeyedNodes())
  })
}

export function listenToReports() {
  listen()
  onPrompt({
    ask() {
      queued += 1
      removeAll("refused")
    },
    sent: (prompt, workflow) => workflows.set(prompt, workflow),
    refuse,
  })
}

/** Keep the reports that Undo is about to take from the page. */
export function keepReports() {
  kept = []
  if (!isRestoring()) return
  for (const [key, node] of ourKeyedNodes()) {
    const shown = shownOn(node)
    if (shown) kept.push([key, shown])
  }
}

/** After a reload, or on another workflow, the reports come back; during a run, only those of the nodes that are done. */
export function bringBackReports() {
  for (const [key, shown] of kept) {
    const node = nodeOf(key)
    if (node) fill(node, ...shown)
  }
  kept = []
  recall(running && isHere() ? nodesOf(done) : ourKeyedNodes())
}
