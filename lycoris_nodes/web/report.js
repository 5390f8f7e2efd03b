// Shows the report of a node in a box on the node, below its other widgets.
//
// The box is there only while it has something to say. It takes no room that another node has, and is no part
// of the workflow: the node is saved in the size that it has without the box.

import { app } from "../../scripts/app.js"
import { isOurs } from "./ours.js"
import { canScroll, shareWheel } from "./wheel.js"

const REPORT = "report"
const HIGHEST = 200
const LOWEST = 48
const GAP = 12
// Milliseconds after which a node has been drawn in its new size.
const SETTLED = 400
// The height of a node's title, which is above its position.
const TITLE = 34

// How many of the runs that the host remembers are looked through.
const REMEMBERED = 32

// The types of nodes that can have a report, or an error in place of one.
const reporting = new Set()

// Whether a run goes on, and the nodes whose results it took from the cache.
let running = false
let cached = new Set()

// What nodes of this run have kept although they did not finish, in words.
const rescued = new Map()

const STYLE = `
.lycoris-report {
  box-sizing: border-box;
  height: 100%;
  overflow: auto;
  padding: 4px 6px;
  border-left: 4px solid var(--border-color, #666);
  background: var(--comfy-input-bg, #222);
  color: var(--input-text, #ddd);
  font-family: monospace;
  font-size: var(--comfy-textarea-font-size, 12px);
  user-select: text;
}
.lycoris-report pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; }
.lycoris-report .first { font-weight: bold; margin-bottom: 4px; }
.lycoris-report summary { cursor: pointer; margin-top: 4px; }
.lycoris-report[data-state="all"] { border-left-color: #3a9d5d; }
.lycoris-report[data-state="partly"] { border-left-color: #e0a030; }
.lycoris-report[data-state="nothing"] { border-left-color: #8888a0; }
.lycoris-report:is([data-state="error"], [data-state="refused"]) { border-left-color: #e05050; }
.lycoris-report[data-state="partly"] .first { color: #e0a030; }
.lycoris-report:is([data-state="error"], [data-state="refused"]) .first { color: #e05050; }
`

function text(className, content) {
  const element = document.createElement("pre")
  element.className = className
  // As text, never as markup: file names and metadata come from strangers.
  element.textContent = content
  return element
}

function makeBox(node) {
  const element = document.createElement("div")
  element.className = "lycoris-report"
  element.tabIndex = 0
  shareWheel(element)
  const before = node.size[1]
  const room = heightFor(node)
  // Vue makes a node as high as what is in it.
  if (LiteGraph.vueNodesMode) element.style.maxHeight = `${room}px`
  // ComfyUI's front end does not know this type of widget, so it shows the element itself, whether nodes
  // are drawn on the canvas or by Vue.
  const widget = node.addDOMWidget(REPORT, "lycoris_report", element, {
    // `options.serialize` keeps the text out of the prompt, `widget.serialize` out of the saved workflow.
    serialize: false,
    getMinHeight: () => room,
    getMaxHeight: () => HIGHEST * 4,
    getValue: () => element.innerText,
    setValue: () => {},
  })
  widget.serialize = false
  widget.lycoris = { element, before, after: null }
  const [, height] = node.computeSize()
  if (height > node.size[1]) node.setSize([node.size[0], height])
  return widget
}

/** Notes how high the node is with its box, once it has been drawn. What changes later is the user's doing. */
function settle(widget, node) {
  widget.lycoris.after = null
  setTimeout(() => {
    widget.lycoris.after = node.size[1]
  }, SETTLED)
}

/** How high a node is without its box. */
function heightWithout(node, { before, after }) {
  return after === null ? before : before + (node.size[1] - after)
}

/** How high the box can be: down to the next node below, but never less than its first line needs. */
function heightFor(node) {
  const [x, y] = node.pos
  const [width] = node.size
  const needed = LiteGraph.vueNodesMode ? node.size[1] : node.computeSize()[1]
  const bottom = y + Math.max(node.size[1], needed)
  const below = (node.graph?.nodes ?? [])
    .filter((other) => other !== node && other.pos[0] < x + width && other.pos[0] + other.size[0] > x)
    .map((other) => other.pos[1] - TITLE)
    .filter((top) => top >= bottom - 1)
  const free = Math.min(...below, Infinity) - bottom - GAP
  // What the node has below its widgets is free too.
  const spare = Math.max(0, node.size[1] - needed)
  return Math.round(Math.max(LOWEST, Math.min(HIGHEST, free + spare)))
}

