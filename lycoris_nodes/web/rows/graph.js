// Where a node's output goes and where a node's input comes from: through reroutes and other virtual nodes, bypassed
// nodes and subgraphs. It uses only the nodes that it is given, and nothing else of the page.

/**
 * The part of a node that is used here. Some hold a subgraph, and virtual ones only pass on what another node gives.
 *
 * @typedef {{
 *   id: any, type?: string | null, mode?: number, isVirtualNode?: boolean, graph?: any, subgraph?: any,
 *   inputs?: {name: string, type: any, link?: any, widget?: {name: string}}[],
 *   outputs?: {type: any}[],
 *   widgets?: {name: string, value?: any, options?: any}[],
 *   isInputConnected: (slot: number) => boolean,
 *   getInputLink?: (slot: number) => any,
 *   resolveVirtualOutput?: (slot: number) => {node: any, slot: number} | undefined,
 * }} Node
 */

/**
 * A node and the subgraph nodes around it, outermost first: a subgraph that is used twice has its nodes twice.
 *
 * @typedef {{node: Node, way: Node[]}} Place
 */

const [NEVER, BYPASSED] = [2, 4]
/** The id that stands for the inputs of the subgraph in its own links. In some front ends ids are texts. */
const INPUTS = "-10"
const STACKS = ["LYCORIS_STACK", "LORA_STACK"]
const ENDING = /\.(?:safetensors|sft|ckpt|pt|pth|bin|gguf)$/iu

/**
 * All nodes that run, in a workflow and its subgraphs.
 *
 * @param {any} graph
 * @param {Node[]} way
 * @returns {Generator<Place>}
 */
export function* places(graph, way = []) {
  for (const node of graph.nodes) {
    if (node.mode === NEVER || node.mode === BYPASSED) continue
    if (node.subgraph) yield* places(node.subgraph, [...way, node])
    else if (!node.isVirtualNode) yield { node, way }
  }
}

/** @param {any} type */
const typesOf = (type) => String(type).split(",")

/**
 * Whether a slot is of one of these types.
 *
 * @param {{type: any}} slot
 * @param {string[]} types
 */
const isOf = (slot, types) => typesOf(slot.type).some((type) => types.includes(type))

/**
 * The output that an input is linked to. If the way ends at an input without a link, the result is that input, and has
 * `input` in place of `output`. The result is null if the source does not run.
 *
 * @param {Place} place
 * @param {number} input
 * @returns {Place & {output?: number, input?: number} | null}
 */
export function sourceOf({ node, way }, input) {
  // Not `node.getInputLink`: virtual nodes and nodes with subgraphs override it, and ask it for their outputs.
  const links = node.isInputConnected(input) ? [...node.graph.links.values()] : []
  const found = links.find((link) => String(link.target_id) === String(node.id) && link.target_slot === input)
  return found ? origin(node.graph, found, way) : { node, way, input }
}

/**
 * @param {any} graph
 * @param {any} link
 * @param {Node[]} way
 */
function origin(graph, link, way) {
  if (String(link.origin_id) === INPUTS) {
    const outer = way.at(-1)
    return outer ? sourceOf({ node: outer, way: way.slice(0, -1) }, link.origin_slot) : null
  }
  const node = graph.getNodeById(link.origin_id)
  return node ? through({ node, way }, link.origin_slot) : null
}

/**
 * @param {Place} place
 * @param {number} output
 * @returns {ReturnType<typeof sourceOf>}
 */
function through(place, output) {
  const { node, way } = place
  if (node.mode === NEVER) return null
  if (node.mode === BYPASSED) {
    const types = typesOf(node.outputs?.[output]?.type)
    const inputs = node.inputs ?? []
    const same = inputs[output] && isOf(inputs[output], types) ? output : inputs.findIndex((one) => isOf(one, types))
    return same < 0 ? null : sourceOf(place, same)
  }
  if (node.subgraph) {
    const link = node.subgraph.getLink(node.subgraph.outputs[output]?.linkIds?.[0])
    return link ? origin(node.subgraph, link, [...way, node]) : null
  }
  if (node.isVirtualNode) {
    const told = node.resolveVirtualOutput?.(output)
    if (told) return through({ node: told.node, way }, told.slot)
    const link = node.getInputLink?.(output)
    if (link) return origin(node.graph, link, way)
    // A reroute without a link passes on nothing; a primitive has a value of its own.
    if (node.inputs?.length) return null
  }
  return { node, way, output }
}

