// The rows as a list that can be edited.

import { shareWheel } from "../wheel.js"
import { badges, make, nameParts } from "./elements.js"
import { aboutFile, badgesOf, splitName } from "./files.js"
import { openInfo } from "./info.js"
import { openMenu } from "./menu.js"
import { openPicker } from "./picker.js"
import { below, closePopup } from "./popup.js"
import { hidePreview, previewOnHover } from "./preview.js"
import * as state from "./state.js"
import { askText } from "./textbox.js"
import { readNumber } from "./typed.js"

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

/**
 * A field for a strength. What cannot be read as one stays as it was typed, in red, and `changed` gets it as a text.
 */
function strengthField(label, { min, max, step }, changed) {
  const field = make("input", { type: "text", inputMode: "decimal", class: "lycoris-number", "aria-label": label })
  let value = 0
  const read = (text) => {
    const number = readNumber(text)
    return number >= min && number <= max ? number : NaN
  }
  const show = (given) => {
    value = given
    field.value = typeof given === "number" ? shownNumber(given) : given
    const wrong = Number.isNaN(read(String(given)))
    field.classList.toggle("lycoris-wrong", wrong)
    field.title = wrong ? `${label}: a number from ${min} to ${max} is expected` : label
  }
  const set = (given) => {
    show(given)
    changed(given)
  }
  const move = (way) => {
    const number = read(field.value)
    if (!Number.isNaN(number)) set(Math.min(max, Math.max(min, Number((number + way * step).toFixed(2)))))
  }
  field.addEventListener("change", () => {
    const typed = field.value.trim()
    const number = read(typed)
    if (typed) set(Number.isNaN(number) ? typed : number)
    else show(value)
  })
  field.addEventListener("keydown", (event) => {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key]
    if (way) {
      event.preventDefault()
      move(way)
    }
    if (event.key === "Enter") field.blur()
    event.stopPropagation()
  })
  const arrow = (sign, words, way) =>
    make("button", { type: "button", tabIndex: -1, textContent: sign, title: words, onclick: () => move(way) })
  const arrows = make("span", { class: "lycoris-arrows" }, arrow("▴", `${step} more`, 1), arrow("▾", `${step} less`, -1))
  return { element: make("span", { class: "lycoris-strength" }, field, arrows), show }
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
  const model = strengthField("strength of the model", list.strengths, (value) => change({ strength_model: value }))
  const clip = strengthField("strength of the text encoder", list.strengths, (value) => change({ strength_clip: value }))
  const fields = [model.element, clip.element]
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
    clip.element.hidden = !separate
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
        const found = await state.readRows(text)
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

  /** Show the rows of the text; a promise where the server has to read it. */
  function draw() {
    const text = read()
    const own = state.parseRows(text)
    if (own) return show(own)
    const unlessChanged = (act) => (result) => text === read() && act(result)
    refuse("…")
    const words = "The text of this node cannot be shown as rows"
    const fail = ({ message }) => refuse(`${words}: ${message}. Show Advanced shows it.`)
    return state.readRows(text).then(unlessChanged(show), unlessChanged(fail))
  }

  /** Show words in place of rows. */
  function refuse(words) {
    rows = []
    element.classList.toggle("lycoris-linked", isLinked())
    head.hidden = true
    add.disabled = true
    say(words)
    setHeight(1)
  }

  function show(found) {
    rows = found
    const linked = isLinked()
    element.classList.toggle("lycoris-linked", linked)
    head.hidden = false
    add.disabled = linked
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