function boxOf(node) {
  return node.widgets?.find((widget) => widget.name === REPORT && widget.lycoris)
}

/** `waiting`, `refused`, `error`, or the state of the report; undefined without a box. */
const stateOf = (node) => boxOf(node)?.element.dataset.state

function fill(node, state, brief, whole) {
  const widget = boxOf(node) ?? makeBox(node)
  const { element } = widget.lycoris
  element.dataset.state = state
  // Where Vue draws nodes, its word for what keeps the wheel to itself.
  const captures = () => {
    element.dataset.captureWheel = String(canScroll(element))
  }
  const cut = brief.indexOf("\n")
  const [first, rest] = cut < 0 ? [brief, ""] : [brief.slice(0, cut), brief.slice(cut + 1).replace(/^\n/, "")]
  const parts = [text("first", first), text("rest", rest)]
  if (whole) {
    const details = document.createElement("details")
    const summary = document.createElement("summary")
    summary.textContent = "everything that was left out"
    details.append(summary, text("whole", whole))
    details.addEventListener("toggle", captures)
    parts.push(details)
  }
  element.replaceChildren(...parts)
  element.scrollTop = 0
  setTimeout(captures, SETTLED)
  settle(widget, node)
  app.canvas?.setDirty(true, true)
}

function remove(node) {
  const widget = boxOf(node)
  if (!widget) return
  const height = heightWithout(node, widget.lycoris)
  if (node.removeWidget) node.removeWidget(widget)
  else {
    widget.onRemove?.()
    node.widgets.splice(node.widgets.indexOf(widget), 1)
  }
  node.setSize([node.size[0], height])
  app.canvas?.setDirty(true, true)
}

function show(node, output) {
  if (!output?.text) return
  const [{ state, whole } = {}] = output.lycoris ?? []
  fill(node, state ?? "all", output.text.join("\n"), whole?.[0])
}

/** The node that a key of the outputs names: `5`, or `3:5` for node 5 in the subgraph of node 3. */
function nodeOf(key) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const id of String(key).split(":")) {
    // An older front end names the subgraph and not its node.
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id))
    graph = node?.subgraph ?? app.rootGraph?.subgraphs?.get(id)
  }
  return node
}

function* reportingNodes(graph = app.rootGraph ?? app.graph) {
  for (const node of graph?.nodes ?? []) {
    if (reporting.has(node.type)) yield node
    if (node.subgraph) yield* reportingNodes(node.subgraph)
  }
}

function removeAll(...states) {
  for (const node of reportingNodes()) if (states.includes(stateOf(node))) remove(node)
}

/** Why the host refused a node, in words. Its own checks name the input, and ours are repeated for each input. */
function reason({ type, message, details }) {
  const ours = type === "custom_validation_failed" && details?.split(" - ").slice(1).join(" - ")
  return ours || [message, details].filter(Boolean).join(": ")
}

/** Shows why nodes were refused. The front end itself says only that an input is invalid. */
function refuse(errors) {
  for (const [key, { errors: reasons }] of errors) {
    const node = nodeOf(key)
    if (!reporting.has(node?.type)) continue
    const words = [...new Set(reasons.map(reason))].join("\n")
    fill(node, "refused", `The run was refused: ${words}`)
    app.extensionManager.toast?.add({ severity: "error", summary: node.title, detail: words, life: 10_000 })
  }
  // The reports of the last run would look like those of this one.
  if (!running) for (const node of reportingNodes()) if (stateOf(node) !== "refused") remove(node)
}

/** Listens to the host's answers to prompts, for which there is no event. */
function listenToAnswers() {
  const { queuePrompt } = app.api
  app.api.queuePrompt = async function (...options) {
    removeAll("refused")
    let answer
    try {
      answer = await queuePrompt.apply(this, options)
      return answer
    } catch (error) {
      answer = error.response
      throw error
    } finally {
      const errors = Object.entries(answer?.node_errors ?? {})
      if (errors.length) refuse(errors)
    }
  }
}