/**
 * The inputs of a node that have one of these types; if there are none, its inputs of any type (`*`).
 *
 * @param {Node} node
 * @param {string[]} types
 */
function inputsOf(node, types) {
  const numbers = (node.inputs ?? []).map((_, number) => number)
  const are = (/** @type {string[]} */ wanted) => numbers.filter((at) => isOf(node.inputs?.[at] ?? { type: "" }, wanted))
  const found = are(types)
  return found.length ? found : are(["*"])
}

/**
 * Whether a node's output reaches the stack inputs of another.
 *
 * @param {Node} node
 * @param {Place} place
 * @param {Set<string>} seen
 * @returns {boolean}
 */
function reaches(node, place, seen = new Set()) {
  return inputsOf(place.node, STACKS).some((input) => {
    const source = sourceOf(place, input)
    if (source?.output === undefined) return false
    if (source.node === node) return true
    const key = [...source.way, source.node].map(({ id }) => id).join(":")
    if (seen.has(key)) return false
    seen.add(key)
    return reaches(node, source, seen)
  })
}

const hasInput = (/** @type {Node} */ node, /** @type {string[]} */ types) =>
  (node.inputs ?? []).some((input) => isOf(input, types))
const gives = (/** @type {Node} */ node, /** @type {string} */ type) =>
  (node.outputs ?? []).some((output) => isOf(output, [type]))

/**
 * The nodes where a node's stack ends up: those that take a model too, and those that pass no stack on. If some of them
 * give a model, only these are returned.
 *
 * @param {any} root the graph of the whole workflow
 * @param {Node} node
 * @returns {Place[]}
 */
export function takersOf(root, node) {
  const found = [...places(root)].filter(
    (place) =>
      place.node !== node &&
      hasInput(place.node, STACKS) &&
      (hasInput(place.node, ["MODEL"]) || !STACKS.some((type) => gives(place.node, type))) &&
      reaches(node, place),
  )
  const applies = found.filter((place) => gives(place.node, "MODEL"))
  return applies.length ? applies : found
}

/**
 * The values of a node's widgets that may name a file, in their order. A linked value counts if it is known on the
 * page.
 *
 * @param {Place} place
 * @returns {string[]}
 */
function choicesOf(place) {
  const { node } = place
  const values = (node.widgets ?? []).map((widget) => {
    const input = (node.inputs ?? []).findIndex((one) => one.widget?.name === widget.name)
    const linked = input >= 0 && node.isInputConnected(input)
    const value = linked ? valueOf(sourceOf(place, input)) : widget.value
    const name = value?.content ?? value
    return typeof name === "string" && (widget.options?.values || ENDING.test(name)) ? name : ""
  })
  return values.filter(Boolean)
}

/**
 * The value that an input gets, as known on the page; undefined for one that a node gives only when it runs.
 *
 * @param {ReturnType<typeof sourceOf>} source
 */
export function valueOf(source) {
  if (!source) return undefined
  const { node, input } = source
  if (input === undefined) return node.isVirtualNode ? node.widgets?.[0]?.value : undefined
  const name = node.inputs?.[input].widget?.name ?? node.inputs?.[input].name
  return node.widgets?.find((widget) => widget.name === name)?.value
}

/**
 * The files named by the node that loads the model or CLIP of a node, past all nodes that change it on the way. The
 * loader is the first node without a linked input of that type.
 *
 * @param {Place} place
 * @param {string} type `MODEL` or `CLIP`
 * @returns {string[]}
 */
export function loadedBy(place, type) {
  /** @type {Set<Node>} */
  const seen = new Set()
  /** @type {(place: Place) => string[]} */
  const search = (place) => {
    if (seen.has(place.node)) return []
    seen.add(place.node)
    const sources = inputsOf(place.node, [type]).map((input) => sourceOf(place, input))
    const linked = sources.filter((source) => source?.output !== undefined)
    if (!linked.length) return choicesOf(place)
    for (const source of linked) {
      const found = source ? search(source) : []
      if (found.length) return found
    }
    return []
  }
  return search(place)
}
