// A panel in which the block weights of a row are painted as bars, beside the text of their rules. A press outside of
// it keeps the text, even one with an error; Escape leaves the row as it was.

import { make, nameParts } from "../elements.js"
import { t } from "../language.js"
import { labelOf, shownWeight } from "./blocks.js"
import { followBars, paintedBy, weighedBy } from "./blocksserver.js"
import { splitName } from "./names.js"
import { closePopup, openPopup } from "./popup.js"

/** @typedef {import("./blocks.js").Bar} Bar */
/** @typedef {import("./blocks.js").Group} Group */

const STEP = 0.05
const FINE = 0.01
/** A fine drag has to go this many times as far for the same change. */
const SLOWER = 5
/** A drag within this distance of 1 snaps to it. */
const SNAP = 0.03
const HIGHEST = 1.5
/** How long a pause in typing is, in milliseconds. */
const PAUSE = 150
/** With more bars than this in a group, only every fifth number is shown. */
const NUMBERED = 24

/** @param {string} sort */
function titleOf(sort, /** @type {string} */ name) {
  if (sort === "kinds") return t("kinds of layers")
  if (sort === "beside") return t("beside the blocks")
  return sort === "text" ? t("text encoder {name}", { name }) : name
}

/** @param {number} share */
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`

/**
 * @param {{
 *   file: string, text: string, model: import("./model.js").Model, unsuited: string | null,
 *   done: (text: string) => void,
 * }} row `done` gets the new text if it differs
 * @param {import("./popup.js").Place} point
 */
export function openBlocks({ file, text: before, model, unsuited, done }, point) {
  const question = { file, model: model.names.model, clip: model.names.clip }
  const ended = new AbortController()
  /** @type {Group[]} */
  let groups = []
  /** @type {Map<string, {bar: Bar, group: Group, element: HTMLElement, fill: HTMLElement, input: HTMLInputElement}>} */
  const bars = new Map()
  /** @type {Record<string, [mean: number, least: number, most: number]>} */
  let weights = {}
  /** The factor of each kind. @type {Record<string, number>} */
  let kinds = {}
  /** The bars that have been set and do not stand in the text yet. @type {Map<string, number>} */
  const set = new Map()
  /** Resolves when they do. @type {Promise<void> | null} */
  let writing = null
  /** @type {string[]} */
  const past = []
  /** @type {string[]} */
  let future = []
  let shown = before
  /** The bar that the bottom line is about. */
  let shownBar = ""
  let [low, high] = [0, HIGHEST]

  const source = make("div", { class: "lycoris-hint", textContent: t("Reading the blocks ...") })
  const presets = make("select", { "aria-label": t("Presets") })
  const undo = make("button", { type: "button", class: "lycoris-button", textContent: "↶", title: t("Undo") })
  const ones = make("button", { type: "button", class: "lycoris-button", textContent: t("All 1") })
  ones.title = t("Take out all rules")
  const field = make("div", { class: "lycoris-block-groups" })
  const legend = make("div", { class: "lycoris-block-legend" })
  const readout = make("div", { class: "lycoris-block-readout" })
  const area = make("textarea", { value: before, spellcheck: false, rows: 12, "aria-label": t("Block rules of this row") })
  area.placeholder = t("No rules: every block has the weight 1.")
  const problem = make("div", { class: "lycoris-problem" })
  const remarks = make("div", { class: "lycoris-hint" })
  const keep = make("button", { type: "button", class: "lycoris-button", textContent: t("Done") })
  const title = make("b", {}, ...nameParts(splitName(file)))
  const panel = make(
    "div",
    { class: "lycoris-blocks", role: "dialog", "aria-label": t("Block weights") },
    make("div", { class: "lycoris-blocks-head" }, title, source, presets, ones, undo),
    make("div", { class: "lycoris-blocks-bars" }, field, legend, readout),
    make("div", { class: "lycoris-blocks-text" }, area, problem, remarks, keep),
  )
  const hint = t("Drag to paint, Shift for fine. Double click sets 1, right click 0. Escape leaves the row as it was.")

  /** @param {{bar: Bar, group: Group}} one */
  function valueOf({ bar, group }) {
    return (group.sort === "kinds" ? kinds[bar.name] : weights[bar.name]?.[0]) ?? 1
  }

  /** @param {string} name */
  function tell(name) {
    const found = bars.get(name)
    if (!found) return
    shownBar = name
    const { bar, group } = found
    const mixed = group.sort !== "kinds" && mixedIn(name)
    const parts = [
      mixed ? t("{least} to {most}", { least: mixed[0], most: mixed[1] }) : shownWeight(valueOf(found)),
      bar.mine ? t("{share} of the change", { share: percent(bar.share) }) : t("the file has no layer here"),
      bar.mine ? t("{mine} of {layers} layers", { mine: bar.mine, layers: bar.layers }) : "",
    ]
    readout.replaceChildren(make("b", { textContent: name }), ` ${parts.filter(Boolean).join(" · ")}`)
  }

  /** @param {string} name */
  function mixedIn(name) {
    const [, least, most] = weights[name] ?? [1, 1, 1]
    return most - least > 1e-6 ? [shownWeight(least), shownWeight(most)] : null
  }

  /**
   * The largest share of a kind, or else of a block.
   *
   * @param {"kinds" | "blocks"} sort
   */
  function topOf(sort) {
    const some = groups.filter((group) => (group.sort === "kinds") === (sort === "kinds"))
    return Math.max(...some.flatMap((group) => group.bars.map(({ share }) => share)), 1e-9)
  }

  /** Show the weights of all bars. */
  function draw() {
    // A kind is a larger part of the model than a block, so kinds have a scale of their own.
    const most = { kinds: topOf("kinds"), blocks: topOf("blocks") }
    for (const { bar, group, element, fill, input } of bars.values()) {
      const value = valueOf({ bar, group })
      const place = (/** @type {number} */ at) => (100 * (Math.min(high, Math.max(low, at)) - low)) / (high - low)
      const [from, to] = [place(Math.min(0, value)), place(Math.max(0, value))]
      fill.style.bottom = `${from}%`
      fill.style.height = `${Math.max(1.5, to - from)}%`
      element.style.setProperty("--share", `${(100 * bar.share) / most[group.sort === "kinds" ? "kinds" : "blocks"]}%`)
      element.style.setProperty("--one", `${place(1)}%`)
      element.classList.toggle("lycoris-block-empty", !bar.mine)
      element.classList.toggle("lycoris-block-mixed", group.sort !== "kinds" && mixedIn(bar.name) !== null)
      element.dataset.weight = shownWeight(value)
      Object.assign(input, { min: String(low), max: String(high), value: String(value) })
    }
    if (shownBar) tell(shownBar)
  }

  function fitScale() {
    const values = Object.values(weights).map(([mean]) => mean)
    low = Math.min(0, Math.floor(Math.min(0, ...values)))
    high = Math.max(HIGHEST, Math.ceil(2 * Math.max(0, ...values)) / 2)
  }

  /** @param {Group} group */
  function groupElement(group) {
    const made = group.bars.map((bar) => {
      const fill = make("i")
      const track = make("span", { class: "lycoris-block-track" }, fill)
      const number = Number(bar.name.split(".").at(-1))
      const plain = group.bars.length <= NUMBERED || Number.isNaN(number) || number % 5 === 0
      const label = make("span", { class: "lycoris-block-label", textContent: plain ? labelOf(bar, group) : "" })
      // An input, because the front end leaves Ctrl+Z alone while one has the focus.
      const input = make("input", { type: "range", tabIndex: -1, step: String(FINE), "aria-label": bar.name })
      const element = make("div", { class: "lycoris-block", data: { bar: bar.name } }, input, track, label)
      element.onpointerenter = input.onfocus = () => tell(bar.name)
      bars.set(bar.name, { bar, group, element, fill, input })
      return element
    })
    const inner = make("div", { class: "lycoris-block-row" }, ...made)
    const words = titleOf(group.sort, group.name)
    const whole = make("div", { class: `lycoris-block-group lycoris-block-${group.sort}` }, inner)
    whole.append(make("div", { class: "lycoris-block-title", textContent: words, title: words }))
    whole.style.setProperty("--count", String(group.bars.length))
    return whole
  }

  /** @param {import("./blocksserver.js").Bars} found */
  function showBars(found) {
    if (found.error) {
      source.textContent = ""
      problem.textContent = found.error
      return
    }
    if (!groups.length) {
      groups = found.groups
      field.replaceChildren(...groups.map(groupElement))
      const [first] = bars.values()
      if (first) first.input.tabIndex = 0
      readout.textContent = hint
      check()
    }
    for (const group of found.groups) {
      for (const bar of group.bars) Object.assign(bars.get(bar.name)?.bar ?? {}, bar)
    }
    source.textContent = sourceOf(found)
    const top = topOf("blocks")
    const measured = found.of ? t("measured: {part}", { part: percent(found.done / found.of) }) : ""
    const rest = found.unmeasured
      ? t("{count} changes depend on the weights of the model and are not counted", { count: found.unmeasured })
      : ""
    legend.replaceChildren(
      make("span", { textContent: t("share of a block in the file's change: 0 %") }),
      make("span", { class: "lycoris-block-scale" }),
      make("span", { textContent: percent(top) }),
      make("span", { textContent: found.done < found.of ? measured : rest }),
    )
    legend.style.visibility = top < 1e-6 ? "hidden" : "visible"
    if (presets.options.length < 2) {
      const names = Object.keys(found.presets)
      const nothing = make("option", { value: "", textContent: t("Presets…") })
      presets.replaceChildren(nothing, ...names.map((name) => make("option", { value: name, textContent: name })))
    }
    draw()
    popup.moved()
  }

  /** @param {import("./blocksserver.js").Bars} found */
  function sourceOf({ model: name, connected }) {
    if (unsuited) return unsuited
    const shortName = name.slice(name.indexOf("/") + 1)
    if (connected) return t("Blocks of {name}", { name: shortName })
    if (name) return t("No model is connected: blocks of {name}", { name: shortName })
    return t("No model is connected: the blocks that the file names")
  }

  /** Ask what the text means, and show it. */
  async function check() {
    const text = area.value
    const found = await weighedBy(question, text)
    // What is painted is on the bars first, and then in the text.
    if (text !== area.value || writing || ended.signal.aborted) return
    problem.textContent = found.error ?? ""
    remarks.replaceChildren()
    area.classList.toggle("lycoris-wrong", Boolean(found.error))
    panel.classList.toggle("lycoris-blocks-wrong", Boolean(found.error))
    if (!found.error) {
      // A copy, because painting changes it.
      weights = { ...found.weights }
      kinds = { ...found.kinds }
      if (!dragging) fitScale()
      const mixed = [...bars.keys()].some((name) => bars.get(name)?.group.sort !== "kinds" && mixedIn(name))
      const kept = t("Some lines weigh single layers: striped bars show the mean, and these lines stay as they are.")
      remarks.replaceChildren(...[mixed ? kept : "", ...found.idle].filter(Boolean).map((words) => make("div", { textContent: words })))
    }
    draw()
    if (!dragging) popup.moved()
  }

  /** Close, unless the text cannot be read: its problem is shown then. */
  async function finish() {
    clearTimeout(timer)
    await writing
    await check()
    if (!ended.signal.aborted && !area.classList.contains("lycoris-wrong")) closePopup()
    else area.focus()
  }

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer
  const checkSoon = () => {
    clearTimeout(timer)
    timer = setTimeout(check, PAUSE)
  }

  function remember() {
    if (shown === area.value) return
    past.push(shown)
    future = []
    shown = area.value
    undo.disabled = false
  }

  /** @param {string} text */
  function setText(text) {
    area.value = text
    remember()
    check()
  }

  /**
   * @param {string[]} from
   * @param {string[]} to
   */
  async function step(from, to) {
    await writing
    remember()
    const text = from.pop()
    if (text === undefined) return
    to.push(shown)
    shown = area.value = text
    undo.disabled = !past.length
    check()
  }

  /** @param {Map<string, number>} changes */
  function paint(changes) {
    for (const [name, value] of changes) {
      set.set(name, value)
      if (bars.get(name)?.group.sort === "kinds") kinds[name] = value
      else weights[name] = [value, value, value]
    }
    problem.textContent = ""
    draw()
    writing ??= write()
  }

  /** Let the server write what is painted into the text. What is typed meanwhile stays. */
  async function write() {
    try {
      while (set.size) {
        const text = area.value
        const changes = new Map(set)
        set.clear()
        const { rules, error } = await paintedBy(question, text, changes)
        if (error) problem.textContent = error
        else if (text === area.value) area.value = rules
      }
    } catch (error) {
      problem.textContent = String(error)
    }
    writing = null
    checkSoon()
  }

  /** Make what has been painted a step for Undo. */
  async function painted() {
    await writing
    remember()
    check()
  }

  /** @type {{line: HTMLElement[], last: number, fixed: number | null, y: number, value: number, fine: boolean} | null} */
  let dragging = null
  const elements = () => [...bars.values()].map(({ element }) => element)
  const nameOf = (/** @type {HTMLElement} */ element) => element.dataset.bar ?? ""
  const barAt = (/** @type {Event} */ { target }) =>
    /** @type {HTMLElement | null} */ (/** @type {Element} */ (target).closest?.(".lycoris-block"))

  /** @param {PointerEvent} event */
  function valueAt({ clientY, shiftKey }) {
    if (!dragging) return 1
    if (dragging.fixed !== null) return dragging.fixed
    const track = /** @type {Element} */ (dragging.line[0].querySelector(".lycoris-block-track"))
    const { top, height } = track.getBoundingClientRect()
    const within = (/** @type {number} */ value) => Math.min(high, Math.max(low, value))
    const rounded = (/** @type {number} */ value, /** @type {number} */ to) => Number((Math.round(value / to) * to).toFixed(3))
    if (shiftKey !== dragging.fine) Object.assign(dragging, { fine: shiftKey, y: clientY })
    if (shiftKey) {
      const moved = ((dragging.y - clientY) / height) * (high - low)
      return rounded(within(dragging.value + moved / SLOWER), FINE)
    }
    const value = rounded(within(high - ((clientY - top) / height) * (high - low)), STEP)
    dragging.value = Math.abs(value - 1) < SNAP ? 1 : value
    return dragging.value
  }

  /** @param {PointerEvent} event */
  function drag(event) {
    if (!dragging) return
    const { line, last } = dragging
    const { clientX } = event
    const inside = line.findIndex((element) => clientX < element.getBoundingClientRect().right)
    const here = inside < 0 ? line.length - 1 : inside
    const value = valueAt(event)
    // A fast pointer skips bars.
    const [from, to] = [Math.min(last, here), Math.max(last, here)]
    const passed = line.slice(from, to + 1).filter((_, at) => last === here || from + at !== last)
    paint(new Map(passed.map((element) => [nameOf(element), value])))
    dragging.last = here
    tell(nameOf(line[here]))
  }

  field.onpointerdown = (event) => {
    const element = barAt(event)
    if (!element || event.button === 1) return
    event.preventDefault()
    const found = bars.get(nameOf(element))
    found?.input.focus({ preventScroll: true })
    const { top } = element.getBoundingClientRect()
    const line = elements().filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 4)
    const value = found ? valueOf(found) : 1
    const fixed = event.button === 2 ? 0 : null
    dragging = { line, last: line.indexOf(element), fixed, y: event.clientY, value, fine: event.shiftKey }
    field.setPointerCapture(event.pointerId)
    drag(event)
  }
  field.onpointermove = (event) => {
    if (dragging) drag(event)
  }
  field.onpointerup = field.onpointercancel = () => {
    if (!dragging) return
    dragging = null
    void painted()
  }
  // The pressed bar, found by the focus: these events go to the element that captured the pointer.
  const pressed = () => /** @type {HTMLElement | null} */ (document.activeElement?.closest(".lycoris-block") ?? null)
  field.ondblclick = () => {
    const element = pressed()
    if (element) setBar(nameOf(element), 1)
  }
  field.oncontextmenu = (event) => {
    event.preventDefault()
    // A long press of a finger; a mouse has painted already.
    const element = pressed()
    if (element && /** @type {PointerEvent} */ (event).pointerType === "touch") setBar(nameOf(element), 0)
  }

  /**
   * @param {string} name
   * @param {number} value
   */
  function setBar(name, value) {
    paint(new Map([[name, Number(Math.min(value, 100).toFixed(3))]]))
    void painted()
    tell(name)
  }

  field.onkeydown = (event) => {
    const element = barAt(event)
    const found = element && bars.get(nameOf(element))
    if (!element || !found || event.ctrlKey || event.metaKey) return
    const [value, by] = [valueOf(found), event.shiftKey ? FINE : STEP]
    /** @type {Record<string, number>} */
    const set = { ArrowUp: value + by, ArrowDown: value - by, PageUp: value + 0.25, PageDown: value - 0.25, Home: 0, End: 1 }
    /** @type {Record<string, number>} */
    const move = { ArrowLeft: -1, ArrowRight: 1 }
    if (event.key in set) setBar(nameOf(element), Math.min(high, Math.max(low, set[event.key])))
    else if (event.key in move) {
      const all = elements()
      const next = all[all.indexOf(element) + move[event.key]]
      const input = next && bars.get(nameOf(next))?.input
      if (input) {
        found.input.tabIndex = -1
        input.tabIndex = 0
        input.focus()
      }
    } else return
    event.preventDefault()
  }

  area.oninput = checkSoon
  area.onchange = remember
  panel.addEventListener("keydown", (event) => {
    const control = event.ctrlKey || event.metaKey
    const key = event.key.toLowerCase()
    if (control && key === "enter") void finish()
    else if (control && key === "z" && !event.shiftKey) step(past, future)
    else if (control && (key === "y" || key === "z")) step(future, past)
    else return
    event.preventDefault()
  })
  undo.disabled = true
  undo.onclick = () => {
    step(past, future)
    area.focus()
  }
  ones.onclick = () => {
    setText("")
    area.focus()
  }
  keep.onclick = () => void finish()
  presets.onchange = () => {
    if (presets.value) setText(presets.value)
    presets.value = ""
    area.focus()
  }

  const popup = openPopup(panel, point, async (escaped) => {
    ended.abort()
    clearTimeout(timer)
    if (!escaped) await writing
    if (!escaped && area.value.trim() !== before.trim()) done(area.value.trimEnd())
  })
  followBars(question, showBars, ended.signal)
}
