// What reports and refusals say, and whether they still hold.

import { t } from "../language.js"
import { sourceOf, valueOf } from "../rows/graph.js"

/**
 * Why the host refused a node, in words. The host's own checks name the input; ours come once for each input.
 *
 * @param {{type: string, message: string, details?: string, extra_info?: any}[]} reasons
 */
export function refusal(reasons) {
  const words = reasons.map(({ type, message, details, extra_info: { input_name: input, received_value: value } = {} }) => {
    if (type === "value_not_in_list" && input) {
      return t("{input}: {value} is not in the list. Choose another, or press R if it is new", { input, value })
    }
    const ours = type === "custom_validation_failed" && details?.split(" - ").slice(1).join(" - ")
    return ours || [message, details].filter(Boolean).join(": ")
  })
  return together([...new Set(words)])
}

/**
 * A report in the parts that a box shows: the first line, the rest of its paragraph, and the folded paragraphs.
 *
 * @param {string} report
 */
export function partsOf(report) {
  const [head, ...folded] = report.split(/\n\s*\n/u)
  const [first, ...rest] = head.split("\n")
  return { first, rest: rest.join("\n"), folded: folded.join("\n\n") }
}

/**
 * Join texts: first their first paragraphs, then the folded ones.
 *
 * @param {string[]} texts
 */
export function together(texts) {
  const parts = texts.filter(Boolean).map((text) => text.split(/\n\s*\n/u))
  const heads = parts.map(([head]) => head).join("\n")
  return [heads, ...parts.flatMap(([, ...folded]) => folded)].join("\n\n")
}

/**
 * How much is free between a node and the next one below it; infinity where there is none.
 *
 * @param {{left: number, right: number, bottom: number}} node
 * @param {{left: number, right: number, top: number}[]} others with the `top` of their titles
 */
export function freeBelow({ left, right, bottom }, others) {
  const tops = others
    .filter((other) => other.left < right && other.right > left && other.top >= bottom - 1)
    .map(({ top }) => top)
  return Math.min(...tops, Infinity) - bottom
}

/** @typedef {Record<string, {class_type: string, inputs: Record<string, unknown>}>} Prompt */

/**
 * Whether a node and all before it have the values and links that they had in a prompt.
 *
 * The front end is not asked for a new prompt, because making one makes some widgets take and upload pictures.
 *
 * @param {Prompt} prompt
 * @param {string} key
 * @param {(key: string) => GraphNode | null | undefined} find
 * @returns {boolean}
 */
export function isAsIn(prompt, key, find, done = new Set()) {
  if (done.has(key)) return true
  done.add(key)
  const ids = key.split(":")
  const [node, ...outer] = ids.map((_, at) => find(ids.slice(0, ids.length - at).join(":")))
  const { class_type, inputs } = prompt[key]
  // Any mode but 0 is muted or bypassed.
  if (!node || node.comfyClass !== class_type || node.mode !== 0) return false
  const place = /** @type {import("../rows/graph.js").Place} */ ({ node, way: outer.reverse() })
  const linked = new Map(
    (node.inputs ?? []).flatMap(({ name }, slot) => (node.isInputConnected(slot) ? [[name, sourceOf(place, slot)]] : [])),
  )
  return [...new Set([...linked.keys(), ...Object.keys(inputs)])].every((name) => {
    const value = inputs[name]
    const source = linked.get(name)
    if (Array.isArray(value) && value[0] in prompt) {
      const from = source && [...source.way, source.node].map(({ id }) => id).join(":")
      return from === value[0] && source?.output === value[1] && isAsIn(prompt, value[0], find, done)
    }
    // Another node gives this value only when it runs.
    if (source?.output !== undefined && !source.node.isVirtualNode) return false
    const present = linked.has(name) ? valueOf(source ?? null) : node.widgets?.find((widget) => widget.name === name)?.value
    return JSON.stringify(present) === JSON.stringify(value)
  })
}
