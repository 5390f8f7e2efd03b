// The rows as a list that can be edited.

import { shareWheel } from "../wheel.js"
import { badges, make, nameParts } from "./elements.js"
import { aboutFile, badgesOf, splitName } from "./files.js"
import { rowsFromAnywhere } from "./foreign.js"
import { openInfo } from "./info.js"
import { openMenu } from "./menu.js"
import { openPicker } from "./picker.js"
import { below, closePopup } from "./popup.js"
import { hidePreview, previewOnHover } from "./preview.js"
import * as state from "./state.js"
import { askText } from "./textbox.js"

const ROW = 30
const HEAD = 26
const FOOT = 34
/** How many rows are shown without scrolling. */
const MOST = 16

const RULES = "One rule per line: pattern = weight, as in Weight LyCORIS Blocks."
const PASTE =
  "Rows of this node, a node of rgthree's Power Lora Loader, a LORA_STACK, or <lora:name:strength> tags."

/** A number with two decimals, or with more where it has more. */
function shownNumber(value) {
  const rounded = value.toFixed(2)
  return Math.abs(Number(rounded) - value) < 1e-9 ? rounded : String(value)
}

function numberField(label, { min, max, step }, changed) {
  const field = make("input", { type: "number", min, max, step, class: "lycoris-number", title: label })
  field.setAttribute("aria-label", label)
  let value = 0
  const show = (number) => {
    value = number
    field.value = shownNumber(number)
  }
  field.addEventListener("change", () => {
    const number = field.value.trim() === "" ? NaN : Number(field.value)
    show(Number.isFinite(number) ? Math.min(max, Math.max(min, number)) : value)
    if (Number.isFinite(number)) changed(value)
  })
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") field.blur()
    event.stopPropagation()
  })
  return { field, show }
}

/** The line of one row. `list` is told what the user does with it. */
function createLine(list) {
  let index = 0
  let row = null
  let shownFile = null
  const change = (part) => list.change(index, { ...row, ...part })
  const handle = make("span", { class: "lycoris-handle", textContent: "⠿", title: "Drag to move" })
  const power = make("input", { type: "checkbox", class: "lycoris-switch", title: "Switch on or off" })
  const name = make("button", { type: "button", class: "lycoris-file" })
  const marks = make("span", { class: "lycoris-marks" })
  const rules = make("button", { type: "button", class: "lycoris-icon", textContent: "≡" })
  const info = make("button", { type: "button", class: "lycoris-icon lycoris-about", textContent: "i", title: "About the file" })
  const model = numberField("strength of the model", list.strengths, (value) => change({ strength_model: value }))
  const clip = numberField("strength of the text encoder", list.strengths, (value) => change({ strength_clip: value }))
  const fields = [model.field, clip.field]
  const element = make("div", { class: "lycoris-row" }, handle, power, name, marks, rules, ...fields, info)

  power.onchange = () => change({ on: power.checked })
  name.onclick = () => list.replaceFile(index, name)
  rules.onclick = () => list.editRules(index, below(rules))
  info.onclick = () => openInfo(row.file, below(info))
  element.addEventListener("contextmenu", (event) => {
    event.preventDefault()
    event.stopPropagation()
    list.menu(index, { x: event.clientX, y: event.clientY })
  })
  handle.addEventListener("pointerdown", (event) => list.drag(event, index, handle))
  previewOnHover(name, () => row.file)

  async function describe(file) {
    const about = await aboutFile(file)
    // Another file may have taken its place meanwhile.
    if (shownFile !== file) return
    element.classList.toggle("lycoris-missing", Boolean(about.error))
    name.title = about.error ?? (about.file === file ? file : `${file}\nfound as ${about.file}`)
    const problem = make("span", { class: "lycoris-badge lycoris-bad", textContent: "!", title: about.error })
    marks.replaceChildren(...(about.error ? [problem] : badges(badgesOf(about))))
  }

  function update(number, current, separate) {
    index = number
    row = current
    power.checked = state.isOn(row)
    element.classList.toggle("lycoris-off", !power.checked)
    model.show(state.modelStrength(row))
    clip.show(state.clipStrength(row))
    clip.field.hidden = !separate
    rules.hidden = !row.rules?.trim()
    rules.title = row.rules ?? ""
    if (shownFile !== row.file) {
      shownFile = row.file
      name.replaceChildren(...nameParts(splitName(row.file || "no file")))
      name.title = row.file
      marks.replaceChildren()
    }
    describe(row.file)
  }

  return { element, update }
}

