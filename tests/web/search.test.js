import assert from "node:assert/strict"
import { test } from "node:test"
import { isMet } from "../../lycoris_nodes/web/search.js"

const NAMES = ["LycorisAdapterRows", "Load LoRA / LyCORIS (rows)"]

test("a name is met by the words of those who look for a loader, and by no others", () => {
  // As the front end scores "lora", "lycoris", "load", "adapter" and "rows".
  assert.ok(isMet(NAMES, [3, 5 + 13, 26, 0.2]))
  assert.ok(isMet(NAMES, [1, 0, 18, 0.2]))
  assert.ok(!isMet(NAMES, [1, 0, 26, 0.2]))
  assert.ok(!isMet(NAMES, [2, 7 + 9, 18, 0.2]))
  assert.ok(!isMet(NAMES, [2, 14 + 9, 18, 0.2]))
  // Where the name is another language's.
  assert.ok(isMet(["LycorisAdapterRows", "加载 LoRA / LyCORIS(多行)"], [3, 3 + 10.5, 21, 0.2]))
})
