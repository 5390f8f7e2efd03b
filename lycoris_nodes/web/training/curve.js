// The curves of a training as a drawing, in the colours of the theme.

import { t } from "../language.js"
import { label, shape } from "../svg.js"
import { EDGES, HEIGHT, WIDTH, digits, layout, smooth } from "./words.js"

/** @param {import("./words.js").Shown} shown */
export function curve({ losses = [], validation = [], steps = 0, resumed = 0 }) {
  const [trained, held] = [losses, validation]
  const { low, high, last, x, y, lines } = layout([trained, smooth(trained), held], steps)
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img" })
  drawing.setAttribute("aria-label", t("The loss over the steps"))
  for (const value of new Set([low, high])) {
    drawing.append(
      shape("line", { x1: x(0), x2: x(last), y1: y(value), y2: y(value), class: "grid" }),
      label(EDGES.left - 4, y(value) + 3, digits(value), { "text-anchor": "end" }),
    )
  }
  for (const step of [0, last]) {
    drawing.append(label(x(step), HEIGHT - 3, String(step), { "text-anchor": step ? "end" : "start" }))
  }
  if (resumed) drawing.append(shape("line", { x1: x(resumed), x2: x(resumed), y1: EDGES.top, y2: HEIGHT - EDGES.bottom, class: "resumed" }))
  const named = ["raw", "trained", "held"]
  named.forEach((name, at) => drawing.append(shape("polyline", { points: lines[at], class: name })))
  if (trained.length === 1) drawing.append(shape("circle", { cx: x(trained[0][0]), cy: y(trained[0][1]), r: 2, class: "trained" }))
  if (held.length) {
    drawing.append(
      label(WIDTH - EDGES.right, EDGES.top + 8, t("trained"), { "text-anchor": "end", class: "trained" }),
      label(WIDTH - EDGES.right, EDGES.top + 18, t("held out"), { "text-anchor": "end", class: "held" }),
    )
  }
  return drawing
}
