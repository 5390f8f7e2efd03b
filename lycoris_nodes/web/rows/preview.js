// The picture or the clip of a file while the pointer is on its name.

import { mediaOf } from "./picker/media.js"
import { aboutFile } from "./server.js"

const DELAY = 250
/** In pixels: the list is a little narrower than its node. */
const GAP = 16
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
 * Show a preview on the side of a node that has room, at the height of an element in the node.
 *
 * @param {HTMLElement} media
 * @param {HTMLElement} element
 */
function place(media, element) {
  if (shown !== media || !element.isConnected) return
  const node = element.closest(".lycoris-rows") ?? element
  const { left, right } = node.getBoundingClientRect()
  const { top } = element.getBoundingClientRect()
  document.body.append(media)
  const { width, height } = media.getBoundingClientRect()
  const after = right + GAP + width < innerWidth || innerWidth - right > left
  const x = after ? right + GAP : left - GAP - width
  media.style.left = `${Math.max(0, Math.min(x, innerWidth - width))}px`
  media.style.top = `${Math.max(0, Math.min(top, innerHeight - height - GAP))}px`
}

/**
 * Show the preview of `fileOf()` beside the node of an element while the pointer is on it, if there is one.
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
