// The rows as text, their files in words, and strengths as people type them.

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"

import { apart, badgesOf, halves, nameInRow, nearestOf, shownSize, splitName } from "../../lycoris_nodes/web/rows/names.js"
import { heightOf } from "../../lycoris_nodes/web/rows/reasons.js"
import {
  formatRows,
  hasClip,
  joined,
  newRow,
  parseRows,
  signalOf,
  withClip,
  withFiles,
  withRules,
  withSet,
  withSignal,
  withStrength,
} from "../../lycoris_nodes/web/rows/state.js"
import { chosenUpTo, moved, pieces, shifted, stepOf, toggled } from "../../lycoris_nodes/web/rows/steps.js"
import { readNumber, shownNumber } from "../../lycoris_nodes/web/rows/typed.js"

const TYPED = JSON.parse(readFileSync(new URL("../harness/typed.json", import.meta.url), "utf8"))

test("strengths are read as the nodes read them", () => {
  // NaN is null in JSON.
  const read = Object.fromEntries(Object.keys(TYPED).map((text) => [text, readNumber(text)]))
  assert.deepEqual(JSON.parse(JSON.stringify(read)), TYPED)
})

test("strengths are shown with two decimals, or with more where they have more", () => {
  assert.deepEqual([1, -10, 0.7, 0.125, 0.1 + 0.2].map(shownNumber), ["1.00", "-10.00", "0.70", "0.125", "0.30"])
})

test("rows keep what is in them, with a line for each", () => {
  const rows = [
    { on: true, file: "a/\u05d0 \"é\".safetensors", strength_model: 1 },
    { file: "b", strength_model: "1/3", strength_clip: -0.25, rules: "mid = 0.5\nte = 0" },
  ]
  const text = formatRows(rows)
  assert.equal(text.split("\n").length, 4)
  assert.deepEqual(parseRows(text), rows)
  assert.equal(formatRows([]), '{"version": 1, "rows": []}')
  assert.deepEqual(parseRows(" \n"), [])
  assert.deepEqual(parseRows('{"rows": [{"file": "a"}]}'), [{ file: "a" }])
})

test("a text of another form is left to the server", () => {
  const texts = ["a cat", "<lora:a:1>", "5", "null", "[]", '{"version": 2, "rows": []}', '{"rows": [{}]}', '{"rows": [5]}']
  for (const text of texts) assert.equal(parseRows(text), null, text)
  const odd = [
    { strength_model: [0.8] },
    { strength_clip: null },
    { rules: 5 },
    { on: "no" },
    { file: 1 },
    { toString: 1 },
  ]
  for (const fields of odd) {
    const text = JSON.stringify({ version: 1, rows: [{ file: "a" }, { file: "b", ...fields }] })
    assert.equal(parseRows(text), null, text)
  }
})

test("a row has a strength for text encoders or none, and rules or none", () => {
  const [a, b, c] = ["a", "b", "c"].map((file) => ({ file }))
  const rows = [{ file: "a", strength_model: 0.5 }, { file: "b", strength_clip: "x" }, { file: "c" }]
  assert.ok(hasClip(rows) && !hasClip([a]))
  assert.deepEqual(withClip(rows, true).map((row) => row.strength_clip), [0.5, "x", 1])
  assert.deepEqual(withClip(rows, false), [{ file: "a", strength_model: 0.5 }, b, c])
  assert.deepEqual(withRules(a, "mid = 0"), { file: "a", rules: "mid = 0" })
  assert.deepEqual(withRules({ file: "a", rules: "mid = 0" }, " \n"), a)
})

test("a row has a file or the two of a pair", () => {
  const row = { file: "a", rules: "mid = 1" }
  const pair = withFiles(row, { file: "a_high", low_noise: "a_low" })
  assert.deepEqual(pair, { file: "a_high", rules: "mid = 1", low_noise: "a_low" })
  assert.deepEqual(parseRows(formatRows([pair])), [pair])
  assert.deepEqual(withFiles(pair, { file: "b" }), { file: "b", rules: "mid = 1" })
  assert.equal(parseRows('{"rows": [{"file": "a", "low_noise": 5}]}'), null)
})

