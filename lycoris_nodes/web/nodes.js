// Helpers for nodes that the parts of this extension share.

import { app } from "../../scripts/app.js"

/**
 * Whether a node of this type is ours. Goes by the id: categories are translated, and users change titles.
 *
 * @param {string | null | undefined} type
 */
export const isOurs = (type) => type?.startsWith("Lycoris") ?? false

/**
 * Our nodes in the workflow and its subgraphs, each with the host's key for it.
 *
 * @returns {Generator<[key: string, node: GraphNode]>}
 */
export function* ourKeyedNodes(graph = app.rootGraph, within = "") {
  for (const node of /** @type {GraphNode[]} */ (graph.nodes)) {
    const key = `${within}${node.id}`
    if (isOurs(node.type)) yield [key, node]
    if (node.subgraph) yield* ourKeyedNodes(node.subgraph, `${key}:`)
  }
}

/** Our nodes in the workflow and its subgraphs. */
export function* ourNodes() {
  for (const [, node] of ourKeyedNodes()) yield node
}

/**
 * Find a node by the host's key: `5`, or `3:5` for node 5 in the subgraph of node 3.
 *
 * @param {string | number} key
 */
export function anyNodeOf(key) {
  /** @type {Graph | undefined} */
  let graph = app.rootGraph
  /** @type {GraphNode | null | undefined} */
  let node
  for (const id of String(key).split(":")) {
    node = /** @type {GraphNode | null | undefined} */ (graph?.getNodeById(id))
    graph = node?.subgraph
  }
  return node
}

/**
 * Find our node by the host's key. Null for others' nodes.
 *
 * @param {string | number} key
 */
export function nodeOf(key) {
  const node = anyNodeOf(key)
  return isOurs(node?.type) ? node : null
}

/**
 * Call `act` after a method of all nodes of a class, with the node and the arguments of the call.
 *
 * @param {NodeClass} nodeType
 * @param {"onConfigure" | "onConnectionsChange" | "onRemoved" | "onResize" | "onSerialize"} method
 * @param {(node: GraphNode, ...values: any[]) => void} act
 */
export function after(nodeType, method, act) {
  /** @type {any} */
  const methods = nodeType.prototype
  const earlier = methods[method]
  methods[method] = function (/** @type {any[]} */ ...values) {
    const result = earlier?.apply(this, values)
    act(this, ...values)
    return result
  }
}

/**
 * Call `act` after each new value of a widget: typed, loaded with a workflow, or restored by Undo.
 *
 * @param {Widget} widget
 * @param {() => void} act
 */
export function onValue(widget, act) {
  const { callback } = widget
  widget.callback = function (...values) {
    callback?.apply(this, values)
    act()
  }
}

/**
 * @param {GraphNode} node
 * @param {string} name
 * @returns {Widget | undefined}
 */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

let shown = 0

/**
 * Show an element on a node. It is part of neither the prompt nor the saved workflow.
 *
 * @param {GraphNode} node
 * @param {string} name
 * @param {HTMLElement} element its first class, with a number, becomes the widget's type. The front end knows no such
 *   type, so it shows the element itself, whether nodes are drawn on the canvas or by Vue. Without the number, Vue would
 *   keep the element of an earlier node with the same id, as after Undo
 * @param {DomWidgetOptions} options
 */
export function showElement(node, name, element, options) {
  const unsaved = { serialize: false, getValue: () => "", setValue: () => {} }
  // The properties panel would show its name without the element, and give the widget the panel's width for ever.
  const own = { ...unsaved, hideInPanel: true, ...options }
  const widget = node.addDOMWidget(name, `${element.classList[0]}-${++shown}`, element, own)
  // `options.serialize` keeps it out of the prompt, `widget.serialize` out of the saved workflow.
  widget.serialize = false
  return widget
}

const frame = () => new Promise(requestAnimationFrame)

/** Wait until nodes have been drawn in a new size: Vue measures them a little later. */
export async function drawn() {
  await frame()
  await frame()
}
