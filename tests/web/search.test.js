import assert from "node:assert/strict"
import { test } from "node:test"
import { isMet } from "../../lycoris_nodes/web/search.js"

const NAMES = ["LycorisAdapterRows", "Load LoRA / LyCORIS (rows)"]

test("a search for a loader finds the name, and no other search does", () => {
  // As the front end scores "lora", "lycoris", "load", "adapter" and "rows".
  assert.ok(isMet(NAMES, [3, 5 + 13, 26, 0.2]))
  assert.ok(isMet(NAMES, [1, 0, 18, 0.2]))
  assert.ok(!isMet(NAMES, [1, 0, 26, 0.2]))
  assert.ok(!isMet(NAMES, [2, 7 + 9, 18, 0.2]))
  assert.ok(!isMet(NAMES, [2, 14 + 9, 18, 0.2]))
  // With the name in another language.
  assert.ok(isMet(["LycorisAdapterRows", "加载 LoRA / LyCORIS(多行)"], [3, 3 + 10.5, 21, 0.2]))
})
