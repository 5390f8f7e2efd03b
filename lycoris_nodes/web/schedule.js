// Draws the curves of Schedule LyCORIS Strength below its text, as they are typed.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { shareWheel } from "./wheel.js"

const NODE = "LycorisSchedule"
const PICTURE = "curves"
const HEIGHT = 110
// How much higher than its least height the text is at first.
const MORE_TEXT = 40
// Milliseconds without a key after which the text is asked about.
const PAUSE = 150
const COLOURS = ["#5fa8d3", "#e0a030", "#3a9d5d", "#c678dd", "#e06c75", "#56b6c2"]
const SVG = "http://www.w3.org/2000/svg"
const MARGIN = { left: 30, right: 8, top: 8, bottom: 16 }
const WIDTH = 320

function shape(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  // As text, never as markup.
  if (text !== undefined) element.textContent = text
  return element
}

function label(x, y, text, attributes = {}) {
  return shape("text", { x, y, "font-size": 9, fill: "var(--descrip-text, #999)", ...attributes }, text)
}

/** The curves, with the values at the left and the times below. */
function picture(curves) {
  const all = curves.flatMap((curve) => curve.values)
  const low = Math.min(0, ...all)
  const high = Math.max(low + 1e-9, 1, ...all)
  const right = WIDTH - MARGIN.right
  const bottom = HEIGHT - MARGIN.bottom
  const x = (time) => MARGIN.left + time * (right - MARGIN.left)
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - MARGIN.top)
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: "100%", height: "100%" })
  for (const value of [low, high]) {
    drawing.append(
      shape("line", { x1: x(0), x2: x(1), y1: y(value), y2: y(value), stroke: "var(--border-color, #444)" }),
      label(MARGIN.left - 4, y(value) + 3, String(Number(value.toFixed(2))), { "text-anchor": "end" }),
    )
  }
  for (const time of [0, 0.5, 1]) {
    drawing.append(label(x(time), HEIGHT - 4, String(time), { "text-anchor": "middle" }))
  }
  curves.forEach((curve, number) => {
    const colour = COLOURS[number % COLOURS.length]
    const last = curve.values.length - 1
    const points = curve.values.map((value, place) => `${x(place / last).toFixed(1)},${y(value).toFixed(1)}`)
    drawing.append(
      shape("polyline", { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": 1.5 }),
    )
    if (curve.name) {
      drawing.append(label(x(0) + 4, MARGIN.top + 9 + 10 * number, curve.name, { fill: colour }))
    }
  })
  return drawing
}

function fault(words) {
  const element = document.createElement("div")
  element.className = "lycoris-curve-error"
  element.style.cssText = "font-size: 11px; color: #e05050; overflow-wrap: anywhere; padding: 4px"
  element.textContent = words
  return element
}

function addPicture(node) {
  const text = node.widgets?.find((widget) => widget.name === "curve")
  if (!text) return
  const element = document.createElement("div")
  element.className = "lycoris-curve"
  element.style.cssText = `height: ${HEIGHT}px; overflow: hidden`
  shareWheel(element, () => false)
  const widget = node.addDOMWidget(PICTURE, "lycoris_curve", element, {
    serialize: false,
    margin: 0,
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => HEIGHT,
    getValue: () => "",
    setValue: () => {},
  })
  widget.serialize = false
  node.setSize([node.size[0], node.computeSize()[1] + MORE_TEXT])

  let asked = 0
  let waiting
  async function draw() {
    const question = ++asked
    const answer = await api.fetchApi(`/lycoris/curve?text=${encodeURIComponent(text.value ?? "")}`)
    const found = await answer.json()
    // The text may have changed while the server answered.
    if (question !== asked) return
    element.replaceChildren(found.error ? fault(found.error) : picture(found.curves))
  }
  function drawSoon() {
    clearTimeout(waiting)
    waiting = setTimeout(draw, PAUSE)
  }
  const callback = text.callback
  text.callback = function (...values) {
    const result = callback?.apply(this, values)
    drawSoon()
    return result
  }
  text.element?.addEventListener("input", drawSoon)
  drawSoon()
  const onConfigure = node.onConfigure
  node.onConfigure = function (...values) {
    const result = onConfigure?.apply(this, values)
    drawSoon()
    return result
  }
}

app.registerExtension({
  name: "lycoris.schedule",

  nodeCreated(node) {
    if (node.comfyClass === NODE) addPicture(node)
  },
})
