// What training nodes show beside their reports: how far they are, what was stopped, and the usual values for the
// linked model.

import { app } from "../../scripts/app.js"
import { post } from "./ask.js"
import { onPrompt, queuedPrompts } from "./host.js"
import { t } from "./language.js"
import { anyNodeOf, nodeOf, ourKeyedNodes, widgetOf } from "./nodes.js"
import { isHere, onOutput } from "./report.js"
import { fill, remove, stateOf } from "./report/box.js"
import { loadedBy, sourceOf } from "./rows/graph.js"
import { removeTraining, showTraining, stageOf } from "./training/panel.js"
import { askForSettings } from "./training/paste.js"
import { inWords, withUsual } from "./training/words.js"

const TRAINING = ["LycorisTrain", "LycorisSlider"]
const WITH_USUAL = [...TRAINING, "LycorisDataset"]
// Milliseconds without a change after which the server is asked.
const PAUSE = 300

const isTrain = (/** @type {GraphNode} */ node) => TRAINING.includes(node.comfyClass ?? "")
/** The name of an input without the name of its group. */
const ownName = (/** @type {string} */ name) => name.slice(name.lastIndexOf(".") + 1)

/**
 * The last question about a node, and its answer: the values of `auto`, and the settings in which a stopped training
 * differs.
 *
 * @type {WeakMap<GraphNode, {asked: string, usual: Record<string, string>, others: Record<string, any>}>}
 */
const known = new WeakMap()
/** The workflow's id of each prompt of this page that has not begun. @type {Map<string, string | undefined>} */
const queued = new Map()
/** How many prompts the server has, of this page and of others. */
let remaining = 0
/** The prompt of this page that runs. @type {string | null} */
let running = null

/** @typedef {{key: string, node: GraphNode, way: GraphNode[]}} Place `way` has the subgraph nodes around it */

/**
 * @param {string} key
 * @returns {Place}
 */
function placeOf(key) {
  const ids = key.split(":")
  /** @type {any[]} */
  const nodes = ids.map((_, at) => anyNodeOf(ids.slice(0, at + 1).join(":")))
  return { key, node: nodes.at(-1), way: nodes.slice(0, -1) }
}

/** The training nodes of the workflow. */
function* placed() {
  for (const [key, node] of ourKeyedNodes()) if (WITH_USUAL.includes(node.comfyClass ?? "")) yield placeOf(key)
}

/** @param {GraphNode} node */
function valuesOf(node) {
  const widgets = /** @type {Widget[]} */ (node.widgets ?? []).filter((widget) => widget.serialize !== false)
  return Object.fromEntries(widgets.map((widget) => [widget.name, widget.serializeValue?.() ?? widget.value]))
}

/**
 * @param {Place} place
 * @param {boolean} anew
 */
async function ask(place, anew = false, force = anew) {
  const { key, node } = place
  const linked = (node.inputs ?? []).filter((_, slot) => node.isInputConnected(slot)).map(({ name }) => ownName(name))
  /** @type {import("./routes.js").TrainingQuestion} */
  const question = { node: key, type: node.comfyClass, page: app.api.clientId ?? "", model: loadedBy(/** @type {any} */ (place), "MODEL"), clip: [], linked, anew }
  if (isTrain(node)) question.values = valuesOf(node)
  const body = JSON.stringify(question)
  const before = known.get(node)
  // The value of a widget may have changed.
  showUsual(node, before?.usual ?? {})
  if (before?.asked === body && !force) return
  const now = { asked: body, usual: before?.usual ?? {}, others: {} }
  known.set(node, now)
  const told = await post("/lycoris/training", question)
  if (known.get(node) !== now || told.error) return
  now.usual = told.usual
  showUsual(node, now.usual)
  now.others = told.stopped?.others ?? {}
  if (!isTrain(node)) return
  const { running: live, stopped } = told
  if (live && isHere()) showMeanwhile(node, live, actsOf(place))
  else if (stopped && !running) {
    const resume = widgetOf(node, "resume")?.value === true
    showTraining(node, { stage: "stopped", done: stopped.step, of: stopped.steps, ...stopped, resume }, actsOf(place))
  }
  else if (!running && stageOf(node) !== "done") removeTraining(node)
}

/** The name of each widget, and what is shown in its place. @type {WeakMap<Widget, {name: string, shown: string}>} */
const labels = new WeakMap()

/**
 * Say behind the name of each input that is `auto` what is usual: "rank (16)".
 *
 * @param {GraphNode} node
 * @param {Record<string, string>} usual
 */
