// Curves of strengths as a drawing.

import { label, shape } from "./svg.js"

const COLOURS = ["#5fa8d3", "#e0a030", "#3a9d5d", "#c678dd", "#e06c75", "#56b6c2"]
const MARGIN = { left: 30, right: 8, top: 8, bottom: 16 }
const WIDTH = 320
export const HEIGHT = 110

/** @typedef {import("./routes.js").DrawnCurve} Curve */

/**
 * The range of the values, which includes 0 and 1, and the points of each curve in the drawing.
 *
 * @param {Curve[]} curves
 */
export function layout(curves) {
  const all = curves.flatMap((curve) => curve.values)
  const low = Math.min(0, ...all)
  const high = Math.max(1, ...all)
  const right = WIDTH - MARGIN.right
  const bottom = HEIGHT - MARGIN.bottom
  const x = (/** @type {number} */ time) => MARGIN.left + time * (right - MARGIN.left)
  const y = (/** @type {number} */ value) => bottom - ((value - low) / (high - low)) * (bottom - MARGIN.top)
  const lines = curves.map(({ values }) =>
    values.map((value, place) => `${x(place / (values.length - 1)).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
  )
  return { low, high, x, y, lines }
}

/**
 * The curves, with the values at the left and the times below.
 *
 * @param {Curve[]} curves
 */
export function picture(curves) {
  const { low, high, x, y, lines } = layout(curves)
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
  curves.forEach(({ name }, number) => {
    const colour = COLOURS[number % COLOURS.length]
    drawing.append(shape("polyline", { points: lines[number], fill: "none", stroke: colour, "stroke-width": 1.5 }))
    const readable = `color-mix(in srgb, ${colour} 55%, var(--input-text, #ddd))`
    if (name) drawing.append(label(x(0) + 4, MARGIN.top + 9 + 10 * number, name, { fill: readable }))
  })
  return drawing
}
