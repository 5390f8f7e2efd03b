// What a training is at in words, its curve, and the values that stand for what is usual.

import assert from "node:assert/strict"
import { test } from "node:test"

import { duration, inWords, layout, smooth, withUsual } from "../../lycoris_nodes/web/training/words.js"

test("each stage says its count", () => {
  const training = { stage: "training", done: 120, of: 1500, loss: 0.08412, pace: 2.1 }
  assert.equal(inWords(training), "Step 120 of 1500, 2.1 s a step, 48 min left, loss 0.0841")
  // The first step knows no pace, and the last has nothing left.
  assert.equal(inWords({ ...training, done: 1, pace: null }), "Step 1 of 1500, loss 0.0841")
  const anew = { ...training, done: 1, pace: null, other: "style_00001_" }
  assert.equal(inWords(anew), "Step 1 of 1500, loss 0.0841, begun anew: settings or data are not those of style_00001_")
  assert.equal(inWords({ ...training, done: 1500 }), "Step 1500 of 1500, 2.1 s a step, loss 0.0841")
  const race = { heat: 3, heats: 9, entrant: "lora as asked", rate: "0.003", steps: 1500 }
  assert.equal(
    inWords({ stage: "searching", done: 100, of: 600, pace: 2.4, ...race }),
    "Searching: heat 3 of at most 9, lora as asked at 0.003, 100 of at most 600 steps (40 % of the training), 20 min left",
  )
  assert.equal(inWords({ stage: "captions", done: 12, of: 40 }), "Encoding captions 12 of 40")
  assert.equal(inWords({ stage: "sampling", step: 100, done: 3, of: 20 }), "Sampling at step 100: 3 of 20")
  assert.equal(inWords({ stage: "stopped", step: 3, steps: 60 }), "Stopped at 3 of 60")
  const low = { stage: "stopped", step: 3, steps: 60, expert: "low noise" }
  assert.equal(inWords(low), "Low noise: Stopped at 3 of 60")
  assert.equal(inWords({ ...low, expert: "high noise", stage: "done" }), "")
  assert.deepEqual([4, 59.7, 3599, 7500].map(duration), ["4 s", "1 min", "1 h 0 min", "2 h 5 min"])
})

test("a curve fills its drawing, also a flat one and one of a single point", () => {
  const { low, high, lines, x } = layout([[[0, 2], [10, 1]], []], 20)
  assert.deepEqual([low, high, lines[1]], [1, 2, ""])
  assert.equal(lines[0], `${x(0).toFixed(1)},6.0 ${x(10).toFixed(1)},82.0`)
  assert.ok(layout([[[1, 5]]], 1).lines[0].endsWith(",44.0"))
  assert.ok(!layout([[], []], 0).lines.join("").includes("NaN"))
  const noisy = /** @type {[number, number][]} */ (Array.from({ length: 96 }, (_, step) => [step, step % 2]))
  assert.ok(Math.abs(smooth(noisy)[48][1] - 0.5) < 0.1)
  assert.deepEqual(smooth([[1, 3]]), [[1, 3]])
})

test("what is usual stands behind the name of an input that is auto", () => {
  for (const value of ["auto", "", 0, "0", "auto: 16", " auto ", undefined]) assert.equal(withUsual("rank", value, "16"), "rank (16)")
  for (const value of ["8", 8, "1e-4", "0.0005", 10]) assert.equal(withUsual("rank", value, "16"), "rank")
  assert.equal(withUsual("rank", "auto", undefined), "rank")
})
