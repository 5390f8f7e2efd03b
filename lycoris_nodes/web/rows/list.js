// The rows as a list that can be edited.

import { app } from "../../../scripts/app.js"
import { make } from "../elements.js"
import { t } from "../language.js"
import { shareWheel } from "../host.js"
import { openBlocks } from "./blocksbox.js"
import { dragLines } from "./drag.js"
import { openInfo } from "./info.js"
import { createLine, leave } from "./line.js"
import { openMenu } from "./menu.js"
import { openPicker } from "./picker.js"
import { below, beside, closePopup } from "./popup.js"
import { hidePreview } from "./preview.js"
import { heightOf } from "./reasons.js"
import { aboutFile, forgetFile, readRows, refusedRows } from "./server.js"
import { openSets } from "./sets.js"
import {
  SIGNALS, filesOf, formatRows, hasClip, isOn, joined, newRow, parseRows, signalOf, withClip, withFiles, withRules, withSignal,
  withStrength,
} from "./state.js"
import { chosenUpTo, moved, shifted, toggled } from "./steps.js"
import { askText } from "./textbox.js"
import { readNumber } from "./typed.js"

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
 *   begin: () => () => void,
 *   undo: (again: boolean) => void,
 *   isLinked: () => boolean,
 *   resized: () => void,
 *   bounds: {min: number, max: number},
 *   model: () => Promise<import("./model.js").Model>,
 * }} text `begin` begins a step that can be undone, and returns the function that ends it; `undo` takes the last step
 *   back, or does it again; `isLinked` says whether another node gives the text; `resized` is called when the height of
 *   the list changes; `bounds` are the bounds of a strength; `model` gives the model that the stack reaches
 */
