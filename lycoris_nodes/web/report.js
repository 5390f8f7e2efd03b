// Shows the report of a node in a box on the node, while there is something to say.

import { app } from "../../scripts/app.js"
import { onPrompt } from "./frontend.js"
import { t, told } from "./language.js"
import { after, anyNodeOf, isOurs, nodeOf, ourKeyedNodes, ourNodes } from "./nodes.js"
import { queuedPrompts } from "./queue.js"
import { fill, remove, stateOf } from "./report/box.js"
import { isAsIn, refusal, together } from "./report/words.js"
import { showReasons } from "./rows/reasons.js"

// The workflows, by their ids, of the prompts that this page has sent and that have not ended.
/** @type {Map<string, string | undefined>} */
const workflows = new Map()

// The prompt that runs, and the keys of its nodes that have results so far.
/** @type {string | null} */
let running = null
/** @type {Set<string>} */
const done = new Set()

// What nodes of this run have kept although they did not finish, in words.
/** @type {Map<string, string>} */
const rescued = new Map()

/**
 * Whether a prompt, or else the one that runs, is of the workflow that is on the page: in another tab the same key is
 * another node's. One that was sent before the page was loaded anew may be.
 */
export const isHere = (prompt = running) => !workflows.has(prompt ?? "") || workflows.get(prompt ?? "") === app.rootGraph.id

/** @type {((node: GraphNode, output: any) => void)[]} */
const listeners = []

/**
 * Call `listener` with each node whose report is shown, and with all that it put out: after a run, and when the page
 * is opened anew.
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
    if (showReasons(node, words)) remove(node)
    else fill(node, "refused", t("The run was refused: {words}", { words: told(words) }))
  }
  // The reports of the last run would look like those of this one.
  if (!running) for (const node of ourNodes()) if (stateOf(node) !== "refused") remove(node)
}

/**
 * Shows the reports that the server keeps on nodes without one, where nothing before them has changed since.
 *
 * @param {Iterable<[key: string, node: GraphNode]>} nodes
 */
async function recall(nodes) {
  const left = new Map([...nodes].filter(([, node]) => [undefined, "waiting"].includes(stateOf(node))))
  if (!left.size) return
  const graph = app.rootGraph
  const answer = await app.api.fetchApi(`/lycoris/reports?nodes=${[...left.keys()].join(",")}`)
  for (const { node: key, prompt, output } of await answer.json()) {
    const node = left.get(key)
    if (graph !== app.rootGraph || !node || !isAsIn(prompt, key, anyNodeOf)) continue
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
 * Ends a run. Of a node whose result is in its cache the host sends nothing where the run failed, or where it is
 * older than 0.20. A box that has got no report goes.
 */
async function finish() {
  const here = isHere()
  workflows.delete(running ?? "")
  running = null
  if (!here) return
  try {
    await recall(nodesOf(done))
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
    api.addCustomEventListener(name, (/** @type {CustomEvent} */ { detail }) => {
      if (isHere()) act(String(detail.node), detail.text)
    })
  /** @param {any} detail */
  const nodeIn = (detail) => (isHere(detail.prompt_id) ? nodeOf(detail.display_node ?? detail.node ?? detail.node_id) : null)
  hear("lycoris.meanwhile", (key, text) => {
    const node = nodeOf(key)
    if (node) fill(node, "waiting", text)
  })
  hear("lycoris.rescued", (key, text) => rescued.set(key, text))
  api.addEventListener("execution_start", ({ detail }) => {
    running = detail.prompt_id
    done.clear()
    rescued.clear()
    if (!isHere()) return
    for (const node of ourNodes()) {
      showReasons(node, "")
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
    if (node && showReasons(node, text)) remove(node)
    else if (node) fill(node, "error", text)
  })
  api.addEventListener("execution_interrupted", ({ detail }) => {
    const node = nodeIn(detail)
    const kept = rescued.get(String(detail.node_id))
    // Who presses Stop and has lost nothing has met no error.
    if (node) fill(node, kept ? "partly" : "error", kept ?? t("Interrupted: the node did not finish."))
  })
  api.addEventListener("execution_error", finish)
  api.addEventListener("execution_interrupted", finish)
  api.addEventListener("execution_success", finish)
  // What ended meanwhile was told to nobody.
  api.addEventListener("reconnected", async () => {
    const lost = running
    if (lost && (await queuedPrompts()).has(lost)) return
    if (lost && lost === running) await finish()
    await recall(ourKeyedNodes())
  })
}

app.registerExtension({
  name: "lycoris.report",

  setup() {
    listen()
    onPrompt({
      ask: () => removeAll("refused"),
      sent: (prompt, workflow) => workflows.set(prompt, workflow),
      refuse,
    })
  },

  // The page is new, or another workflow is on it: what was said of it comes back. While it runs, of what has run.
  afterConfigureGraph() {
    recall(running && isHere() ? nodesOf(done) : ourKeyedNodes())
  },
})