test("a row that takes the other file of its pair in takes the place of that file's own row", () => {
  const pair = { file: "a_high", low_noise: "a_low" }
  const high = { on: true, file: "a_high", strength_model: 0.8 }
  const both = { on: true, strength_model: 0.8, ...pair }
  const low = { ...high, file: "a_low" }
  const [plain, other] = [newRow("a_low"), { ...low, strength_model: 0.5 }]
  for (const spare of [low, plain]) assert.deepEqual(joined([spare, high], 1, pair), [both])
  assert.deepEqual(joined([low, high], 0, pair), [both])
  // What has settings of its own stays, as do second rows and other pairs.
  const others = [other, { ...low, on: false }, { ...plain, low_noise: "b_low" }]
  assert.deepEqual(joined([high, ...others, low, low], 0, pair), [both, ...others, low])
  const off = { ...high, on: false }
  assert.deepEqual(joined([off, plain], 0, pair), [{ ...both, on: false }, plain])
})

test("the factors of picture and sound are fields of a row, where they are not 1", () => {
  const row = { file: "a", audio: 0.5 }
  assert.deepEqual([signalOf(row, "audio"), signalOf(row, "video")], [0.5, 1])
  assert.deepEqual(withSignal(row, "video", 0), { file: "a", audio: 0.5, video: 0 })
  assert.deepEqual(withSignal(row, "audio", 1), { file: "a" })
  assert.deepEqual(parseRows(formatRows([row])), [row])
  assert.equal(parseRows('{"rows": [{"file": "a", "audio": null}]}'), null)
})

test("rows are chosen by clicks and moved together", () => {
  const [one, some] = [new Set([1]), new Set([0, 3])]
  assert.deepEqual([toggled(one, 1), toggled(one, 0)], [new Set(), new Set([0, 1])])
  assert.deepEqual(chosenUpTo(one, 4, 2), new Set([1, 2, 3, 4]))
  const row = (/** @type {Set<number>} */ chosen, /** @type {number} */ from, /** @type {number} */ to) =>
    moved([..."abcde"], chosen, from, to).join("")
  assert.equal(row(new Set([0]), 0, 2), "bcade")
  assert.equal(row(new Set([2]), 2, 0), "cabde")
  assert.equal(row(some, 0, 4), "bcead")
  assert.equal(row(some, 3, 1), "adbce")
  assert.equal(row(some, 0, 3), "bcade")
})

test("strengths of several rows change by the same amount, in steps", () => {
  const keys = { shiftKey: false, ctrlKey: false, metaKey: false }
  assert.deepEqual([keys, { ...keys, shiftKey: true }, { ...keys, ctrlKey: true }].map(stepOf), [0.05, 0.01, 0.5])
  const counted = pieces(4)
  assert.deepEqual([3, 3, -1, -5, 12].map(counted), [0, 1, 0, -1, 3])
  const bounds = { min: -100, max: 100 }
  assert.deepEqual([shifted(0.1, 0.2, bounds), shifted(99.9, 1, bounds)], [0.3, 100])
  const more = (/** @type {number | string} */ value) => (typeof value === "number" ? value + 1 : value)
  const rows = [{ file: "a", strength_model: 0.5 }, { file: "b", strength_model: "x" }, { file: "c" }]
  assert.deepEqual(withStrength(rows, new Set([0, 1]), "strength_model", more), [
    { file: "a", strength_model: 1.5 },
    rows[1],
    rows[2],
  ])
  // What a strength of CLIP's own has followed so far it keeps.
  const apart = [{ file: "a", strength_model: 0.5 }, { file: "b", strength_clip: 2 }]
  assert.deepEqual(withStrength(apart, new Set([0]), "strength_model", more)[0], {
    file: "a",
    strength_model: 1.5,
    strength_clip: 0.5,
  })
  assert.equal(withStrength(apart, new Set([1]), "strength_clip", more)[1].strength_clip, 3)
})

