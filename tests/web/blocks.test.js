import assert from "node:assert/strict"
import { test } from "node:test"
import { labelOf, outline, thinned } from "../../lycoris_nodes/web/rows/blocks.js"

const bar = (name) => ({ name, layers: 3, mine: 2, share: 0.1 })
const list = (name, count, sort = "blocks") => ({
  name,
  sort,
  bars: Array.from({ length: count }, (_, at) => bar(`${name}.${at}`)),
})
const KINDS = { name: "kinds", sort: "kinds", bars: ["attn", "mlp", "attn.q"].map(bar) }
const SD = [
  list("in", 12),
  { name: "mid", sort: "blocks", bars: [bar("mid")] },
  list("out", 12),
  { name: "beside", sort: "beside", bars: [bar("time_embed"), bar("diffusion_model.out")] },
  list("clip_l", 12, "text"),
  KINDS,
]

test("the outline of bars and their labels", () => {
  assert.equal(outline([1]), "polygon(0% 100%, 0% 0%, 70% 0%, 70% 100%)")
  assert.ok(outline([0, 0.5]).includes("0% 92%"))
  assert.deepEqual(thinned([1, 0, 1, 0, 0.5], 3), [0.5, 0.5, 0.5])
  assert.deepEqual(thinned([1, 0], 3), [1, 0])
  const labels = SD.map((group) => labelOf(group.bars.at(-1), group))
  assert.deepEqual(labels, ["11", "mid", "11", "out", "11", "attn.q"])
})
