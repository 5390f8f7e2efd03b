// What a node shows of its training: what it is doing, a bar, the curve of the loss, and the pictures sampled so far.
//
// This stands above the box with the report. Neither is saved in the workflow.

import { app } from "../../../scripts/app.js"
import { make } from "../elements.js"
import { grow, hold, release } from "../height.js"
import { t } from "../language.js"
import { showElement } from "../nodes.js"
import { fill, remove, shownOn } from "../report/box.js"
import { curve } from "./curve.js"
import { inWords } from "./words.js"

/** @typedef {import("./words.js").Shown} Shown */
/**
 * `height` is that of the element, and `large` the step of the picture that is shown large.
 *
 * @typedef {{
 *   widget: DomWidget, element: HTMLElement, inner: HTMLElement, height: number, shown: Shown, large: number | null,
 *   acts: Acts,
 * }} Panel
 * @typedef {{goOn: () => void, beginAnew: () => void, takeOver: () => void}} Acts
 */

// The front end's own margin around elements on the canvas.
const MARGIN = 10

/** @type {WeakMap<GraphNode, Panel>} */
const panels = new WeakMap()

/** @param {GraphNode} node */
export const stageOf = (node) => panels.get(node)?.shown.stage

/**
 * @param {GraphNode} node
 * @param {Acts} acts
 * @returns {Panel}
 */
function addPanel(node, acts) {
  const inner = make("div", { class: "inner" })
  const element = make("div", { class: "lycoris-training" }, inner)
  /** @type {Panel} */
  const panel = { widget: /** @type {any} */ (null), element, inner, height: 0, shown: {}, large: null, acts }
  hold(node, panel)
  const size = () => panel.height + 2 * MARGIN
  // Above the report, which is shown anew.
  const report = shownOn(node)
  if (report) remove(node)
  panel.widget = showElement(node, "training", element, { margin: MARGIN, getMinHeight: size, getMaxHeight: size })
  panels.set(node, panel)
  if (report) fill(node, ...report)
  new ResizeObserver(() => fit(node, panel)).observe(inner)
  return panel
}

/**
 * @param {GraphNode} node
 * @param {Panel} panel
 */
function fit(node, panel) {
  const height = panel.inner.offsetHeight
  if (!height || height === panel.height || panels.get(node) !== panel) return
  panel.height = height
  grow(node)
}

/**
 * @param {GraphNode} node
 * @param {Shown} shown
 * @param {Acts} acts
 */
export function showTraining(node, shown, acts) {
  const panel = panels.get(node) ?? addPanel(node, acts)
  // Keep what a message leaves out: before the first step it has no curve.
  const same = shown.name && shown.name === panel.shown.name
  panel.shown = same ? { ...panel.shown, loss: undefined, ...shown } : shown
  panel.element.dataset.stage = shown.stage
  draw(node, panel)
  app.canvas.setDirty(true, true)
}

/**
 * @param {GraphNode} node
 * @param {Panel} panel
 */
function draw(node, panel) {
  const { shown } = panel
  const strip = panel.inner.querySelector(".strip")
  // Do not move the strip for a user who has scrolled back.
  const atEnd = !strip || strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 4
  const kept = strip?.scrollLeft ?? 0
  const words = inWords(shown)
  /** @type {HTMLElement[]} */
  const parts = []
  if (words) parts.push(make("div", { class: "words", role: "status", textContent: words, title: shown.name ?? "" }))
  if (shown.of && shown.stage !== "waiting") {
    const part = Math.min(1, (shown.done ?? 0) / shown.of)
    const filled = make("div")
    filled.style.width = `${100 * part}%`
    parts.push(make("div", { class: "bar" }, filled))
  }
  if (shown.stage === "stopped") parts.push(...offer(panel))
  const large = (shown.samples ?? []).find(([step]) => step === panel.large)
  const views = [
    large ? largePicture(node, panel, large) : shown.losses?.length || shown.validation?.length ? curve(shown) : null,
    shown.samples?.length ? pictures(node, panel) : null,
  ].filter((view) => view !== null)
  if (views.length) parts.push(make("div", { class: "views" }, ...views))
  panel.inner.replaceChildren(...parts)
  const made = panel.inner.querySelector(".strip")
  if (made) made.scrollLeft = atEnd ? made.scrollWidth : kept
}

/** @param {Panel} panel */
function offer({ shown, acts }) {
  const differences = shown.differences ?? []
  const button = (/** @type {string} */ name, /** @type {() => void} */ act, /** @type {string} */ title) =>
    make("button", { type: "button", textContent: name, title, onclick: act })
  const name = shown.name ?? ""
  const buttons = [
    differences.length && !shown.resume
      ? button(t("Take its settings and continue"), acts.takeOver, t("Sets the inputs to those of {name}, and runs", { name }))
      : button(t("Continue"), acts.goOn, t("Runs, from where {name} was stopped", { name })),
    button(t("Start over"), acts.beginAnew, t("Runs from the first step, in new files. {name} stays as it is", { name })),
  ]
  const line = make("div", { class: "buttons" }, ...buttons)
  if (!differences.length) return [line]
  const all = { differences: differences.join("; ") }
  const told = shown.resume ? t("Goes on with changed settings: {differences}", all) : t("Run begins another training, because settings differ: {differences}", all)
  return [make("div", { class: "differences", textContent: told }), line]
}

/**
 * @param {Shown} shown
 * @param {[step: number, time: number]} sample
 * @param {string} preview
 */
function address({ folder = "" }, [step, time], preview = "") {
  const filename = `sample-${String(step).padStart(6, "0")}.png`
  const query = new URLSearchParams({ filename, subfolder: folder, type: "output", t: String(time) })
  if (preview) query.set("preview", preview)
  return app.api.apiURL(`/view?${query}`)
}

/**
 * @param {GraphNode} node
 * @param {Panel} panel
 * @param {[step: number, time: number]} sample
 */
function largePicture(node, panel, sample) {
  const alt = t("step {step}", { step: sample[0] })
  const back = () => {
    panel.large = null
    draw(node, panel)
  }
  return make("button", { class: "large", type: "button", title: t("Back to the curve"), onclick: back },
    make("img", { src: address(panel.shown, sample), alt }))
}

/**
 * @param {GraphNode} node
 * @param {Panel} panel
 */
function pictures(node, panel) {
  const items = (panel.shown.samples ?? []).map((sample) => {
    const [step] = sample
    const words = t("step {step}", { step })
    const enlarge = () => {
      panel.large = panel.large === step ? null : step
      draw(node, panel)
    }
    const image = make("img", { src: address(panel.shown, sample, "webp;80"), alt: words, draggable: false })
    const item = make("button", { type: "button", title: words, onclick: enlarge }, image, make("span", { textContent: words }))
    item.classList.toggle("chosen", panel.large === step)
    return item
  })
  const strip = make("div", { class: "strip" }, ...items)
  strip.addEventListener("wheel", (event) => {
    if (event.ctrlKey || strip.scrollWidth <= strip.clientWidth) return
    event.preventDefault()
    event.stopPropagation()
    strip.scrollLeft += event.deltaY + event.deltaX
  })
  return strip
}

/** @param {GraphNode} node */
export function removeTraining(node) {
  const panel = panels.get(node)
  if (!panel) return
  panels.delete(node)
  node.removeWidget(panel.widget)
  release(node, panel)
}
