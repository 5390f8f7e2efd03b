// What boxes with reports say, how high they can be, and whether an earlier report still holds.

import assert from "node:assert/strict"
import { test } from "node:test"

import { firstAndRest, freeBelow, isSame, refusal } from "../../lycoris_nodes/web/report/words.js"

test("a refusal says each reason once, and ours without the name of the input", () => {
  const own = { type: "custom_validation_failed", message: "Custom validation failed", details: "rules - line 2 - no" }
  const host = { type: "required_input_missing", message: "Required input is missing", details: "model" }
  const bare = { type: "custom_validation_failed", message: "Custom validation failed", details: "rules" }
  assert.equal(refusal([own, host, own]), "line 2 - no\nRequired input is missing: model")
  assert.equal(refusal([bare, { type: "other", message: "Odd" }]), "Custom validation failed: rules\nOdd")
})

test("the first line stands apart", () => {
  assert.deepEqual(firstAndRest("one"), ["one", ""])
  assert.deepEqual(firstAndRest("one\n\ntwo\nthree"), ["one", "two\nthree"])
})

test("a box ends above the next node below", () => {
  const node = { left: 0, right: 100, bottom: 200 }
  const at = (/** @type {number} */ left, /** @type {number} */ top) => ({ left, right: left + 100, top })
  assert.equal(freeBelow(node, []), Infinity)
  // Beside it, above it, and two below it.
  assert.equal(freeBelow(node, [at(100, 210), at(-100, 210), at(0, 100), at(50, 300), at(-50, 260)]), 60)
})

test("a report holds while its node and all before it are the same", () => {
  const prompt = () => ({
    1: { class_type: "Load", inputs: { file: "a", strength: 1 } },
    2: { class_type: "Combine", inputs: { stack0: ["1", 0], stack1: ["1", 0] } },
    "3:5": { class_type: "Apply", inputs: { stack: ["2", 0], box: [1, 2], mode: "merge" } },
    9: { class_type: "Other", inputs: { value: 1 } },
  })
  /** @type {[string, boolean, (prompt: any) => void][]} */
  const changes = [
    ["nothing", true, () => {}],
    ["a node that is not before it", true, (other) => delete other[9]],
    ["a value before it", false, (other) => (other[1].inputs.strength = 2)],
    ["a type before it", false, (other) => (other[1].class_type = "LoadOther")],
    ["a link", false, (other) => (other[2].inputs.stack1 = ["1", 1])],
    ["one input more", false, (other) => (other["3:5"].inputs.clip = ["9", 0])],
    ["one input less", false, (other) => delete other[2].inputs.stack1],
    ["a node that is gone", false, (other) => delete other[1]],
    ["a list that is no link", false, (other) => (other["3:5"].inputs.box = [1, 3])],
  ]
  for (const [words, expected, change] of changes) {
    const other = prompt()
    change(other)
    assert.equal(isSame(prompt(), other, "3:5"), expected, words)
  }
})

test("a loop of nodes is looked at once", () => {
  const prompt = { 1: { class_type: "A", inputs: { x: ["2", 0] } }, 2: { class_type: "B", inputs: { x: ["1", 0] } } }
  assert.ok(isSame(prompt, structuredClone(prompt), "1"))
})
