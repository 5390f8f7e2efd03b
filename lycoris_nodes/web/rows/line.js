// The line of one row.

import { badges, make, nameParts } from "../elements.js"
import { t } from "../language.js"
import { rulesButton } from "./blocksicon.js"
import { openInfo } from "./info.js"
import { apart, badgesOf, halves, nameInRow } from "./names.js"
import { heightOf } from "./reasons.js"
import { below } from "./popup.js"
import { previewOnHover } from "./preview.js"
import { aboutFile, fileNames } from "./server.js"
import { SIGNALS, clipStrength, filesOf, isOn, modelStrength, signalOf, withFiles } from "./state.js"
import { strengthField } from "./strength.js"

/** @typedef {import("./state.js").Row} Row */
/** @typedef {import("./popup.js").Point} Point */

/** The symbols of the fields for the picture and for the sound. */
const MARKS = { video: "▶", audio: "♪" }

/** @typedef {"strength_model" | "strength_clip" | import("./state.js").Signal} Changed what a field of a line changes */

/**
 * What a user does with a line.
 *
 * @typedef {{
 *   change: (index: number, row: Row) => void,
 *   join: (index: number, pair: import("../routes.js").PairOfFiles) => void,
 *   turn: (index: number, on: boolean) => void,
 *   replaceFile: (index: number) => void,
 *   editRules: (index: number) => void,
 *   menu: (index: number, point: Point) => void,
 *   model: () => Promise<import("./model.js").Model>,
 *   drag: (index: number, event: PointerEvent) => void,
 *   choose: (index: number | null, event: MouseEvent) => void,
 *   strength: (index: number, name: Changed) => import("./strength.js").Strength,
 * }} Acts
 */

/**
 * The files whose names are most similar to the name of a missing file of a row, without those that the row has; none
 * if the file is there.
 *
 * @param {string} file
 * @param {Row} row
 */
async function nearTo(file, row) {
  const { files, nearest } = await fileNames()
  return files.has(file) ? [] : nearest(file).filter((other) => !filesOf(row).includes(other))
}

/**
 * Drop the focus after a click of the mouse: the front end ignores keys, such as those of Undo, while an element of a
 * form has the focus.
 *
 * @param {MouseEvent} event
 */
export function leave({ detail, currentTarget }) {
  if (detail) /** @type {HTMLElement} */ (currentTarget).blur()
}

/**
 * @param {Acts} acts
 * @param {{min: number, max: number}} bounds the bounds of a strength
 */
