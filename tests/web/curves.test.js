// Where curves of strengths are in their drawing.

import assert from "node:assert/strict"
import { test } from "node:test"

import { HEIGHT, layout } from "../../lycoris_nodes/web/curves.js"

const heights = (/** @type {string} */ line) => line.split(" ").map((point) => Number(point.split(",")[1]))

test("the drawing has 0, 1 and all values", () => {
  assert.deepEqual([layout([]).low, layout([]).high], [0, 1])
  const { low, high, lines } = layout([
    { name: "", values: [0.2, 0.4] },
    { name: "mid", values: [2, 1, -1] },
  ])
  assert.deepEqual([low, high], [-1, 2])
  const [top, middle, bottom] = heights(lines[1])
  assert.ok(0 < top && top < middle && middle < bottom && bottom < HEIGHT)
  // The highest and the lowest value are as far apart as can be.
  assert.ok(bottom - top > 80)
})

test("a curve goes from the left end to the right end", () => {
  const { x, lines } = layout([{ name: "", values: [1, 1, 0] }])
  const places = lines[0].split(" ").map((point) => Number(point.split(",")[0]))
  assert.deepEqual(places, [x(0), x(0.5), x(1)])
})