export function createList({ read, write, begin, undo, isLinked, resized, bounds, model }) {
  const line = 1.5 * LiteGraph.NODE_WIDGET_HEIGHT
  const all = make("input", { type: "checkbox", class: "lycoris-switch", title: t("Switch all on or off") })
  const count = make("span", { class: "lycoris-count" })
  const chosenCount = make("button", { type: "button", class: "lycoris-badge lycoris-chosen-count" })
  chosenCount.title = t("What you do with one of them, you do with all. Click to select none")
  const modelHead = make("span", { class: "lycoris-column" })
  const clipHead = make("span", { class: "lycoris-column", textContent: "CLIP" })
  const more = make("button", { type: "button", class: "lycoris-icon", textContent: "⋯", title: t("More") })
  const head = make("div", { class: "lycoris-head" }, all, count, chosenCount, modelHead, clipHead, more)
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
  /** @type {Set<number>} the selected rows; `anchor` is the row from which Shift selects */
  let chosen = new Set()
  let anchor = 0
  let height = 0
  /**
   * The model, asked for once each time that the list is drawn.
   *
   * @type {ReturnType<typeof model> | null}
   */
  let reached = null
  /** @type {Map<number, {row: string, why: import("./reasons.js").Reason, typed?: boolean}>} */
  let refused = new Map()
  /** Resolves when the ongoing change of a strength ends. The change is made to the rows as they were at its start. */
  let settled = Promise.resolve()

  const set = (/** @type {Row[]} */ changed) => void write(formatRows(changed))
  /** The rows that an action on one row is for: all selected rows, if it is one of them. */
  const meant = (/** @type {number} */ index) => (chosen.has(index) ? chosen : new Set([index]))
  /** @type {(meant: Set<number>, change: (row: Row) => Row) => Row[]} */
  const changed = (meant, change) => rows.map((row, index) => (meant.has(index) ? change(row) : row))

  /** Where a row is now, by its files: others may have come or gone while a panel was open. -1 where it is gone. */
  const placeOf = (/** @type {Row} */ row, /** @type {number} */ before) => {
    const files = JSON.stringify(filesOf(row))
    const is = (/** @type {Row | undefined} */ other) => other !== undefined && JSON.stringify(filesOf(other)) === files
    return is(rows[before]) ? before : rows.findIndex(is)
  }
  /** Change a row where it is now. */
  const changeRow = (/** @type {Row} */ row, /** @type {number} */ before, /** @type {(row: Row) => Row} */ change) => {
    const index = placeOf(row, before)
    if (index >= 0) acts.change(index, change(rows[index]))
    return index
  }

  /** The place where a panel for a row does not cover the rows. */
  const asideOf = (/** @type {number} */ index) => beside(element, lines[index].element)

  /** @param {Set<number>} selected */
  function choose(selected) {
    chosen = selected
    show(rows)
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  function move(from, to) {
    const going = meant(from)
    const order = moved([...rows.keys()], going, from, to)
    // Select them at their new places, before the list is drawn.
    if (chosen.has(from)) chosen = new Set([...order.keys()].filter((place) => going.has(order[place])))
    else chosen = new Set()
    set(order.map((index) => rows[index]))
  }

  /** @type {import("./line.js").Acts} */
  const acts = {
    change: (index, row) => set(rows.with(index, row)),
    join: (index, pair) => set(joined(rows, index, pair)),
    turn: (index, on) => set(changed(meant(index), (row) => ({ ...row, on }))),
    replaceFile(index) {
      const row = rows[index]
      const { file: current } = row
      const pick = (/** @type {string} */ file) => {
        const at = changeRow(row, index, (found) => withFiles(found, { file }))
        if (at >= 0) void joinPair(rows[at], false)
      }
      openPicker({ current, model: model(), pick }, asideOf(index))
    },
    model: () => (reached ??= model()),
    async editRules(index) {
      const row = rows[index]
      const { file, rules: text = "" } = row
      const [now, about] = await Promise.all([model(), aboutFile(file)])
      const at = placeOf(row, index)
      if (at < 0) return
      const done = (/** @type {string} */ rules) => void changeRow(row, at, (found) => withRules(found, rules))
      openBlocks({ file, text, model: now, unsuited: about.error ? null : now.suits(about), done }, asideOf(at))
    },
    async menu(index, point) {
      const row = rows[index]
      const about = await aboutFile(row.file)
      // The rows may have changed meanwhile.
      if (rows[index] !== row) return
      const signals = SIGNALS.filter((signal) => about.signals?.includes(signal)).map((signal) => signalItem(index, signal))
      const these = meant(index)
      const count = these.size
      const several = count > 1
      const step = (/** @type {number} */ to) => (!several && to in rows ? () => move(index, to) : null)
      const on = !isOn(row)
      const copies = [...these].sort((one, other) => one - other).map((at) => rows[at])
      openMenu(
        [
          [t("About the file"), () => openInfo(row.file, point)],
          [t("Block weights…"), () => acts.editRules(index)],
          ...(several ? [] : [...signals, ...pairItems(index, about.expert)]),
          null,
          [
            on
              ? several ? t("Switch {count} rows on", { count }) : t("Switch on")
              : several ? t("Switch {count} rows off", { count }) : t("Switch off"),
            () => acts.turn(index, on),
          ],
          [
            several ? t("Only these {count} on", { count }) : t("Only this one on"),
            () => set(rows.map((row, at) => ({ ...row, on: these.has(at) }))),
          ],
          null,
          [
            several ? t("Duplicate {count} rows", { count }) : t("Duplicate"),
            () => set(rows.toSpliced(Math.max(...these) + 1, 0, ...copies)),
          ],
          [t("Move up"), step(index - 1)],
          [t("Move down"), step(index + 1)],
          [
            several ? t("Remove {count} rows", { count }) : t("Remove"),
            () => set(rows.filter((_, at) => !these.has(at))),
          ],
          null,
          ...common(point),
        ],
        point,
      )
    },
    drag(index, event) {
      const elements = lines.map(({ element }) => element)
      dragLines(event, elements, meant(index), index, {
        moved: (to) => move(index, to),
        clicked: (event) => acts.choose(index, event),
      })
    },
    choose(index, event) {
      if (index === null) return choose(new Set())
      if (event.shiftKey) return choose(chosenUpTo(chosen, Math.min(anchor, rows.length - 1), index))
      anchor = index
      choose(toggled(chosen, index))
    },
    strength(index, name) {
      const from = rows
      const these = new Set([...meant(index)].filter((at) => lines[at].has(name)))
      /** @param {(value: number | string) => number | string} change */
      const changed = (change) => {
        if (name !== "video" && name !== "audio") return withStrength(from, these, name, change)
        return from.map((row, at) => (these.has(at) ? withSignal(row, name, change(signalOf(row, name))) : row))
      }
      const by = (/** @type {number} */ amount) =>
        changed((value) => {
          const number = readNumber(String(value))
          return Number.isNaN(number) ? value : shifted(number, amount, bounds)
        })
      return {
        type: (value) => set(changed(() => value)),
        say(words) {
          refused = new Map(
            words ? [[index, { row: JSON.stringify(rows[index]), why: { reason: words, details: "" }, typed: true }]] : [],
          )
          show(rows)
        },
        step: () => ({ by: (amount) => set(by(amount)), end: settling(begin()) }),
        preview() {
          let made = from
          return {
            by: (amount) => show((made = amount ? by(amount) : from)),
            end: settling(() => void (made !== from && set(made))),
          }
        },
        undo,
      }
    },
  }

  /**
   * A function that calls `end`, the end of a change of a strength, and then resolves `settled`.
   *
   * @param {() => void} end
   */
  function settling(end) {
    let settle = () => {}
    settled = new Promise((resolve) => (settle = resolve))
    return () => {
      end()
      settle()
    }
  }

  /**
   * The item that switches the sound or the picture of a row off, or on again.
   *
   * @param {number} index
   * @param {import("./state.js").Signal} signal
   * @returns {import("./menu.js").Item}
   */
  function signalItem(index, signal) {
    const off = signalOf(rows[index], signal) === 0
    const words =
      signal === "audio" ? (off ? t("Sound on") : t("Sound off")) : off ? t("Picture on") : t("Picture off")
    return [words, () => acts.change(index, withSignal(rows[index], signal, off ? 1 : 0))]
  }

  /**
   * @param {number} index
   * @param {import("./server.js").About["expert"]} expert the expert that the row's file is for
   * @returns {import("./menu.js").Item[]}
   */
  function pairItems(index, expert) {
    const row = rows[index]
    const { file, low_noise: low } = row
    const split = () => set(rows.toSpliced(index, 1, withFiles(row, { file }), withFiles(row, { file: low ?? file })))
    const isLow = !low && expert === "low noise"
    const pick = (/** @type {string} */ other) =>
      void changeRow(row, index, (found) =>
        withFiles(found, isLow ? { file: other, low_noise: file } : { file, low_noise: other }),
      )
    const choose = () => openPicker({ current: low ?? file, model: model(), pick }, asideOf(index))
    return [
      ...(low || expert
        ? [/** @type {import("./menu.js").Item} */ ([isLow ? t("File for high noise…") : t("File for low noise…"), choose])]
        : []),
      ...(low ? [/** @type {import("./menu.js").Item} */ ([t("Split into two rows"), split])] : []),
    ]
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
      [t("Copy rows"), rows.length ? () => copy(point) : null],
      [t("Paste rows…"), () => askText({ title: t("Paste rows"), hint, button: t("Add rows"), done: paste }, point)],
      [t("Sets of rows…"), () => void openSets(rows, (found, added) => set(added ? [...rows, ...found] : found), point)],
      [t("Select all"), rows.length ? () => choose(new Set(rows.keys())) : null],
      [t("Remove all"), rows.length ? () => set([]) : null],
    ]
  }

  /**
   * Copy the rows that are selected, or all, for *Paste rows…* here or elsewhere.
   *
   * @param {Point} point
   */
  async function copy(point) {
    const copied = rows.filter((_, index) => !chosen.size || chosen.has(index))
    const text = formatRows(copied)
    // Only pages over https or on this machine have a clipboard.
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text)
      const summary = t("Rows copied: {count}", { count: copied.length })
      return app.extensionManager.toast.add({ severity: "success", summary, life: 2000 })
    }
    const hint = t("No clipboard here: select the words")
    askText({ title: t("Copy rows"), hint, text, button: t("Done"), done: () => {} }, point)
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

  /** Show the rows of the text. A text in another form is first read by the server. */
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
    reached = null
    // Rows are selected by their places.
    if (found.length !== rows.length) chosen = new Set()
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
    chosenCount.hidden = !chosen.size
    chosenCount.textContent = `${t("{count} selected", { count: chosen.size })} ✕`
    modelHead.textContent = separate ? t("model") : t("strength")
    modelHead.hidden = !rows.length
    clipHead.hidden = !separate
    if (rows.length) showLines(separate)
    else say(linked ? t("Another node gives the rows.") : t("No rows yet."))
    setHeight()
  }

  /** @param {boolean} separate */
  function showLines(separate) {
    // Lines replace the words for an empty list.
    if (!lines.length) body.replaceChildren()
    while (lines.length > rows.length) {
      const line = lines.pop()
      line?.close()
      line?.element.remove()
      line?.reason.remove()
    }
    while (lines.length < rows.length) {
      const line = createLine(acts, bounds)
      lines.push(line)
      body.append(line.element, line.reason)
    }
    for (const [index, line] of lines.entries()) {
      line.update(index, rows[index], separate, chosen.has(index))
      line.blame(reasonOf(index), !refused.get(index)?.typed && isOn(rows[index]))
    }
    countFiles()
  }

  /** Mark the rows whose file is on in several rows. */
  async function countFiles() {
    const counted = rows
    const found = async (/** @type {string} */ file) => (await aboutFile(file)).file ?? file
    const files = await Promise.all(
      rows.map((row) => Promise.all(isOn(row) ? filesOf(row).filter(Boolean).map(found) : [])),
    )
    if (counted !== rows) return
    const times = (/** @type {string} */ file) => files.flat().filter((other) => other === file).length
    for (const [index, line] of lines.entries()) line.showTimes(Math.max(0, ...files[index].map(times)))
  }

  /**
   * Take the other file of a pair into a row, if the names leave no doubt and no row has both. If a row has both
   * already, an added row is removed, and a row whose file was replaced stays as it is.
   *
   * The row is shown before the server has answered.
   *
   * @param {import("./state.js").Row} row
   * @param {boolean} added
   */
  async function joinPair(row, added) {
    const { pair } = await aboutFile(row.file)
    await settled
    const index = rows.findLastIndex((other) => JSON.stringify(other) === JSON.stringify(row))
    if (!pair?.sure || index < 0) return
    const there = rows.some((other) => other.file === pair.file && other.low_noise === pair.low_noise)
    if (!there) acts.join(index, pair)
    else if (added) set(rows.toSpliced(index, 1))
  }

  /**
   * Add a row for a file.
   *
   * @param {string} file
   */
  function addFile(file) {
    const row = newRow(file)
    set([...rows, row])
    void joinPair(row, true)
  }

  /** Why a row was refused, as long as it is unchanged. */
  function reasonOf(/** @type {number} */ index) {
    const found = refused.get(index)
    return found && found.row === JSON.stringify(rows[index]) ? found.why : null
  }

  /** Ask why a run stops at the rows, and show it in place of the last reasons. Returns whether any row has a reason. */
  async function explain() {
    if (isLinked()) return false
    const asked = rows
    blame(asked, await refusedRows(read()))
    return refused.size > 0
  }

  /**
   * Show reasons on the rows that they are for.
   *
   * @param {Row[]} asked the rows that the server was asked about
   * @param {import("../routes.js").RefusedRow[]} reasons
   */
  function blame(asked, reasons) {
    refused = new Map(reasons.map(({ index, ...why }) => [index, { row: JSON.stringify(asked[index]), why }]))
    // The cached facts of their files may be out of date.
    for (const index of refused.keys()) if (index in rows) filesOf(rows[index]).forEach(forgetFile)
    if (rows.length) show(rows)
    const first = lines[Math.min(...refused.keys())]
    if (first) body.scrollTop += first.element.getBoundingClientRect().top - body.getBoundingClientRect().top
  }

  /** @param {string} words */
  function say(words) {
    body.replaceChildren(make("div", { class: "lycoris-hint", textContent: words }))
    for (const line of lines.splice(0)) line.close()
  }

  function setHeight() {
    // If the list scrolls, the wheel is for it; otherwise the wheel zooms the canvas.
    const shown = rows.reduce((sum, _, index) => sum + 1 + heightOf(reasonOf(index)), 0)
    if (shown > MOST) body.dataset.captureWheel = "true"
    else delete body.dataset.captureWheel
    // With its head and foot.
    const needed = line * (2 + Math.min(Math.max(shown, 1), MOST))
    if (needed === height) return
    height = needed
    element.style.minHeight = `${height}px`
    resized()
  }

  all.onclick = leave
  all.onchange = () => set(rows.map((row) => ({ ...row, on: all.checked })))
  chosenCount.onclick = () => choose(new Set())
  more.onclick = () => openMenu(common(below(more)), below(more))
  add.onclick = () => openPicker({ many: true, model: model(), pick: addFile }, beside(element, add))
  for (const part of [head, body, foot]) shareWheel(part)
  // Where Vue draws the node, only an element that has the focus gets the wheel.
  body.tabIndex = -1
  body.onpointerenter = () => {
    const free = document.activeElement === document.body || document.activeElement?.tagName === "CANVAS"
    if (free && body.dataset.captureWheel) body.focus({ preventScroll: true })
  }
  body.onpointerleave = () => body.blur()

  const close = () => {
    for (const line of lines) line.close()
    closePopup()
    hidePreview()
  }
  return { element, height: () => height, draw, explain, clear: () => blame([], []), close }
}
