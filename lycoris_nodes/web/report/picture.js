// The drawing of a report: in the colours of the page, and large after a click.

import { make } from "../elements.js"
import { t } from "../language.js"

/** @param {string} svg */
const drawingOf = (svg) => new DOMParser().parseFromString(svg, "image/svg+xml").documentElement

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
