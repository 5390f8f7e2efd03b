// The line of one row.

import { badges, make, nameParts } from "../elements.js"
import { t } from "../language.js"
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
 *   replaceFile: (index: number, point: Point) => void,
 *   editRules: (index: number, point: Point) => void,
 *   menu: (index: number, point: Point) => void,
 *   drag: (index: number, event: PointerEvent) => void,
 * }} Acts
 */

/**
 * @param {Acts} acts
 * @param {{min: number, max: number, step: number}} bounds those of a strength
 */
export function createLine(acts, bounds) {
  let index = 0
  /** @type {Row} */
  let row = { file: "" }
  /** @type {string | null} */
  let shownFile = null
  const change = (/** @type {Partial<Row>} */ part) => acts.change(index, { ...row, ...part })
  const handle = make("span", { class: "lycoris-handle", textContent: "⠿", title: t("Drag to move") })
  const power = make("input", { type: "checkbox", class: "lycoris-switch", title: t("Switch on or off") })
  const name = make("button", { type: "button", class: "lycoris-file" })
  const marks = make("span", { class: "lycoris-marks" })
  const rules = make("button", { type: "button", class: "lycoris-icon", textContent: "≡" })
  const info = make("button", { type: "button", class: "lycoris-icon lycoris-about", textContent: "i" })
  info.title = t("About the file")
  const model = strengthField(t("strength of the model"), bounds, (value) => change({ strength_model: value }))
  const clip = strengthField(t("strength of the text encoder"), bounds, (value) => change({ strength_clip: value }))
  const fields = [model.element, clip.element]
  const element = make("div", { class: "lycoris-row" }, handle, power, name, marks, rules, ...fields, info)

  power.onchange = () => change({ on: power.checked })
  name.onclick = () => acts.replaceFile(index, below(name))
  rules.onclick = () => acts.editRules(index, below(rules))
  info.onclick = () => openInfo(row.file, below(info))
  handle.onpointerdown = (event) => acts.drag(index, event)
  element.oncontextmenu = (event) => {
    event.preventDefault()
    event.stopPropagation()
    acts.menu(index, { x: event.clientX, y: event.clientY })
  }
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
   */
  function update(number, current, separate) {
    index = number
    row = current
    power.checked = isOn(row)
    element.classList.toggle("lycoris-off", !power.checked)
    model.show(modelStrength(row))
    clip.show(clipStrength(row))
    clip.element.hidden = !separate
    rules.hidden = !row.rules?.trim()
    rules.title = row.rules ?? ""
    if (shownFile !== row.file) {
      shownFile = row.file
      name.replaceChildren(...nameParts(splitName(row.file || t("no file"))))
      name.title = row.file
      marks.replaceChildren()
    }
    describe(row.file)
  }

  return { element, update }
}
