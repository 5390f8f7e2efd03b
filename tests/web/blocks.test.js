import assert from "node:assert/strict"
import { test } from "node:test"
import { labelOf, outline, painted, partsOf, thinned, withoutKinds } from "../../lycoris_nodes/web/rows/blocks.js"

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
const FLUX = [list("double", 19), list("single", 38), list("t5xxl", 24, "text"), KINDS]
const paint = (text, changes, groups = SD) => painted(text, new Map(Object.entries(changes)), groups)

test("bars become lines, those with one value together and in ranges", () => {
  assert.equal(paint("", { "in.4": 0.5 }), "in.4 = 0.5")
  assert.equal(paint("in.4 = 0.5", { "in.5": 0.5, "in.6": 0.5, mid: 0.5, "out.0": 0 }), "in.4-6 mid = 0.5\nout.0 = 0")
  // What is back at 1 needs no line.
  assert.equal(paint("in.4-6 mid = 0.5", { "in.5": 1 }), "in.4 in.6 mid = 0.5")
  assert.equal(paint("in.4 = 0.5", { "in.4": 1 }), "")
  assert.equal(paint("", { "diffusion_model.out": 0.25, "clip_l.3": 0.25 }), "diffusion_model.out clip_l.3 = 0.25")
  assert.equal(paint("", Object.fromEntries(FLUX[1].bars.map(({ name }) => [name, 0.5])), FLUX), "single.0-37 = 0.5")
  const every = Object.fromEntries(SD[0].bars.filter((_, at) => at % 2).map(({ name }) => [name, 0.5]))
  assert.deepEqual(paint("", { ...every, "out.1": 0.5, "out.3": 0.5, "out.5": 0.5, "out.7": 0.5 }).split("\n"), [
    "in.1 in.3 in.5 in.7 in.9 in.11 out.1 out.3 out.5 = 0.5",
    "out.7 = 0.5",
  ])
})

test("kinds are scales behind the blocks", () => {
  const text = paint("in.4 = 0.5", { attn: 0.5, mlp: 1 })
  assert.equal(text, "in.4 = 0.5\nattn = *0.5")
  assert.equal(paint(text, { "in.5": 0.2 }), "in.4 = 0.5\nin.5 = 0.2\nattn = *0.5")
  assert.equal(withoutKinds(text, SD), "in.4 = 0.5")
  assert.equal(paint(text, { attn: 1 }), "in.4 = 0.5")
  assert.deepEqual([...partsOf("attn = *0.5\nattn = *0.5", SD).kinds], [["attn", 0.25]])
  // Before values it says something else, which stays.
  assert.equal(paint("attn = *0.5\nin.4 = 0.5", { "in.5": 0 }), "attn = *0.5\nin.4 = 0.5\nin.5 = 0")
})

test("what bars cannot say stays as it is written, and what they say wins", () => {
  const own = "# mine\nFLUX-DBL-FRONT\nin.1 = 0.2\n/attn/ = 0.3  # only attention"
  assert.equal(paint(own, { "in.1": 1, "in.2": 0.5 }), `${own}\nin.1 = 1\nin.2 = 0.5`)
  for (const line of ["*attn* = 0.5", "1,0,0,0", "%default=1,in1=0", "in = 0.5", "in.1 = 0.2..1", "IN01:attn:0.5", "in.1 ="]) {
    assert.deepEqual(partsOf(line, SD).head, [line])
    assert.equal(paint(line, { mid: 0.5 }), `${line}\nmid = 0.5`)
  }
  // Beyond the model's blocks.
  assert.deepEqual(partsOf("in.4-40 = 0.5", SD).head, ["in.4-40 = 0.5"])
  assert.deepEqual(partsOf("in.0-999999999 = 0.5", SD).head, ["in.0-999999999 = 0.5"])
})

test("comments and other spellings of a line are kept or read", () => {
  const text = "# the whole\nin.4 = 0.5 # less\nout.1-out.3, MID = off"
  assert.deepEqual([...partsOf(text, SD).values], [
    ["in.4", 0.5],
    ["out.1", 0],
    ["out.2", 0],
    ["out.3", 0],
    ["mid", 0],
  ])
  assert.equal(paint(text, { "out.1": 1 }), "# the whole\nin.4 = 0.5  # less\nmid out.2-3 = 0")
  assert.equal(paint(text, { "in.4": 0.6 }), "# the whole\n# less\nin.4 = 0.6\nmid out.1-3 = 0")
})

test("the outline of bars and their labels", () => {
  assert.equal(outline([1]), "polygon(0% 100%, 0% 0%, 70% 0%, 70% 100%)")
  assert.ok(outline([0, 0.5]).includes("0% 92%"))
  assert.deepEqual(thinned([1, 0, 1, 0, 0.5], 3), [0.5, 0.5, 0.5])
  assert.deepEqual(thinned([1, 0], 3), [1, 0])
  const labels = SD.map((group) => labelOf(group.bars.at(-1), group))
  assert.deepEqual(labels, ["11", "mid", "11", "out", "11", "attn.q"])
})
