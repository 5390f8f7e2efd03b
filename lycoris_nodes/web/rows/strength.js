// A field for a strength.

import { make } from "../elements.js"
import { t } from "../language.js"
import { readNumber, shownNumber } from "./typed.js"

/**
 * A field for a strength. What cannot be read as one stays as it was typed, in red, and `changed` gets it as a text.
 *
 * @param {string} label
 * @param {{min: number, max: number, step: number}} bounds
 * @param {(value: number | string) => void} changed
 */
export function strengthField(label, { min, max, step }, changed) {
  const field = make("input", { type: "text", inputMode: "decimal", class: "lycoris-number", "aria-label": label })
  /** @type {number | string} */
  let value = 0
  const read = (/** @type {string} */ text) => {
    const number = readNumber(text)
    return number >= min && number <= max ? number : NaN
  }
  const show = (/** @type {number | string} */ given) => {
    value = given
    field.value = typeof given === "number" ? shownNumber(given) : given
    const wrong = Number.isNaN(read(String(given)))
    field.classList.toggle("lycoris-wrong", wrong)
    field.title = wrong ? t("{label}: a number from {min} to {max} is expected", { label, min, max }) : label
  }
  const set = (/** @type {number | string} */ given) => {
    show(given)
    changed(given)
  }
  const move = (/** @type {number} */ way) => {
    const number = read(field.value)
    if (!Number.isNaN(number)) set(Math.min(max, Math.max(min, Number((number + way * step).toFixed(2)))))
  }
  field.onchange = () => {
    const typed = field.value.trim()
    const number = read(typed)
    if (typed) set(Number.isNaN(number) ? typed : number)
    else show(value)
  }
  field.onkeydown = (event) => {
    const way = event.key === "ArrowUp" ? 1 : event.key === "ArrowDown" ? -1 : 0
    if (way) {
      event.preventDefault()
      move(way)
    }
    if (event.key === "Enter") field.blur()
    event.stopPropagation()
  }
  /** @type {(sign: string, words: string, way: number) => HTMLButtonElement} */
  const arrow = (sign, words, way) =>
    make("button", { type: "button", tabIndex: -1, textContent: sign, title: words, onclick: () => move(way) })
  const [up, down] = [arrow("▴", t("{step} more", { step }), 1), arrow("▾", t("{step} less", { step }), -1)]
  const arrows = make("span", { class: "lycoris-arrows" }, up, down)
  return { element: make("span", { class: "lycoris-strength" }, field, arrows), show }
}