function showUsual(node, usual) {
  for (const widget of /** @type {Widget[]} */ (node.widgets ?? [])) {
    const value = usual[ownName(widget.name)]
    const last = labels.get(widget)
    if (!value && !last) continue
    const present = widget.label ?? widget.name
    const name = last?.shown === present ? last.name : present
    const shown = withUsual(name, widget.value, value)
    labels.set(widget, { name, shown })
    if (shown !== present) widget.label = shown
  }
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let waiting
let forced = false
/** Ask about all nodes once changes pause; with `force`, even if the question is the same. */
export function askSoon(force = false) {
  forced ||= force
  clearTimeout(waiting)
  waiting = setTimeout(() => {
    for (const place of placed()) ask(place, false, forced)
    forced = false
  }, PAUSE)
}

/**
 * @param {Place} place
 * @returns {import("./training/panel.js").Acts}
 */
function actsOf(place) {
  const run = () => app.queuePrompt(0, 1)
  return {
    goOn: run,
    async beginAnew() {
      // With it, Run would go on.
      setValues(place.node, { resume: false })
      await ask(place, true)
      await run()
    },
    async takeOver() {
      setValues(place.node, known.get(place.node)?.others ?? {})
      await run()
    },
  }
}

/**
 * Give a node other values, by the names of its inputs in a prompt.
 *
 * @param {GraphNode} node
 * @param {Record<string, any>} values
 */
function setValues(node, values) {
  for (const [name, value] of Object.entries(values)) {
    const [group] = name.split(".")
    const holder = name.includes(".") ? widgetOf(node, group) : undefined
    if (holder && holder.value !== "own") holder.value = "own"
    const widget = widgetOf(node, name)
    if (!widget) continue
    const isText = typeof value === "number" && typeof widget.value === "string"
    // The server has 0 for `auto`.
    widget.value = isText ? String(value || "auto") : value
    widget.callback?.(widget.value)
  }
}

/**
 * Show how far a training is, in place of the report of the last run.
 *
 * @type {typeof showTraining}
 */
function showMeanwhile(node, shown, acts) {
  if (stateOf(node) === "waiting") remove(node)
  showTraining(node, shown, acts)
}

/** Say on each training node of the workflow that it waits. */
function wait(/** @type {import("./training/words.js").Shown} */ shown) {
  for (const place of placed()) {
    const { node } = place
    if (isTrain(node) && node.mode === 0) showMeanwhile(node, shown, actsOf(place))
  }
}

/** Say that this workflow waits, while it does. */
async function showQueue() {
  const here = () => [...queued.values()].includes(app.rootGraph.id)
  if (queued.size) {
    const present = await queuedPrompts()
    const waited = here()
    for (const prompt of queued.keys()) if (!present.has(prompt)) queued.delete(prompt)
    if (waited && !here() && !running) removeWaiting()
  }
  if (here() && !running && remaining > 1) wait({ stage: "waiting", done: remaining - 1 })
}

function removeWaiting() {
  for (const { node } of placed()) if (["next", "waiting"].includes(stageOf(node) ?? "")) removeTraining(node)
}

function end() {
  running = null
  removeWaiting()
  askSoon(true)
}

export function listenToTrainings() {
  const { api } = app
  api.addCustomEventListener("lycoris.training", (/** @type {CustomEvent} */ { detail }) => {
    const place = placeOf(String(detail.node))
    if (isHere() && place.node && isTrain(place.node)) showMeanwhile(place.node, detail.shown, actsOf(place))
  })
  api.addCustomEventListener("lycoris.stage", (/** @type {CustomEvent} */ { detail }) => {
    const node = nodeOf(String(detail.node))
    if (isHere() && node) fill(node, "waiting", inWords(detail))
  })
  api.addEventListener("status", ({ detail }) => {
    remaining = detail?.exec_info?.queue_remaining ?? 0
    void showQueue()
  })
  api.addEventListener("execution_start", ({ detail }) => {
    running = detail.prompt_id
    queued.delete(running)
    if (isHere(detail.prompt_id)) wait({ stage: "next" })
  })
  for (const event of /** @type {const} */ (["execution_success", "execution_error", "execution_interrupted"])) {
    api.addEventListener(event, end)
  }
  // The page was not told of a run that ended meanwhile.
  api.addEventListener("reconnected", async () => {
    if (running && !(await queuedPrompts()).has(running)) end()
  })
  onOutput((node, output) => {
    const [shown] = output.training ?? []
    const place = shown && [...placed()].find((one) => one.node === node)
    if (place) showTraining(node, { stage: "done", ...shown, of: 0, resumed: 0 }, actsOf(place))
  })
  api.addEventListener("graphChanged", () => askSoon())
  onPrompt({
    sent(prompt, workflow) {
      // The prompt may have begun before the server answered.
      if (prompt === running) return
      queued.set(prompt, workflow)
      void showQueue()
    },
  })
}

/** @param {GraphNode} node */
export function pasteItem(node) {
  if (!isTrain(node)) return []
  const callback = () => askForSettings((text) => post("/lycoris/config", { text }), (values, pictures) => {
    setValues(node, values)
    const place = [...placed()].find((one) => one.node === node)
    const slot = (node.inputs ?? []).findIndex(({ name }) => ownName(name) === "latents")
    /** @type {GraphNode | undefined} */
    const data = place && slot >= 0 ? /** @type {any} */ (sourceOf(/** @type {any} */ (place), slot)?.node) : undefined
    if (data?.comfyClass === "LycorisDataset") setValues(data, pictures)
  })
  return [{ content: t("Paste settings of another trainer…"), callback }]
}
