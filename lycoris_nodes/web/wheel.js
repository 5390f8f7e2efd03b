// The wheel over an element of ours: it scrolls what can scroll and zooms the canvas elsewhere, as over the front
// end's own texts.

import { app } from "../../scripts/app.js"

/** @param {Element} element */
export const canScroll = (element) => element.scrollHeight > element.clientHeight

/** @param {HTMLElement} element */
export function shareWheel(element, scrolls = canScroll) {
  element.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && scrolls(element)) event.stopPropagation()
    // Vue's nodes pass it on by themselves. Otherwise elements lie above the canvas, which would not get the event.
    else if (!LiteGraph.vueNodesMode) {
      event.preventDefault()
      app.canvas.processMouseWheel(event)
    }
  })
}
