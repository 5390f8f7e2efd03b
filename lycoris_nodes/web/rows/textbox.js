// A panel with a text to edit.

import { make } from "../elements.js"
import { closePopup, openPopup } from "./popup.js"

/**
 * Ask for a text. `done` gets it, and may return the promise of an error message, which is shown.
 *
 * @param {{
 *   title: string, hint: string, text?: string, button: string,
 *   done: (text: string) => Promise<string | undefined> | void,
 * }} question
 * @param {import("./popup.js").Point} point
 */
export function askText({ title, hint, text = "", button, done }, point) {
  const area = make("textarea", { value: text, spellcheck: false, rows: 8, "aria-label": title })
  const problem = make("div", { class: "lycoris-problem" })
  const submit = async () => {
    const error = await done(area.value)
    if (error) problem.textContent = error
    else closePopup()
  }
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) submit()
  })
  // A text pasted into an empty field is complete.
  area.addEventListener("paste", () => {
    if (!area.value) requestAnimationFrame(submit)
  })
  openPopup(
    make(
      "div",
      { class: "lycoris-textbox" },
      make("b", { textContent: title }),
      make("div", { class: "lycoris-hint", textContent: hint }),
      area,
      problem,
      make("button", { type: "button", class: "lycoris-button", textContent: button, onclick: submit }),
    ),
    point,
  )
  area.focus()
}
