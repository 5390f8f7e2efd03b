// The picture of a file while the pointer is on its name.

import { make } from "../elements.js"
import { previewOf } from "./server.js"

const DELAY = 250
const GAP = 8
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer
/** @type {HTMLImageElement | null} */
let shown = null

export function hidePreview() {
  clearTimeout(timer)
  shown?.remove()
  shown = null
}

/**
 * Show the preview of `fileOf()` beside an element while the pointer is on it, if there is one.
 *
 * @param {HTMLElement} element
 * @param {() => string} fileOf
 */
export function previewOnHover(element, fileOf) {
  element.addEventListener("pointerleave", hidePreview)
  element.addEventListener("pointerdown", hidePreview)
  element.addEventListener("pointerenter", () => {
    hidePreview()
    timer = setTimeout(() => {
      const picture = make("img", { class: "lycoris-preview", src: previewOf(fileOf()), alt: "" })
      picture.onload = () => {
        if (shown !== picture || !element.isConnected) return
        const { left, right, top } = element.getBoundingClientRect()
        document.body.append(picture)
        const { width, height } = picture.getBoundingClientRect()
        const fits = right + GAP + width < innerWidth
        picture.style.left = `${fits ? right + GAP : Math.max(0, left - GAP - width)}px`
        picture.style.top = `${Math.max(0, Math.min(top, innerHeight - height - GAP))}px`
      }
      shown = picture
    }, DELAY)
  })
}
