// The picker's files: which match, in which order, in which folders, and where they are drawn.

import assert from "node:assert/strict"
import { test } from "node:test"

import {
  ALL,
  arranged,
  entriesOf as entriesBy,
  FAVOURITES,
  learn,
  RECENT,
} from "../../lycoris_nodes/web/rows/picker/find.js"

const KEPT = { view: "list", sort: "name", closed: [], favourites: {}, used: {} }
const NOTHING = {
  ...{ error: "", kind: "lora", rank: "4", family: "SDXL", families: ["SDXL"], triggers: [], tags: [] },
  ...{ title: "", base: "", favourite: false, preview: "", problems: [] },
}

/**
 * @param {string[]} names
 * @param {Record<string, object>} [facts]
 */
function entriesOf(names, facts = {}) {
  const entries = entriesBy(names.map((name, index) => [name, 1000 * index, 50 - index]))
  for (const entry of entries) learn(entry, { ...NOTHING, ...facts[entry.file] }, () => null)
  return entries
}

/**
 * @param {ReturnType<typeof entriesOf>} entries
 * @param {string} typed
 * @param {object} [kept]
 */
const shown = (entries, typed, kept = {}) =>
  arranged(entries, typed, /** @type {any} */ ({ ...KEPT, ...kept })).map((item) =>
    item.item === "file" ? item.entry.file : `${item.depth} ${item.words} ${item.count} ${item.open ? "open" : "closed"}`,
  )

test("the best match of what is typed comes first", () => {
  const names = ["lokr_tucker.pt", "a/lokr.pt", "b lokr.pt", "lokr/x.pt", "xlokr.pt", "tagged.pt", "other.pt", "lokr2.pt"]
  const entries = entriesOf(names, { "tagged.pt": { triggers: ["LoKr style"] } })
  const best = ["a/lokr.pt", "lokr_tucker.pt", "lokr2.pt", "b lokr.pt", "xlokr.pt", "lokr/x.pt", "tagged.pt"]
  assert.deepEqual(shown(entries, " LOKR "), best)
  assert.deepEqual(shown(entries, "lok")[0], "a/lokr.pt")
  assert.deepEqual(shown(entries, "lokr tuck"), ["lokr_tucker.pt"])
  assert.deepEqual(shown(entries, "a/lo"), ["a/lokr.pt"])
  assert.deepEqual(shown(entries, "nowhere"), [])
})

test("words are found in the path, the family, the kind, trigger words, tags and titles", () => {
  const told = { kind: "lokr", family: "Flux", triggers: ["ink wash"], tags: ["tree"], title: "Brush", base: "Krea" }
  const entries = entriesOf(["rows/Ink.safetensors", "b.pt"], { "b.pt": told })
  for (const typed of ["lokr", "flux", "ink-wash", "TREE b", "brush", "krea"]) {
    assert.deepEqual(shown(entries, typed), ["b.pt"], typed)
  }
  assert.deepEqual(shown(entries, "rows ink"), ["rows/Ink.safetensors"])
  // All that is typed in one text comes before its words here and there.
  const families = { "a.pt": { triggers: ["sd", "1 5"] }, "b.pt": { family: "SD 1.5" } }
  assert.deepEqual(shown(entriesOf(["a.pt", "b.pt"], families), "sd 1.5"), ["b.pt", "a.pt"])
  const [hit] = arranged(entries, "wash b", /** @type {any} */ (KEPT))
  assert.deepEqual(hit.item === "file" && hit.found, ["ink wash"])
})

test("what does not suit the model comes after what does, and what is broken comes last", () => {
  const entries = entriesOf(["ink 1.pt", "ink 2.pt", "ink 3.pt", "my ink.pt"])
  learn(entries[0], { ...NOTHING, error: "cut" }, () => null)
  learn(entries[1], NOTHING, () => "made for SDXL")
  assert.deepEqual(shown(entries, "ink"), ["ink 3.pt", "ink 2.pt", "my ink.pt", "ink 1.pt"])
})

test("without words, files are in their folders, which open and close", () => {
  const entries = entriesOf(["b/2.pt", "b/10.pt", "top.pt", "b/c/x.pt", "A\\y.pt"])
  const all = ["top.pt", "0 A 1 open", "A\\y.pt", "0 b 3 open", "b/2.pt", "b/10.pt", "1 c 1 open", "b/c/x.pt"]
  assert.deepEqual(shown(entries, ""), all)
  assert.deepEqual(shown(entries, " ", { closed: ["b/"] }), [...all.slice(0, 3), "0 b 3 closed"])
})

test("favourites and what was used last come first", () => {
  const names = ["a.pt", "b.pt", "c.pt"]
  const entries = entriesOf(names, { "b.pt": { favourite: true }, "c.pt": { favourite: true } })
  const kept = { favourites: { "a.pt": true, "c.pt": false }, used: { "b.pt": [1, 5], "c.pt": [3, 9] } }
  const starred = ["0 Favourites 2 open", "a.pt", "b.pt"]
  const recent = ["0 Recently used 2 open", "c.pt", "b.pt"]
  assert.deepEqual(shown(entries, "", kept), [...starred, ...recent, "0 All files 3 open", ...names])
  const closed = shown(entries, "", { ...kept, closed: [FAVOURITES, RECENT, ALL] })
  assert.deepEqual(closed, ["0 Favourites 2 closed", "0 Recently used 2 closed", "0 All files 3 closed"])
  const keys = arranged(entries, "", /** @type {any} */ ({ ...KEPT, ...kept })).map(({ key }) => key)
  assert.equal(new Set(keys).size, keys.length)
})

test("files are sorted by date, size and use", () => {
  const entries = entriesOf(["x/a.pt", "b.pt", "c.pt"])
  assert.deepEqual(shown(entries, "", { sort: "date" }), ["x/a.pt", "b.pt", "c.pt"])
  assert.deepEqual(shown(entries, "", { sort: "size" }), ["c.pt", "b.pt", "x/a.pt"])
  const used = { "b.pt": [2, 5], "c.pt": [2, 9] }
  assert.deepEqual(shown(entries, "", { sort: "use", used }), ["c.pt", "b.pt", "x/a.pt"])
  assert.deepEqual(shown(entriesOf(["ab.pt", "aa.pt", "x a.pt"]), "a", { sort: "size" }), ["aa.pt", "ab.pt", "x a.pt"])
})

test("one file is found among thousands", () => {
  const names = Array.from({ length: 5000 }, (_, index) => `folder ${index % 50}/file ${index}.safetensors`)
  const entries = entriesOf(names)
  assert.equal(shown(entries, "file 4999")[0], "folder 49/file 4999.safetensors")
  assert.equal(shown(entries, "").length, 5050)
})
