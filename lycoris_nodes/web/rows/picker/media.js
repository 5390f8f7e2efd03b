// Pictures and clips of files.

import { make } from "../../elements.js"
import { previewOf } from "../server.js"

/**
 * The picture or the clip of a file, which removes itself where it cannot be shown.
 *
 * @param {string} file
 * @param {string} preview "picture" or "clip"
 * @param {boolean} plays whether a clip plays by itself
 */
export function mediaOf(file, preview, plays) {
  const source = previewOf(file)
  const clip = () => make("video", { muted: true, loop: true, playsInline: true, autoplay: plays, src: source })
  const element = preview === "clip" ? clip() : make("img", { src: source, alt: "", draggable: false })
  element.onerror = () => element.remove()
  return element
}
