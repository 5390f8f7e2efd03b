// Inputs of Train LoRA / LyCORIS that few need are folded away with its advanced widgets. Those that are linked stay.

const RARE = [
  ...["plan", "stack", "masks", "empty_caption", "clip", "captions", "sample_positive"],
  ...["regularisation_latents", "regularisation_positive", "regularisation_captions"],
  ...["validation_latents", "validation_positive", "validation_captions", "low_noise_model"],
]

/** @type {WeakMap<GraphNode, any[]>} */
const folded = new WeakMap()
/** How high nodes were before they were unfolded. */
/** @type {WeakMap<GraphNode, number>} */
const heights = new WeakMap()

/**
 * The order in which inputs are shown: those that are always there, then the rare ones, then those of widgets.
 *
 * @param {{name: string, widget?: any}} input
 */
const orderOf = ({ name, widget }) => (widget ? RARE.length + 1 : RARE.indexOf(name) + 1)

/**
 * Fold the advanced widgets that a group has added since the node was made. Vue knows them by their options.
 *
 * @param {GraphNode} node
 */
export function foldGroups(node) {
  for (const widget of /** @type {Widget[]} */ (node.widgets ?? [])) {
    if (widget.options?.advanced) widget.advanced = true
  }
}

/**
 * Fold the rare inputs of a node, or show them all where it shows its advanced widgets.
 *
 * @param {GraphNode} node
 */
export function foldInputs(node) {
  foldGroups(node)
  const kept = folded.get(node) ?? []
  const inputs = /** @type {any[]} */ (node.inputs)
  // Inputs that a loaded workflow adds to the node have no localized names.
  for (const { name, localized_name: shown } of kept) {
    const input = inputs.find((one) => one.name === name)
    if (input && shown) input.localized_name = shown
  }
  if (node.showAdvanced) {
    heights.set(node, node.size[1])
    const missing = kept.filter(({ name }) => !inputs.some((input) => input.name === name))
    folded.set(node, [])
    for (const { name, type, ...rest } of missing) node.addInput(name, type, rest)
    if (missing.length) sort(node)
    return
  }
  const rare = inputs.filter(
    ({ name, widget }, slot) => RARE.includes(name) && !widget && !node.isInputConnected(slot),
  )
  // A loaded workflow adds inputs again that were folded when the node was made.
  folded.set(node, [...kept, ...rare.filter(({ name }) => !kept.some((one) => one.name === name))])
  for (const input of rare) node.removeInput(node.inputs.indexOf(input))
  const height = heights.get(node)
  if (height !== undefined) node.setSize([node.size[0], Math.max(height, node.computeSize()[1])])
  heights.delete(node)
}

/** Put inputs that were added last where they belong. */
function sort(/** @type {GraphNode} */ node) {
  const inputs = /** @type {any[]} */ (node.inputs)
  /** @type {any[]} */
  const links = inputs.map((_, slot) => node.getInputLink(slot))
  const sorted = [...inputs].sort((one, other) => orderOf(one) - orderOf(other))
  const slots = inputs.map((input) => sorted.indexOf(input))
  inputs.splice(0, inputs.length, ...sorted)
  // The newest front end finds a link by its slot, and refuses to move one to a slot that another link still has.
  for (const beyond of [slots.length, 0]) {
    for (const [before, link] of links.entries()) if (link) link.target_slot = beyond + slots[before]
  }
}