export function createLine(acts, bounds) {
  let index = 0
  /** @type {Row} */
  let row = { file: "" }
  /** @type {string | null} */
  let shownFile = null
  // A new object for each description: an outdated one is not shown.
  let shown = {}
  const handle = make("span", { class: "lycoris-handle", textContent: "⠿" })
  handle.title = t("Drag to move, click to select. Several: Ctrl-click on rows, or Shift-click up to a row")
  const power = make("input", { type: "checkbox", class: "lycoris-switch", title: t("Switch on or off") })
  const name = make("button", { type: "button", class: "lycoris-file" })
  const marks = make("span", { class: "lycoris-marks" })
  const pair = make("span", { class: "lycoris-marks" })
  const twice = make("span", { class: "lycoris-badge lycoris-twice", hidden: true })
  const warning = make("span", { class: "lycoris-badge lycoris-bad", hidden: true })
  const rules = rulesButton(() => acts.editRules(index))
  const info = make("button", { type: "button", class: "lycoris-icon lycoris-about", textContent: "i" })
  info.title = t("About the file")
  /** @type {(label: string, name: Changed) => ReturnType<typeof strengthField>} */
  const field = (label, name) =>
    strengthField(label, bounds, {
      type: (value) => acts.strength(index, name).type(value),
      say: (words) => acts.strength(index, name).say(words),
      step: () => acts.strength(index, name).step(),
      preview: () => acts.strength(index, name).preview(),
      undo: (again) => acts.strength(index, name).undo(again),
    })
  const model = field(t("strength of the model"), "strength_model")
  const clip = field(t("strength of the text encoder"), "strength_clip")
  const labels = { video: t("factor for the picture"), audio: t("factor for the sound") }
  const signals = SIGNALS.map((signal) => ({ signal, ...field(labels[signal], signal) }))
  for (const { signal, element } of signals) {
    element.classList.add("lycoris-signal")
    element.dataset.signal = MARKS[signal]
  }
  const fields = [...signals.map(({ element }) => element), model.element, clip.element]
  const what = make("span", { class: "lycoris-what" }, name, pair, marks)
  const parts = [handle, power, what, twice, warning, rules.element, ...fields, info]
  const element = make("div", { class: "lycoris-row" }, ...parts)
  const why = make("span")
  const off = make("button", { type: "button", class: "lycoris-near", textContent: t("switch this row off") })
  const reason = make("div", { class: "lycoris-reason", hidden: true }, why, off)

  power.onclick = leave
  power.onchange = () => acts.turn(index, power.checked)
  name.onclick = () => acts.replaceFile(index)
  off.onclick = () => acts.change(index, { ...row, on: false })
  info.onclick = () => openInfo(row.file, below(info))
  handle.onpointerdown = (event) => acts.drag(index, event)
  element.oncontextmenu = (event) => {
    event.preventDefault()
    event.stopPropagation()
    acts.menu(index, { x: event.clientX, y: event.clientY })
  }
  // With Ctrl or Shift, a click anywhere on a row selects it. Without, a click beside its buttons and fields clears the
  // selection.
  element.addEventListener(
    "click",
    (event) => {
      const { target } = event
      if (!(target instanceof Element) || target.closest(".lycoris-strength, .lycoris-handle")) return
      if (!event.ctrlKey && !event.metaKey && !event.shiftKey) {
        if (!target.closest("button, input")) acts.choose(null, event)
        return
      }
      event.preventDefault()
      event.stopPropagation()
      acts.choose(index, event)
    },
    { capture: true },
  )
  previewOnHover(name, () => row.file)

  /** @param {string} file */
  async function describe(file) {
    const shows = (shown = {})
    const about = await aboutFile(file)
    const { low_noise: low } = row
    const second = low ? await aboutFile(low) : null
    const missing = second?.error
    const lost = about.error ? file : missing && low ? low : null
    const near = lost ? await nearTo(lost, row) : []
    const { suits } = await acts.model()
    const own = suits(about)
    const strange = second && (suits(second) || apart(about, second)) ? second : null
    const unsuited = own ?? (strange && t("{name} is made for {made}", { name: strange.file, made: strange.family }))
    // Another file may have taken its place meanwhile.
    if (shows !== shown) return
    element.classList.toggle("lycoris-missing", Boolean(about.error))
    element.classList.toggle("lycoris-lost", Boolean(lost))
    const found = about.error ?? (about.file === file ? file : `${file}\n${t("found as {file}", { file: about.file })}`)
    name.title = [found, unsuited].filter(Boolean).join("\n")
    const wrong = near.length ? null : (about.error ?? missing ?? unsuited)
    warning.hidden = !wrong
    warning.textContent = !wrong ? "" : (about.error ?? missing) ? "!" : own ? about.family : (strange?.family ?? "")
    warning.title = wrong ?? ""
    pair.replaceChildren(...pairMarks(about, low))
    for (const { signal, element } of signals) element.hidden = !about.signals?.includes(signal)
    const words = badgesOf(about).filter((word) => !own || word !== about.family)
    marks.replaceChildren(...(lost ? near.map((other) => instead(lost, other)) : badges(words)))
  }

  /**
   * The badge of a pair, or the button that takes the other file of the pair into the row.
   *
   * @param {import("./server.js").About} about
   * @param {string | undefined} low
   */
  function pairMarks(about, low) {
    if (low) {
      const title = t("One row for two models: {high} for high noise, {low} for low noise", { high: row.file, low })
      return [make("span", { class: "lycoris-badge lycoris-pair", textContent: t("high + low"), title })]
    }
    if (!about.pair) return []
    const other = about.expert === "low noise" ? about.pair.file : about.pair.low_noise
    const words = about.expert === "low noise" ? t("+ high noise") : t("+ low noise")
    const button = make("button", {
      type: "button",
      class: "lycoris-badge lycoris-near",
      textContent: about.pair.sure ? words : `${words}?`,
      title: t("{file} seems to belong to it: take both into this row", { file: other }),
      onclick: () => about.pair && acts.join(index, about.pair),
    })
    return [button]
  }

  /**
   * A button that takes another file in place of a missing one of the row. Its partner comes with it where that is
   * missing too.
   *
   * @param {string} lost
   * @param {string} file
   */
  function instead(lost, file) {
    async function take() {
      const taken = row
      const { low_noise: low } = row
      const both = lost === row.file && low && (await aboutFile(low)).error
      const { pair } = both ? await aboutFile(file) : { pair: null }
      // The rows may have changed meanwhile.
      if (row !== taken) return
      const found = lost === row.file ? { file } : { low_noise: file }
      acts.change(index, pair?.sure ? withFiles(row, pair) : { ...row, ...found })
    }
    return make("button", {
      type: "button",
      class: "lycoris-badge lycoris-near",
      textContent: `→ ${nameInRow(file)[1]}`,
      title: t("{lost} is not there. Take {file} instead", { lost, file }),
      onclick: () => void take(),
    })
  }

  /**
   * @param {number} number
   * @param {Row} current
   * @param {boolean} separate whether text encoders have strengths of their own
   * @param {boolean} chosen
   */
  function update(number, current, separate, chosen) {
    index = number
    row = current
    power.checked = isOn(row)
    element.classList.toggle("lycoris-off", !power.checked)
    element.classList.toggle("lycoris-chosen", chosen)
    model.show(modelStrength(row))
    clip.show(clipStrength(row))
    clip.element.hidden = !separate
    for (const { signal, show } of signals) show(signalOf(row, signal))
    rules.show(row, acts.model)
    if (shownFile !== row.file) {
      shownFile = row.file
      const [folder, title] = nameParts(nameInRow(row.file || t("no file")))
      title.replaceChildren(...halves(title.textContent ?? "").map((part) => make("span", { textContent: part })))
      name.replaceChildren(folder, title)
      name.title = row.file
      marks.replaceChildren()
      pair.replaceChildren()
      for (const { element } of signals) element.hidden = true
      warning.hidden = true
    }
    describe(row.file)
  }

  const close = () => {
    for (const one of [model, clip, ...signals]) one.close()
  }
  /** @param {number} times how often the file is on */
  const showTimes = (times) => {
    twice.hidden = times < 2
    twice.textContent = `x${times}`
    twice.title = t("This file is on in {times} rows: what they change adds up", { times })
  }
  /**
   * @param {import("./reasons.js").Reason | null} found
   * @param {boolean} stops whether the row stops a run while it is on
   */
  const blame = (found, stops) => {
    reason.hidden = !found
    why.textContent = found?.reason ?? ""
    reason.title = found ? [found.reason, found.details].filter(Boolean).join("\n\n") : ""
    off.hidden = !stops
    reason.classList.toggle("lycoris-long", heightOf(found) > 1)
    element.classList.toggle("lycoris-blamed", Boolean(found))
  }
  /** Whether the line has this field: not every file has layers for the picture, or for the sound, alone. */
  const has = (/** @type {Changed} */ name) => !signals.some(({ signal, element }) => signal === name && element.hidden)
  return { element, reason, update, showTimes, blame, has, close }
}
