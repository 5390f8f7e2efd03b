import assert from "node:assert/strict"
import { test } from "node:test"
import { loadedBy, takersOf } from "../../lycoris_nodes/web/rows/graph.js"

/** A graph as the front end has it, of nodes `{id, in: {name: [type, from]}, out: [types]}`; `from` is [id, slot]. */
function graphOf(nodes, outputs = []) {
  const links = []
  const graph = {
    nodes: [],
    links,
    getLink: (id) => links[id],
    getNodeById: (id) => graph.nodes.find((node) => node.id === id),
    outputs: outputs.map(([origin_id, origin_slot]) => ({ linkIds: [links.push({ origin_id, origin_slot }) - 1] })),
  }
  graph.nodes = nodes.map(({ in: inputs = {}, out = [], values = {}, ...node }) => ({
    mode: 0,
    ...node,
    graph,
    inputs: Object.entries(inputs).map(([name, [type, from]], target_slot) => ({
      name,
      type,
      widget: name in values ? { name } : undefined,
      linked: from ? links.push({ origin_id: from[0], origin_slot: from[1], target_id: node.id, target_slot }) - 1 : null,
    })),
    outputs: out.map((type) => ({ type })),
    widgets: Object.entries(values).map(([name, value]) => ({ name, value, options: { values: [value] } })),
    isInputConnected(slot) {
      return this.inputs[slot].linked !== null
    },
    // A subgraph's is about its outputs.
    getInputLink(slot) {
      return node.subgraph ? assert.fail() : links[this.inputs[slot]?.linked]
    },
  }))
  return graph
}

const STACK = "LYCORIS_STACK"
const BOTH = "LYCORIS_STACK,LORA_STACK"
const loader = (id, file) => ({ id, out: ["MODEL", "CLIP", "VAE"], values: { ckpt_name: file } })
const apply = (id, model, stack, clip) => ({
  id,
  in: { model: ["MODEL", model], stack: [BOTH, stack], clip: ["CLIP", clip] },
  out: ["MODEL", "CLIP", "STRING"],
  values: { mode: "auto" },
})
const given = (graph, id) => {
  const takers = takersOf(graph, graph.getNodeById(id))
  return takers.map((place) => [place.node.id, loadedBy(place, "MODEL"), loadedBy(place, "CLIP")])
}

test("a stack is followed to the model that it is applied to", () => {
  const graph = graphOf([
    loader(1, "sd15.safetensors"),
    { id: 2, in: { model: ["MODEL", [1, 0]] }, out: ["MODEL"], values: { lora_name: "a.safetensors" } },
    { id: 3, out: [STACK], in: { stack: [BOTH, null] } },
    { id: 4, isVirtualNode: true, in: { "": ["*", [3, 0]] }, out: ["*"] },
    { id: 5, in: { "stacks.stack0": [BOTH, null], "stacks.stack1": [BOTH, [4, 0]] }, out: [STACK] },
    { id: 6, mode: 4, in: { model: ["MODEL", null], stack: [BOTH, [5, 0]] }, out: [STACK] },
    // A chain of two: the nearer one takes nothing of ours.
    apply(7, [2, 0], null, [1, 1]),
    apply(8, [7, 0], [6, 0], [7, 1]),
    apply(9, [1, 0], [10, 0]),
    { id: 10, out: [STACK] },
    // It only looks at the stack.
    { id: 11, in: { model: ["MODEL", [1, 0]], stack: [BOTH, [3, 0]] }, out: ["IMAGE"] },
    { ...apply(12, [1, 0], [5, 0]), mode: 2 },
  ])
  assert.deepEqual(given(graph, 3), [[8, ["sd15.safetensors"], ["sd15.safetensors"]]])
  assert.deepEqual(given(graph, 10), [[9, ["sd15.safetensors"], ["auto"]]])
})

test("what saves a merged file has its model among its own choices, and some stacks reach none", () => {
  const graph = graphOf([
    { id: 1, out: [STACK] },
    { id: 2, in: { stack: [BOTH, [1, 0]] }, out: [], values: { base: "checkpoints/x.safetensors" } },
    { id: 3, out: [STACK] },
    { id: 4, in: { model: ["MODEL", null], stack: [BOTH, [3, 0]] }, out: ["IMAGE"] },
  ])
  assert.deepEqual(given(graph, 1), [[2, ["checkpoints/x.safetensors"], ["checkpoints/x.safetensors"]]])
  assert.deepEqual(given(graph, 3), [[4, [], []]])
})

test("subgraphs are entered and left, and a value comes from where it is set", () => {
  const inner = graphOf(
    [
      { id: 1, in: { stack: [BOTH, null] }, out: [STACK] },
      { id: 2, in: { stack: [BOTH, [1, 0]] }, out: [STACK] },
      { id: 3, in: { ckpt_name: ["COMBO", [-10, 0]] }, out: ["MODEL"], values: { ckpt_name: "inner" } },
    ],
    [
      [2, 0],
      [3, 0],
    ],
  )
  const holder = (id, from, value) => ({
    id,
    subgraph: inner,
    isVirtualNode: true,
    in: { ckpt_name: ["COMBO", from] },
    out: [STACK, "MODEL"],
    values: { ckpt_name: value },
  })
  const graph = graphOf([
    { id: 4, isVirtualNode: true, out: ["COMBO"], values: { value: "primitive" } },
    holder(5, [4, 0], "hidden by the link"),
    holder(6, null, "own"),
    apply(7, [5, 1], [5, 0]),
    apply(8, [6, 1], [6, 0]),
    apply(9, [6, 1], [10, 0]),
    { id: 10, in: { stack: [BOTH, null] }, out: [STACK] },
    { ...holder(11, null, "off"), mode: 2 },
    apply(12, [11, 1], [11, 0]),
  ])
  const found = takersOf(graph, inner.getNodeById(1)).map((place) => [place.node.id, loadedBy(place, "MODEL")])
  assert.deepEqual(found, [
    [7, ["primitive"]],
    [8, ["own"]],
  ])
})

test("a circle ends", () => {
  const graph = graphOf([
    { id: 1, in: { stack: [BOTH, [2, 0]] }, out: [STACK] },
    { id: 2, in: { stack: [BOTH, [1, 0]] }, out: [STACK] },
    { id: 3, in: { model: ["MODEL", [4, 0]], stack: [BOTH, [2, 0]] }, out: ["MODEL"] },
    { id: 4, in: { model: ["MODEL", [3, 0]] }, out: ["MODEL"] },
    { id: 5, out: [STACK] },
  ])
  assert.deepEqual(given(graph, 1), [[3, [], []]])
  assert.deepEqual(given(graph, 5), [])
})
