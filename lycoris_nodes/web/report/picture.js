// The drawing of a report: in the colours of the page, and large after a click.

import { make } from "../elements.js"
import { t, told } from "../language.js"

/**
 * @param {string} svg
 * @returns {Element}
 */
function drawingOf(svg) {
  const drawing = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement
  for (const text of drawing.querySelectorAll("text")) {
    const words = text.lastChild
    if (!(words instanceof Text)) continue
    const own = told(words.data)
    if (own === words.data) continue
    words.data = own
    // The server computed the length for the English text.
    text.removeAttribute("textLength")
  }
  return drawing
}

/** @param {string} svg */
function showLarge(svg) {
  const dialog = make("dialog", { class: "lycoris-large" })
  dialog.append(drawingOf(svg))
  dialog.addEventListener("click", () => dialog.close())
  dialog.addEventListener("close", () => dialog.remove())
  document.body.append(dialog)
  dialog.showModal()
}

/**
 * @param {string} svg as the server draws it, in which all texts are escaped
 */
export function pictureOf(svg) {
  const element = make("div", { class: "lycoris-drawing", title: t("Click to see it large") }, drawingOf(svg))
  element.addEventListener("click", () => showLarge(svg))
  return element
}
