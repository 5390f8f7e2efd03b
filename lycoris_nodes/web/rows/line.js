// The line of one row.

import { badges, make, nameParts } from "../elements.js"
import { t } from "../language.js"
import { rulesButton } from "./blocksicon.js"
import { openInfo } from "./info.js"
import { badgesOf, splitName } from "./names.js"
import { below } from "./popup.js"
import { previewOnHover } from "./preview.js"
import { aboutFile } from "./server.js"
import { clipStrength, isOn, modelStrength } from "./state.js"
import { strengthField } from "./strength.js"

/** @typedef {import("./state.js").Row} Row */
/** @typedef {import("./popup.js").Point} Point */

/**
 * What a user does with a line.
 *
 * @typedef {{
 *   change: (index: number, row: Row) => void,
 *   turn: (index: number, on: boolean) => void,
 *   replaceFile: (index: number, point: Point) => void,
 *   editRules: (index: number, point: Point) => void,
 *   menu: (index: number, point: Point) => void,
 *   model: () => Promise<import("./model.js").Model>,
 *   drag: (index: number, event: PointerEvent) => void,
 *   choose: (index: number | null, event: MouseEvent) => void,
 *   strength: (index: number, name: "strength_model" | "strength_clip") => import("./strength.js").Strength,
 * }} Acts
 */

/**
 * Give the focus back after a click of the mouse: the front end's keys, Undo among them, are not for the elements of a
 * form that have it.
 *
 * @param {MouseEvent} event
 */
export function leave({ detail, currentTarget }) {
  if (detail) /** @type {HTMLElement} */ (currentTarget).blur()
}

/**
 * @param {Acts} acts
 * @param {{min: number, max: number}} bounds those of a strength
 */
export function createLine(acts, bounds) {
  let index = 0
  /** @type {Row} */
  let row = { file: "" }
  /** @type {string | null} */
  let shownFile = null
  const handle = make("span", { class: "lycoris-handle", textContent: "⠿" })
  handle.title = t("Drag to move, click to select. Several: Ctrl-click on rows, or Shift-click up to a row")
  const power = make("input", { type: "checkbox", class: "lycoris-switch", title: t("Switch on or off") })
  const name = make("button", { type: "button", class: "lycoris-file" })
  const marks = make("span", { class: "lycoris-marks" })
  const rules = rulesButton(() => acts.editRules(index, below(rules.element)))
  const info = make("button", { type: "button", class: "lycoris-icon lycoris-about", textContent: "i" })
  info.title = t("About the file")
  /** @type {(label: string, name: "strength_model" | "strength_clip") => ReturnType<typeof strengthField>} */
  const field = (label, name) =>
    strengthField(label, bounds, {
      type: (value) => acts.strength(index, name).type(value),
      step: () => acts.strength(index, name).step(),
      preview: () => acts.strength(index, name).preview(),
      undo: (again) => acts.strength(index, name).undo(again),
    })
  const model = field(t("strength of the model"), "strength_model")
  const clip = field(t("strength of the text encoder"), "strength_clip")
  const fields = [model.element, clip.element]
  const element = make("div", { class: "lycoris-row" }, handle, power, name, marks, rules.element, ...fields, info)

  power.onclick = leave
  power.onchange = () => acts.turn(index, power.checked)
  name.onclick = () => acts.replaceFile(index, below(name))
  info.onclick = () => openInfo(row.file, below(info))
  handle.onpointerdown = (event) => acts.drag(index, event)
  element.oncontextmenu = (event) => {
    event.preventDefault()
    event.stopPropagation()
    acts.menu(index, { x: event.clientX, y: event.clientY })
  }
  // With a key held, a click on a row selects it, whatever is below the pointer; without, one beside all that is there
  // gives the selection up.
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

  async function describe(/** @type {string} */ file) {
    const about = await aboutFile(file)
    // Another file may have taken its place meanwhile.
    if (shownFile !== file) return
    element.classList.toggle("lycoris-missing", Boolean(about.error))
    name.title = about.error ?? (about.file === file ? file : `${file}\n${t("found as {file}", { file: about.file })}`)
    const problem = make("span", { class: "lycoris-badge lycoris-bad", textContent: "!", title: about.error })
    marks.replaceChildren(...(about.error ? [problem] : badges(badgesOf(about))))
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
    rules.show(row, acts.model)
    if (shownFile !== row.file) {
      shownFile = row.file
      name.replaceChildren(...nameParts(splitName(row.file || t("no file"))))
      name.title = row.file
      marks.replaceChildren()
    }
    describe(row.file)
  }

  const close = () => {
    model.close()
    clip.close()
  }
  return { element, update, close }
}
