// The picture or the clip of a file while the pointer is on its name.

import { mediaOf } from "./picker/media.js"
import { aboutFile } from "./server.js"

const DELAY = 250
const GAP = 8
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer
/** What the pointer is on. @type {HTMLElement | null} */
let under = null
/** @type {HTMLElement | null} */
let shown = null

export function hidePreview() {
  clearTimeout(timer)
  shown?.remove()
  under = shown = null
}

/**
 * @param {HTMLElement} media
 * @param {HTMLElement} element
 */
function place(media, element) {
  if (shown !== media || !element.isConnected) return
  const { left, right, top } = element.getBoundingClientRect()
  document.body.append(media)
  const { width, height } = media.getBoundingClientRect()
  const fits = right + GAP + width < innerWidth
  media.style.left = `${fits ? right + GAP : Math.max(0, left - GAP - width)}px`
  media.style.top = `${Math.max(0, Math.min(top, innerHeight - height - GAP))}px`
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
    under = element
    timer = setTimeout(async () => {
      const file = fileOf()
      const { preview } = await aboutFile(file)
      if (!preview || under !== element) return
      const media = mediaOf(file, preview, true)
      media.className = "lycoris-preview"
      media.onload = media.onloadeddata = () => place(media, element)
      shown = media
    }, DELAY)
  })
}
