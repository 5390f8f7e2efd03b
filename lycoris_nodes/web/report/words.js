// What reports and refusals say, and whether they still hold.

/**
 * Why the host refused a node, in words. Its own checks name the input, and ours are repeated for each input.
 *
 * @param {{type: string, message: string, details?: string}[]} reasons
 */
export function refusal(reasons) {
  const words = reasons.map(({ type, message, details }) => {
    const ours = type === "custom_validation_failed" && details?.split(" - ").slice(1).join(" - ")
    return ours || [message, details].filter(Boolean).join(": ")
  })
  return [...new Set(words)].join("\n")
}

/**
 * The first line of a report, and what follows it.
 *
 * @param {string} report
 */
export function firstAndRest(report) {
  const [first, ...rest] = report.split("\n")
  return [first, rest.join("\n").replace(/^\n/, "")]
}

/**
 * How much is free between a node and the next one below it; infinity where there is none.
 *
 * @param {{left: number, right: number, bottom: number}} node
 * @param {{left: number, right: number, top: number}[]} others with their titles
 */
export function freeBelow({ left, right, bottom }, others) {
  const tops = others
    .filter((other) => other.left < right && other.right > left && other.top >= bottom - 1)
    .map(({ top }) => top)
  return Math.min(...tops, Infinity) - bottom
}

/** @typedef {Record<string, {class_type: string, inputs: Record<string, unknown>}>} Prompt */

/**
 * Whether a node and all before it are in one prompt as they are in another.
 *
 * @param {Prompt} prompt
 * @param {Prompt} other
 * @param {string} key
 * @returns {boolean}
 */
export function isSame(prompt, other, key, done = new Set()) {
  if (done.has(key)) return true
  done.add(key)
  const [node, another] = [prompt[key], other[key]]
  if (!another || node.class_type !== another.class_type) return false
  const inputs = Object.entries(node.inputs)
  if (inputs.length !== Object.keys(another.inputs).length) return false
  return inputs.every(([name, value]) => {
    if (JSON.stringify(value) !== JSON.stringify(another.inputs[name])) return false
    return !Array.isArray(value) || !(value[0] in prompt) || isSame(prompt, other, value[0], done)
  })
}