test("a name is shown apart from its folder and without its ending", () => {
  assert.deepEqual(splitName("a/b\\ink.wash.SafeTensors"), ["a/b\\", "ink.wash"])
  assert.deepEqual(splitName("line\nbreak.pt"), ["", "line\nbreak"])
  assert.deepEqual(splitName("folder.pt/name"), ["folder.pt/", "name"])
  assert.deepEqual(nameInRow("a/ink/adapter_model.safetensors"), ["a/", "ink"])
  assert.deepEqual(nameInRow("a/ink/adapters.safetensors"), ["a/", "ink"])
  assert.deepEqual(nameInRow("adapter_model.bin"), ["", "adapter_model"])
  assert.deepEqual(nameInRow("a/ink.pt"), ["a/", "ink"])
})

test("the nearest names to one that is gone are found", () => {
  const files = ["a/Ink Wash v2.safetensors", "b/ink_wash.pt", "b/inkwash-old.safetensors", "neon.safetensors", "墨.pt"]
  const near = nearestOf(files)
  assert.deepEqual(near("gone/ink-wash.safetensors"), [files[1], files[0], files[2]])
  assert.deepEqual(near("gone/ink-wash.safetensors", 1), [files[1]])
  assert.deepEqual([near("x"), near(""), near("墨.safetensors")], [[], [], [files[4]]])
})

test("a long reason has the room of two rows, and details have none", () => {
  const reasons = ["short", "x".repeat(200), "\u5b57".repeat(60)].map((reason) => ({ reason, details: "x".repeat(200) }))
  assert.deepEqual([null, ...reasons].map(heightOf), [0, 1, 2, 2])
})

test("a file is described in few words", () => {
  const badges = (/** @type {object} */ about) => badgesOf(/** @type {any} */ (about))
  assert.deepEqual(badges({ kind: "lora (dora)", rank: "8", family: "SD 1.5" }), ["lora 8", "SD 1.5"])
  assert.deepEqual(badges({ kind: "loha", rank: "4 to 8", family: "" }), ["loha"])
  assert.deepEqual(badges({ error: "gone" }), [])
  assert.deepEqual([999, 999_999, 2_340_000].map(shownSize), ["1.0 kB", "1000.0 kB", "2.3 MB"])
  // Only what is known of both files can set them apart.
  const [wan, either, flux] = [["Wan"], ["Wan", "Flux"], ["Flux"]].map((families) => ({ families }))
  assert.deepEqual([either, flux, { families: [] }, {}].map((one) => apart(wan, one)), [false, true, false, false])
})

test("a set that was run is kept once, as it was used last", () => {
  const set = (/** @type {number} */ when, /** @type {Record<string, number>} */ strengths) => ({
    when,
    rows: Object.entries(strengths).map(([file, strength_model]) => ({ ...newRow(file), strength_model })),
  })
  const kept = [set(2, { a: 1, b: 1 }), set(1, { a: 1 })]
  assert.deepEqual(withSet(kept, set(3, { b: 2, a: 0.5 })), [set(3, { b: 2, a: 0.5 }), kept[1]])
  // A row that is off is no part of it.
  const off = { when: 4, rows: [newRow("a"), { ...newRow("b"), on: false }] }
  assert.deepEqual(withSet(kept, off), [off, kept[0]])
  let sets = kept
  for (let when = 5; when < 100; when++) sets = withSet(sets, set(when, { [when]: 1 }))
  assert.equal(sets.length, 40)
  assert.equal(sets[0].when, 99)
  // One with a name stays, whatever is run, until another one gets its name.
  const named = { ...set(100, { a: 1 }), name: "soft" }
  sets = withSet(sets, named)
  for (let when = 101; when < 200; when++) sets = withSet(sets, set(when, { [when % 60]: 1, a: 1 }))
  assert.equal(sets.length, 41)
  assert.deepEqual(sets.find(({ name }) => name === "soft"), named)
  sets = withSet(sets, { ...set(200, { b: 1 }), name: "soft" })
  assert.deepEqual(sets.filter(({ name }) => name).map(({ when }) => when), [200])
})

test("a long name has an end that is not cut", () => {
  assert.deepEqual(halves("XL Detail Tweaker v2.1"), ["XL Detail Twea", "ker v2.1"])
  assert.deepEqual(halves("short"), ["short", ""])
})
