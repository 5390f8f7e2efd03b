// The page is changed by one extension, and the host's own parts of it by one file.

import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { test } from "node:test"

const WEB = new URL("../../lycoris_nodes/web/", import.meta.url)
const files = readdirSync(WEB, { recursive: true, encoding: "utf-8" }).filter((name) => name.endsWith(".js"))
const lines = files.flatMap((file) =>
  readFileSync(new URL(file.replaceAll("\\", "/"), WEB), "utf-8").split("\n").map((line) => ({ file, line })),
)

/** The files with a line that matches. */
const filesWith = (/** @type {RegExp} */ pattern) => [
  ...new Set(lines.filter(({ line }) => pattern.test(line)).map(({ file }) => file.replaceAll("\\", "/"))),
]

test("one extension is registered", () => {
  assert.equal(lines.filter(({ line }) => line.includes("registerExtension(")).length, 1)
})

test("what the host's page does not offer is used in one file", () => {
  const used = {
    "a method of its own replaced": /^\s*(?:app|LiteGraph)[\w.]*\.\w+ = |\.prototype\.\w+ = /u,
    "a method of its own called on another object": /\.prototype\.\w+\.call/u,
    "a private field": /\._\w/u,
    "a listener for the whole page": /(?:document|window|globalThis)\.addEventListener/u,
    "its colours of wires": /link_type_colors|default_connection_color_byType/u,
  }
  for (const [what, pattern] of Object.entries(used)) {
    assert.deepEqual(filesWith(pattern).filter((file) => file !== "host.js"), [], what)
  }
})

test("its elements, lists of inputs and values of workflows are left alone", () => {
  const written = {
    "Vue's elements of nodes": /data-node-id/u,
    "inputs and widgets of nodes": /\b(?:inputs|widgets)\.(?:splice|push|pop|shift|unshift|sort|reverse)\(|\.(?:addInput|removeInput)\(/u,
    "links": /\.(?:origin_id|origin_slot|target_id|target_slot) = /u,
    "what is guessed of a widget's folding": /showAdvanced/u,
  }
  for (const [what, pattern] of Object.entries(written)) assert.deepEqual(filesWith(pattern), [], what)
})