/**
 * A list that shows and changes the rows of a text: `read()` gives the text, `write(text)` changes it,
 * `isLinked()` says whether another node gives it, and `resized(height)` hears how high the list is to be.
 */
export function createList({ read, write, isLinked, resized, strengths }) {
  const all = make("input", { type: "checkbox", class: "lycoris-switch", title: "Switch all on or off" })
  const count = make("span", { class: "lycoris-count" })
  const modelHead = make("span", { class: "lycoris-column", textContent: "strength" })
  const clipHead = make("span", { class: "lycoris-column", textContent: "CLIP" })
  const more = make("button", { type: "button", class: "lycoris-icon", textContent: "⋯", title: "More" })
  const head = make("div", { class: "lycoris-head" }, all, count, modelHead, clipHead, more)
  const body = make("div", { class: "lycoris-list" })
  // Vue would make a node as high as all of its rows.
  body.style.maxHeight = `${MOST * ROW}px`
  const add = make("button", { type: "button", class: "lycoris-button", textContent: "+ Add LoRA / LyCORIS" })
  const foot = make("div", { class: "lycoris-foot" }, add)
  const element = make("div", { class: "lycoris-rows" }, head, body, foot)
  const lines = []
  let rows = []
  let height = 0

  const set = (changed) => write(state.formatRows(changed))
  const commands = {
    strengths,
    change: (index, row) => set(rows.with(index, row)),
    replaceFile(index, button) {
      const pick = (file) => commands.change(index, { ...rows[index], file })
      openPicker({ current: rows[index].file, pick }, below(button))
    },
    editRules(index, point) {
      askText(
        {
          title: "Block rules of this row",
          hint: RULES,
          text: rows[index].rules ?? "",
          button: "Set rules",
          done: (rules) => {
            const { rules: _, ...rest } = rows[index]
            commands.change(index, rules.trim() ? { ...rest, rules } : rest)
          },
        },
        point,
      )
    },
    menu(index, point) {
      const row = rows[index]
      const separate = state.hasClip(rows)
      const move = (to) => (to >= 0 && to < rows.length ? () => set(state.moved(rows, index, to)) : null)
      openMenu(
        [
          ["About the file", () => openInfo(row.file, point)],
          ["Block rules…", () => commands.editRules(index, point)],
          null,
          [state.isOn(row) ? "Switch off" : "Switch on", () => commands.change(index, { ...row, on: !state.isOn(row) })],
          ["Only this one on", () => set(rows.map((one, at) => ({ ...one, on: at === index })))],
          null,
          ["Duplicate", () => set(rows.toSpliced(index + 1, 0, { ...row }))],
          ["Move up", move(index - 1)],
          ["Move down", move(index + 1)],
          ["Remove", () => set(rows.toSpliced(index, 1))],
          null,
          ...common(separate, point),
        ],
        point,
      )
    },
    drag: startDrag,
  }

  function common(separate, point) {
    const words = separate ? "One strength for both" : "Separate strength for CLIP"
    return [
      [words, rows.length ? () => set(state.withClip(rows, !separate)) : null],
      ["Paste rows…", () => paste(point)],
      ["Remove all", rows.length ? () => set([]) : null],
    ]
  }

  function paste(point) {
    const done = async (text) => {
      try {
        const found = await rowsFromAnywhere(text)
        if (!found.length) return "There are no rows in this text"
        set([...rows, ...found])
        return ""
      } catch (error) {
        return `These rows cannot be used: ${error.message}`
      }
    }
    askText({ title: "Paste rows", hint: PASTE, button: "Add rows", done }, point)
  }

  /** Move a row with the pointer: a line shows where it would come to be. */
  function startDrag(event, from, handle) {
    if (event.button !== 0) return
    event.preventDefault()
    handle.setPointerCapture(event.pointerId)
    const dragged = lines[from].element
    let to = from
    dragged.classList.add("lycoris-dragged")
    const mark = () => {
      for (const [at, line] of lines.entries()) {
        line.element.classList.toggle("lycoris-before", at === to && to < from)
        line.element.classList.toggle("lycoris-after", at === to && to > from)
      }
    }
    const controller = new AbortController()
    const on = (name, act) => handle.addEventListener(name, act, { signal: controller.signal })
    const end = (apply) => {
      controller.abort()
      dragged.classList.remove("lycoris-dragged")
      const target = to
      to = from
      mark()
      if (apply && target !== from) set(state.moved(rows, from, target))
    }
    on("pointermove", ({ clientY }) => {
      const below = lines.findIndex((line) => clientY < line.element.getBoundingClientRect().bottom)
      to = below < 0 ? lines.length - 1 : below
      mark()
    })
    on("pointerup", () => end(true))
    on("pointercancel", () => end(false))
  }

  function setHeight(shown) {
    // Where the list scrolls, it has the wheel, which else zooms the canvas.
    if (shown > MOST) body.dataset.captureWheel = "true"
    else delete body.dataset.captureWheel
    const needed = HEAD + FOOT + ROW * Math.min(Math.max(shown, 1), MOST)
    if (needed === height) return
    height = needed
    element.style.minHeight = `${needed}px`
    resized(needed)
  }

  function say(words) {
    body.replaceChildren(make("div", { class: "lycoris-hint", textContent: words }))
    lines.length = 0
  }

  function draw() {
    const linked = isLinked()
    element.classList.toggle("lycoris-linked", linked)
    head.hidden = false
    add.disabled = linked
    try {
      rows = state.parseRows(read())
    } catch (error) {
      rows = []
      head.hidden = true
      add.disabled = true
      say(`The text of this node cannot be shown as rows: ${error.message}. Show Advanced shows it.`)
      setHeight(1)
      return
    }
    const separate = state.hasClip(rows)
    const live = rows.filter(state.isOn).length
    all.checked = live > 0 && live === rows.length
    all.indeterminate = live > 0 && live < rows.length
    all.disabled = !rows.length
    count.textContent = rows.length ? `${live} of ${rows.length} on` : ""
    modelHead.textContent = separate ? "model" : "strength"
    modelHead.hidden = !rows.length
    clipHead.hidden = !separate
    if (!rows.length) say(linked ? "Another node gives the rows." : "No rows yet.")
    else {
      if (!lines.length) body.replaceChildren()
      while (lines.length > rows.length) lines.pop().element.remove()
      while (lines.length < rows.length) {
        const line = createLine(commands)
        lines.push(line)
        body.append(line.element)
      }
      for (const [index, line] of lines.entries()) line.update(index, rows[index], separate)
    }
    setHeight(rows.length)
  }

  all.onchange = () => set(rows.map((row) => ({ ...row, on: all.checked })))
  more.onclick = () => openMenu(common(state.hasClip(rows), below(more)), below(more))
  add.onclick = () => {
    const pick = (file) => set([...rows, state.newRow(file)])
    openPicker({ many: true, pick }, below(add))
  }
  for (const part of [head, body, foot]) shareWheel(part)
  // Where Vue draws the node, only an element that has the focus gets the wheel.
  body.tabIndex = -1
  body.addEventListener("pointerenter", () => {
    const free = document.activeElement === document.body || document.activeElement?.tagName === "CANVAS"
    if (free && body.dataset.captureWheel) body.focus({ preventScroll: true })
  })
  body.addEventListener("pointerleave", () => document.activeElement === body && body.blur())

  const close = () => {
    closePopup()
    hidePreview()
  }
  return { element, draw, close }
}