/** Whether a node and all before it have the values and links that they had in a prompt. */
function isAsIn(prompt, key, done = new Set()) {
  if (done.has(key)) return true
  done.add(key)
  const { class_type, inputs } = prompt[key]
  const node = nodeOf(key)
  if (!node || (node.comfyClass ?? node.type) !== class_type) return false
  const links = new Map(
    (node.inputs ?? []).flatMap(({ name, link }, slot) => (link == null ? [] : [[name, node.getInputNode(slot)]])),
  )
  if ([...links.keys()].some((name) => !Array.isArray(inputs[name]))) return false
  return Object.entries(inputs).every(([name, value]) =>
    Array.isArray(value) && prompt[value[0]]
      ? links.get(name) === nodeOf(value[0]) && isAsIn(prompt, value[0], done)
      : JSON.stringify(node.widgets?.find((widget) => widget.name === name)?.value) === JSON.stringify(value),
  )
}

/** Shows reports of earlier runs of this workflow on nodes without one, where nothing before them has changed. */
async function recall(nodes) {
  const left = new Set(
    nodes.filter(
      (node) => node.outputs?.some(({ name }) => name === REPORT) && [undefined, "waiting"].includes(stateOf(node)),
    ),
  )
  if (!left.size) return
  const runs = await (await app.api.fetchApi(`/history?max_items=${REMEMBERED}`)).json()
  if (running) return
  const { id } = app.rootGraph ?? app.graph
  for (const { prompt, outputs } of Object.values(runs).reverse()) {
    if (prompt[3]?.extra_pnginfo?.workflow?.id !== id) continue
    for (const [key, output] of Object.entries(outputs)) {
      const node = nodeOf(key)
      if (!left.has(node) || !isAsIn(prompt[2], key)) continue
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
  await recall([...cached].map(nodeOf).filter((node) => reporting.has(node?.type)))
  // The next run may have begun, and the boxes are about that.
  if (!running) removeAll("waiting")
}

function listen() {
  app.api.addEventListener("lycoris.meanwhile", ({ detail }) => {
    const node = nodeOf(detail.node)
    if (reporting.has(node?.type)) fill(node, "waiting", detail.text)
  })
  app.api.addEventListener("lycoris.rescued", ({ detail }) => rescued.set(String(detail.node), detail.text))
  app.api.addEventListener("execution_start", () => {
    running = true
    rescued.clear()
    for (const node of reportingNodes()) {
      if (![undefined, "refused"].includes(stateOf(node))) fill(node, "waiting", "...")
    }
  })
  app.api.addEventListener("execution_cached", ({ detail }) => (cached = new Set(detail.nodes)))
  app.api.addEventListener("execution_error", ({ detail }) => {
    const node = nodeOf(detail.node_id)
    if (!reporting.has(node?.type)) return
    const text = [detail.exception_message.trim(), rescued.get(String(detail.node_id))]
    fill(node, "error", text.filter(Boolean).join("\n"))
  })
  app.api.addEventListener("execution_interrupted", ({ detail }) => {
    const node = nodeOf(detail.node_id)
    if (!reporting.has(node?.type)) return
    const kept = rescued.get(String(detail.node_id))
    // Who presses Stop and has lost nothing has met no error.
    fill(node, kept ? "partly" : "error", kept ?? "Interrupted: the node did not finish.")
  })
  for (const end of ["execution_error", "execution_interrupted", "execution_success"]) {
    app.api.addEventListener(end, finish)
  }
}

app.registerExtension({
  name: "lycoris.report",

  setup() {
    const style = document.createElement("style")
    style.textContent = STYLE
    document.head.append(style)
    listen()
    listenToAnswers()
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!isOurs(nodeData.name)) return
    reporting.add(nodeData.name)
    const { onExecuted, onSerialize } = nodeType.prototype
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.call(this, output)
      show(this, output)
    }
    nodeType.prototype.onSerialize = function (data) {
      onSerialize?.call(this, data)
      const box = boxOf(this)?.lycoris
      // Without what the box has added, so that a report is no change of the workflow.
      if (box) data.size = [data.size[0], heightWithout(this, box)]
    }
  },

  // The page is new, or another workflow is on it: what the host remembers of it comes back.
  afterConfigureGraph() {
    recall([...reportingNodes()])
  },

  // Called when results come back together with a workflow: from another tab, or a run from the history.
  onNodeOutputsUpdated(outputs) {
    for (const [key, output] of Object.entries(outputs ?? {})) {
      const node = nodeOf(key)
      if (reporting.has(node?.type)) show(node, output)
    }
  },
})
