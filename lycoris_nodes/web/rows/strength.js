// A field for a strength: it is dragged to the left and to the right, or clicked to type.

import { make } from "../elements.js"
import { t } from "../language.js"
import { STEPS, pieces, shifted, stepOf } from "./steps.js"
import { readNumber, shownNumber } from "./typed.js"

/** How many pixels the pointer moves for one step, and before a press counts as a drag. */
const WAY = 4
const STILL = 3
/** How far a wheel turns for a step: wheels report 100 or more a notch, touch pads a little at a time. */
const NOTCH = 40
/** After this many milliseconds without a turn or key, the next change is a new step for Undo. */
const PAUSE = 600

/**
 * An ongoing change: `by` sets the strength to its first value plus an amount.
 *
 * @typedef {{by: (amount: number) => void, end: () => void}} Change
 */

/**
 * What a field changes. Each change is one step for Undo: a `step` takes effect at once, a `preview` at its end. `say`
 * shows words at the row, until they are empty or the row changes.
 *
 * @typedef {{
 *   type: (value: number) => void,
 *   say: (words: string) => void,
 *   step: () => Change,
 *   preview: () => Change,
 *   undo: (again: boolean) => void,
 * }} Strength
 */

/**
 * A field for a strength. What cannot be read as one is not taken: on leaving the field, the value before comes back.
 *
 * @param {string} label
 * @param {{min: number, max: number}} bounds
 * @param {Strength} strength
 */
export function strengthField(label, bounds, strength) {
  const { min, max } = bounds
  const field = make("input", { type: "text", inputMode: "decimal", class: "lycoris-number", "aria-label": label })
  const less = make("button", { type: "button", tabIndex: -1, textContent: "◂" })
  const more = make("button", { type: "button", tabIndex: -1, textContent: "▸" })
  less.title = t("{step} less", { step: STEPS.usual })
  more.title = t("{step} more", { step: STEPS.usual })
  const element = make("span", { class: "lycoris-strength" }, less, field, more)
  /** @type {number | string} */
  let value = 0
  // Whether the row shows words about what was typed here.
  let said = false
  /** @type {Change & {start: number, amount: number} | null} */
  let change = null
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let pause
  // Cancels the ongoing drag, if there is one.
  let drop = () => {}

  const read = (/** @type {string} */ text) => {
    const number = readNumber(text)
    return number >= min && number <= max ? number : NaN
  }
  const shown = () => (typeof value === "number" ? shownNumber(value) : value)
  const isTyped = () => document.activeElement === field && field.value !== shown()

  const show = (/** @type {number | string} */ given) => {
    const typing = isTyped()
    value = given
    if (!typing) field.value = shown()
    mark(String(given))
  }

  /** Show it in red if it is no strength. */
  const mark = (/** @type {string} */ text) => {
    const wrong = Number.isNaN(read(text))
    field.classList.toggle("lycoris-wrong", wrong)
    field.title = wrong
      ? t("{label}: a number from {min} to {max} is expected", { label, min, max })
      : t("{label}: drag, or click to type. Once clicked, arrow keys and wheel: {usual} a step, Shift {fine}, Ctrl {coarse}", {
          label,
          ...STEPS,
        })
  }

  const restore = () => {
    field.value = shown()
    mark(String(value))
  }

  const end = () => {
    clearTimeout(pause)
    change?.end()
    change = null
  }

  /** @type {(amount: number, begin: () => Change) => void} `begin` is called unless a change is ongoing */
  const move = (amount, begin) => {
    const start = change?.start ?? read(String(value))
    if (Number.isNaN(start)) return
    change ??= { start, amount: 0, ...begin() }
    change.amount = shifted(start, change.amount + amount, bounds) - start
    change.by(change.amount)
  }

  /** Change it by a key or the wheel: a few in a row are one step for Undo. */
  const nudge = (/** @type {number} */ amount) => {
    if (isTyped()) commit()
    move(amount, strength.step)
    clearTimeout(pause)
    pause = setTimeout(end, PAUSE)
  }

  const commit = () => {
    end()
    const typed = field.value.trim()
    const number = read(typed)
    if (said) strength.say("")
    said = false
    if (!typed || typed === shown()) return restore()
    if (!Number.isNaN(number)) return strength.type(number)
    restore()
    said = true
    strength.say(t("{typed} is no number from {min} to {max}, so {value} stays.", { typed, min, max, value: shown() }))
  }

  const edit = () => {
    field.focus()
    field.select()
  }

  field.onchange = commit
  field.onfocus = () => (field.dataset.captureWheel = "true")
  field.onblur = () => {
    delete field.dataset.captureWheel
    end()
  }
  field.ondblclick = () => field.select()
  field.onkeydown = (event) => {
    const { key } = event
    const way = key === "ArrowUp" ? 1 : key === "ArrowDown" ? -1 : 0
    if (way) nudge(way * stepOf(event))
    else if (key === "Enter") field.blur()
    else if (key === "Escape") {
      restore()
      field.blur()
    } else if ((event.ctrlKey || event.metaKey) && /^[zy]$/iu.test(key) && !isTyped()) {
      field.blur()
      strength.undo(key.toLowerCase() === "y" || event.shiftKey)
    } else return event.stopPropagation()
    event.preventDefault()
    event.stopPropagation()
  }

  const turned = pieces(NOTCH)
  field.addEventListener("wheel", (event) => {
    if (document.activeElement !== field) return
    event.preventDefault()
    event.stopPropagation()
    // With Shift, browsers turn the wheel sideways.
    const way = event.deltaY || event.deltaX
    const notches = turned(event.deltaMode ? way * NOTCH : way)
    if (notches) nudge(-Math.sign(notches) * stepOf(event))
  })

  element.onpointerdown = (event) => {
    const { target, clientX: from, pointerId } = event
    // While something is typed, the pointer is for the text.
    if (event.button !== 0 || !event.isPrimary || isTyped()) return
    if (document.activeElement !== field) {
      event.preventDefault()
      if (document.activeElement instanceof HTMLElement) document.activeElement.blur()
    }
    const gone = pieces(WAY)
    let last = from
    let dragged = false
    element.setPointerCapture(pointerId)
    element.onpointermove = (event) => {
      if (!dragged && Math.abs(event.clientX - from) < STILL) return
      if (!dragged) {
        dragged = true
        end()
        field.blur()
        element.classList.add("lycoris-dragging")
      }
      const steps = gone(event.clientX - last)
      last = event.clientX
      if (steps) move(steps * stepOf(event), strength.preview)
    }
    const release = () => {
      element.onpointermove = element.onpointerup = element.onlostpointercapture = null
      removeEventListener("keydown", onEscape, true)
      element.classList.remove("lycoris-dragging")
      drop = () => {}
      end()
    }
    drop = () => {
      change?.by(0)
      release()
    }
    const onEscape = (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Escape") return
      event.preventDefault()
      event.stopPropagation()
      drop()
    }
    addEventListener("keydown", onEscape, true)
    element.onlostpointercapture = drop
    element.onpointerup = () => {
      release()
      if (dragged) return
      if (target === field) {
        if (document.activeElement !== field) edit()
      } else if (target === less || target === more) {
        move((target === more ? 1 : -1) * stepOf(event), strength.step)
        end()
      }
    }
  }
  // A press that is not for the text must not select it.
  element.onmousedown = (event) => {
    if (document.activeElement !== field) event.preventDefault()
  }
  const close = () => {
    drop()
    end()
  }
  return { element, show, close }
}
