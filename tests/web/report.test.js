// What boxes with reports say, how high they can be, and whether an earlier report still holds.

import assert from "node:assert/strict"
import { test } from "node:test"

import { freeBelow, isAsIn, partsOf, refusal, together } from "../../lycoris_nodes/web/report/words.js"

test("a refusal says each reason once, and ours without the name of the input", () => {
  const own = { type: "custom_validation_failed", message: "Custom validation failed", details: "rules - line 2 - no" }
  const host = { type: "required_input_missing", message: "Required input is missing", details: "model" }
  const bare = { type: "custom_validation_failed", message: "Custom validation failed", details: "rules" }
  assert.equal(refusal([own, host, own]), "line 2 - no\nRequired input is missing: model")
  const gone = { type: "value_not_in_list", message: "Value not in list", details: "folder: 'a' not in []",
    extra_info: { input_name: "folder", received_value: "a" } }
  assert.equal(refusal([gone]), "folder: a is not in the list. Choose another, or press R if it is new")
  assert.equal(refusal([bare, { type: "other", message: "Odd" }]), "Custom validation failed: rules\nOdd")
})

test("the first line stands apart, what belongs to it follows, and all below an empty line is folded", () => {
  assert.deepEqual(partsOf("one"), { first: "one", rest: "", folded: "" })
  assert.deepEqual(partsOf("one\ntwo\n\nthree\n\nfour"), { first: "one", rest: "two", folded: "three\n\nfour" })
})

test("of several errors the verdicts come first", () => {
  assert.equal(together(["one\ndo\n\nat: a", "two\n\nat: b", ""]), "one\ndo\ntwo\n\nat: a\n\nat: b")
})

test("a box ends above the next node below", () => {
  const node = { left: 0, right: 100, bottom: 200 }
  const at = (/** @type {number} */ left, /** @type {number} */ top) => ({ left, right: left + 100, top })
  assert.equal(freeBelow(node, []), Infinity)
  // Beside it, above it, and two below it.
  assert.equal(freeBelow(node, [at(100, 210), at(-100, 210), at(0, 100), at(50, 300), at(-50, 260)]), 60)
})

/** @this {any} */
function isInputConnected(/** @type {number} */ slot) {
  return Boolean(this.inputs[slot].link)
}

/** The links into a node, as its graph has them. */
const linksInto = (/** @type {any} */ { id, inputs = [] }) =>
  inputs.flatMap((/** @type {any} */ { link }, /** @type {number} */ slot) =>
    link ? [{ ...link, target_id: id, target_slot: slot }] : [],
  )

/**
 * The nodes of a page as they were when a prompt was sent.
 *
 * @param {Record<string, any>} prompt
 */
function nodesOf(prompt) {
  /** @type {Record<string, any>} */
  const nodes = {}
  const all = { values: () => Object.values(nodes).flatMap(linksInto) }
  for (const [key, { class_type, inputs: given }] of Object.entries(prompt)) {
    const isLink = (/** @type {any} */ value) => Array.isArray(value) && value[0] in prompt
    const entries = Object.entries(given)
    const links = entries.filter(([, value]) => isLink(value))
    const [id, way] = [key.split(":").at(-1), key.split(":").slice(0, -1)]
    // Into a subgraph a link comes by the node that holds it.
    const inputs = links.map(([name, value]) => ({ name, link: { origin_id: value[0], origin_slot: value[1] } }))
    const own = inputs.map(({ name }, slot) => ({ name, link: { origin_id: -10, origin_slot: slot } }))
    const graph = { links: all, getNodeById: (/** @type {any} */ one) => nodes[[...way, one].join(":")] }
    const outer = { links: all, getNodeById: (/** @type {any} */ one) => nodes[one] }
    if (way.length) nodes[way[0]] = { id: way[0], mode: 0, graph: outer, inputs, isInputConnected }
    nodes[key] = {
      id,
      graph,
      comfyClass: class_type,
      mode: 0,
      widgets: entries.filter(([, value]) => !isLink(value)).map(([name, value]) => ({ name, value })),
      inputs: [...(way.length ? own : inputs), { name: "free", link: null }],
      isInputConnected,
    }
  }
  return nodes
}

/** Put a node between the first two. */
function between(/** @type {any} */ nodes, /** @type {any} */ node) {
  const [input] = nodes[2].inputs
  const getInputLink = () => input.link
  nodes[7] = { id: 7, mode: 0, graph: nodes[2].graph, inputs: [{ type: "S", link: input.link }], outputs: [{ type: "S" }], getInputLink, isInputConnected, ...node }
  nodes[2].inputs[0] = { ...input, link: { origin_id: 7, origin_slot: 0 } }
}

/** Give the value of the first by a primitive node. */
function primitive(/** @type {any} */ nodes, /** @type {string} */ value) {
  nodes[8] = { id: 8, mode: 0, isVirtualNode: true, graph: nodes[1].graph, widgets: [{ name: "value", value }] }
  nodes[1].inputs.push({ name: "file", widget: { name: "file" }, link: { origin_id: 8, origin_slot: 0 } })
}

test("a report holds while its node and all before it are as in the prompt", () => {
  const prompt = {
    1: { class_type: "Load", inputs: { file: "a", strength: 1 } },
    2: { class_type: "Combine", inputs: { stack0: ["1", 0], stack1: ["1", 0] } },
    "3:5": { class_type: "Apply", inputs: { stack: ["2", 0], box: { x: 1 }, mode: "merge" } },
    9: { class_type: "Other", inputs: { value: 1 } },
  }
  /** @type {[string, boolean, (nodes: any) => void][]} */
  const changes = [
    ["nothing", true, () => {}],
    ["a node that is not before it", true, (nodes) => delete nodes[9]],
    ["a value before it", false, (nodes) => (nodes[1].widgets[1].value = 2)],
    ["a type before it", false, (nodes) => (nodes[1].comfyClass = "LoadOther")],
    ["a muted node before it", false, (nodes) => (nodes[1].mode = 2)],
    ["a bypassed node before it", false, (nodes) => (nodes[2].mode = 4)],
    ["a link", false, (nodes) => (nodes[2].inputs[0].link.origin_id = 9)],
    ["an output", false, (nodes) => (nodes[2].inputs[0].link.origin_slot = 1)],
    ["one link more", false, (nodes) => (nodes[2].inputs[2].link = { origin_id: 9, origin_slot: 0 })],
    ["one link less", false, (nodes) => (nodes[2].inputs[1].link = null)],
    ["a reroute between", true, (nodes) => between(nodes, { isVirtualNode: true })],
    ["a bypassed node between", true, (nodes) => between(nodes, { mode: 4 })],
    ["a muted node between", false, (nodes) => between(nodes, { mode: 2 })],
    ["a primitive with the value", true, (nodes) => primitive(nodes, "a")],
    ["a primitive with another value", false, (nodes) => primitive(nodes, "b")],
    ["a node that is gone", false, (nodes) => delete nodes[1]],
    ["a part of a value", false, (nodes) => (nodes["3:5"].widgets[0].value = { x: 2 })],
  ]
  for (const [words, expected, change] of changes) {
    const nodes = nodesOf(prompt)
    change(nodes)
    assert.equal(
      isAsIn(prompt, "3:5", (key) => nodes[key]),
      expected,
      words,
    )
  }
})

test("a loop of nodes is looked at once", () => {
  const prompt = { 1: { class_type: "A", inputs: { x: ["2", 0] } }, 2: { class_type: "B", inputs: { x: ["1", 0] } } }
  const nodes = nodesOf(prompt)
  assert.ok(isAsIn(prompt, "1", (key) => nodes[key]))
})
