// Draws the curves of Schedule LyCORIS Strength below its text, as they are typed.

import { post } from "./ask.js"
import { HEIGHT, picture } from "./curves.js"
import { make } from "./elements.js"
import { onValue, showElement, widgetOf } from "./nodes.js"
import { shareWheel } from "./host.js"

// After this many milliseconds without a key, the server is asked about the text.
const PAUSE = 150

/** @param {string} words */
function fault(words) {
  const element = make("div", { class: "lycoris-curve-error", textContent: words })
  element.style.cssText = "font-size: 11px; color: var(--lycoris-bad); overflow-wrap: anywhere; padding: 4px"
  return element
}

/** @param {GraphNode} node */
export function addPicture(node) {
  const text = widgetOf(node, "curve")
  if (!text) return
  const element = make("div", { class: "lycoris-curve" })
  element.style.cssText = `height: ${HEIGHT}px; overflow: hidden`
  shareWheel(element, () => false)
  showElement(node, "curves", element, { margin: 0, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT })
  // The text is two lines higher than its least height.
  node.setSize([node.size[0], node.computeSize()[1] + 2 * LiteGraph.NODE_WIDGET_HEIGHT])

  let asked = 0
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let waiting
  async function draw() {
    const question = ++asked
    const found = await post("/lycoris/curve", text?.value ?? "")
    // The text may have changed while the server answered.
    if (question !== asked) return
    element.replaceChildren(found.error ? fault(found.error) : picture(found.curves))
  }
  function drawSoon() {
    clearTimeout(waiting)
    waiting = setTimeout(draw, PAUSE)
  }
  onValue(text, drawSoon)
  drawSoon()
}
