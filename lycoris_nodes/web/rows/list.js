// The rows as a list that can be edited.

import { make } from "../elements.js"
import { t } from "../language.js"
import { shareWheel } from "../wheel.js"
import { dragLine } from "./drag.js"
import { openInfo } from "./info.js"
import { createLine } from "./line.js"
import { openMenu } from "./menu.js"
import { openPicker } from "./picker.js"
import { below, closePopup } from "./popup.js"
import { hidePreview } from "./preview.js"
import { readRows } from "./server.js"
import { formatRows, hasClip, isOn, moved, newRow, parseRows, withClip, withRules } from "./state.js"
import { askText } from "./textbox.js"

/** How many rows are shown without scrolling. */
const MOST = 16

/** @typedef {import("./state.js").Row} Row */
/** @typedef {import("./popup.js").Point} Point */

/**
 * A list that shows and changes the rows of a text.
 *
 * @param {{
 *   read: () => string,
 *   write: (text: string) => void,
 *   isLinked: () => boolean,
 *   resized: () => void,
 *   bounds: {min: number, max: number, step: number},
 *   model: () => Promise<import("./model.js").Model>,
 * }} text `isLinked` says whether another node gives it, `resized` is called when the list has another height, and
 *   `bounds` are those of a strength
 */
export function createList({ read, write, isLinked, resized, bounds, model }) {
  const line = 1.5 * LiteGraph.NODE_WIDGET_HEIGHT
  const all = make("input", { type: "checkbox", class: "lycoris-switch", title: t("Switch all on or off") })
  const count = make("span", { class: "lycoris-count" })
  const modelHead = make("span", { class: "lycoris-column" })
  const clipHead = make("span", { class: "lycoris-column", textContent: "CLIP" })
  const more = make("button", { type: "button", class: "lycoris-icon", textContent: "⋯", title: t("More") })
  const head = make("div", { class: "lycoris-head" }, all, count, modelHead, clipHead, more)
  const body = make("div", { class: "lycoris-list" })
  const add = make("button", { type: "button", class: "lycoris-button", textContent: t("+ Add LoRA / LyCORIS") })
  const foot = make("div", { class: "lycoris-foot" }, add)
  const element = make("div", { class: "lycoris-rows" }, head, body, foot)
  element.style.setProperty("--lycoris-line", `${line}px`)
  // Vue would make a node as high as all of its rows.
  body.style.maxHeight = `${MOST * line}px`
  /** @type {ReturnType<typeof createLine>[]} */
  const lines = []
  /** @type {Row[]} */
  let rows = []
  let height = 0

  const set = (/** @type {Row[]} */ changed) => void write(formatRows(changed))

  /** @type {import("./line.js").Acts} */
  const acts = {
    change: (index, row) => set(rows.with(index, row)),
    replaceFile(index, point) {
      const { file: current } = rows[index]
      openPicker({ current, model: model(), pick: (file) => acts.change(index, { ...rows[index], file }) }, point)
    },
    editRules(index, point) {
      const done = (/** @type {string} */ rules) => acts.change(index, withRules(rows[index], rules))
      const text = rows[index].rules
      const hint = t("One rule per line: pattern = weight, as in Weight LyCORIS Blocks.")
      askText({ title: t("Block rules of this row"), hint, text, button: t("Set rules"), done }, point)
    },
    menu(index, point) {
      const row = rows[index]
      const move = (/** @type {number} */ to) => (to in rows ? () => set(moved(rows, index, to)) : null)
      openMenu(
        [
          [t("About the file"), () => openInfo(row.file, point)],
          [t("Block rules…"), () => acts.editRules(index, point)],
          null,
          [isOn(row) ? t("Switch off") : t("Switch on"), () => acts.change(index, { ...row, on: !isOn(row) })],
          [t("Only this one on"), () => set(rows.map((one, at) => ({ ...one, on: at === index })))],
          null,
          [t("Duplicate"), () => set(rows.toSpliced(index, 0, row))],
          [t("Move up"), move(index - 1)],
          [t("Move down"), move(index + 1)],
          [t("Remove"), () => set(rows.toSpliced(index, 1))],
          null,
          ...common(point),
        ],
        point,
      )
    },
    drag(index, event) {
      const elements = lines.map(({ element }) => element)
      dragLine(event, elements, index, (to) => set(moved(rows, index, to)))
    },
  }

  /**
   * @param {Point} point
   * @returns {import("./menu.js").Item[]}
   */
  function common(point) {
    const separate = hasClip(rows)
    const words = separate ? t("One strength for both") : t("Separate strength for CLIP")
    const hint = t(
      "Rows of this node, a node of rgthree's Power Lora Loader, a LORA_STACK, or <lora:name:strength> tags.",
    )
    return [
      [words, rows.length ? () => set(withClip(rows, !separate)) : null],
      [t("Paste rows…"), () => askText({ title: t("Paste rows"), hint, button: t("Add rows"), done: paste }, point)],
      [t("Remove all"), rows.length ? () => set([]) : null],
    ]
  }

  /** @param {string} text */
  async function paste(text) {
    try {
      const found = await readRows(text)
      if (!found.length) return t("There are no rows in this text")
      set([...rows, ...found])
    } catch (error) {
      return t("These rows cannot be used: {error}", { error: /** @type {Error} */ (error).message })
    }
  }

  /** Show the rows of the text; those of another form once the server has read them. */
  function draw() {
    const text = read()
    const own = parseRows(text)
    element.classList.toggle("lycoris-linked", isLinked())
    if (own) return show(own)
    refuse("…")
    const unlessChanged = (/** @type {() => void} */ act) => text === read() && act()
    readRows(text).then(
      (found) => unlessChanged(() => show(found)),
      ({ message }) =>
        unlessChanged(() =>
          refuse(t("The text of this node cannot be shown as rows: {message}. Show Advanced shows it.", { message })),
        ),
    )
  }

  /**
   * Show words in place of a text that cannot be edited.
   *
   * @param {string} words
   */
  function refuse(words) {
    rows = []
    head.hidden = true
    add.disabled = true
    say(words)
    setHeight()
  }

  /** @param {Row[]} found */
  function show(found) {
    rows = found
    const linked = isLinked()
    const separate = hasClip(rows)
    const live = rows.filter(isOn).length
    head.hidden = false
    add.disabled = linked
    all.checked = live > 0 && live === rows.length
    all.indeterminate = live > 0 && live < rows.length
    all.disabled = !rows.length
    count.textContent = rows.length ? t("{live} of {all} on", { live, all: rows.length }) : ""
    modelHead.textContent = separate ? t("model") : t("strength")
    modelHead.hidden = !rows.length
    clipHead.hidden = !separate
    if (rows.length) showLines(separate)
    else say(linked ? t("Another node gives the rows.") : t("No rows yet."))
    setHeight()
  }

  /** @param {boolean} separate */
  function showLines(separate) {
    // In place of words.
    if (!lines.length) body.replaceChildren()
    while (lines.length > rows.length) lines.pop()?.element.remove()
    while (lines.length < rows.length) {
      const line = createLine(acts, bounds)
      lines.push(line)
      body.append(line.element)
    }
    for (const [index, line] of lines.entries()) line.update(index, rows[index], separate)
  }

  /** @param {string} words */
  function say(words) {
    body.replaceChildren(make("div", { class: "lycoris-hint", textContent: words }))
    lines.length = 0
  }

  function setHeight() {
    // Where the list scrolls, it has the wheel, which else zooms the canvas.
    if (rows.length > MOST) body.dataset.captureWheel = "true"
    else delete body.dataset.captureWheel
    // With its head and foot.
    const needed = line * (2 + Math.min(Math.max(rows.length, 1), MOST))
    if (needed === height) return
    height = needed
    element.style.minHeight = `${height}px`
    resized()
  }

  all.onchange = () => set(rows.map((row) => ({ ...row, on: all.checked })))
  more.onclick = () => openMenu(common(below(more)), below(more))
  add.onclick = () => openPicker({ many: true, model: model(), pick: (file) => set([...rows, newRow(file)]) }, below(add))
  for (const part of [head, body, foot]) shareWheel(part)
  // Where Vue draws the node, only an element that has the focus gets the wheel.
  body.tabIndex = -1
  body.onpointerenter = () => {
    const free = document.activeElement === document.body || document.activeElement?.tagName === "CANVAS"
    if (free && body.dataset.captureWheel) body.focus({ preventScroll: true })
  }
  body.onpointerleave = () => body.blur()

  const close = () => {
    closePopup()
    hidePreview()
  }
  return { element, height: () => height, draw, close }
}
