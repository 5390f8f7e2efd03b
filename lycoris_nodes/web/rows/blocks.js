// Bars of block weights: their shapes and labels.

/** @typedef {import("../routes.js").ShownBar} Bar */
/** @typedef {import("../routes.js").ShownGroup} Group */

/** @param {number} value */
export const shownWeight = (value) => String(Number(value.toFixed(3)))

/**
 * The outline of bars of these heights, from 0 to 1, as a polygon of CSS.
 *
 * @param {number[]} heights
 */
export function outline(heights) {
  const count = Math.max(heights.length, 1)
  const percent = (/** @type {number} */ part) => `${Number((100 * part).toFixed(1))}%`
  // Narrow gaps, where there is room for them.
  const gap = count > 16 ? 0 : 0.3
  const points = heights.flatMap((height, at) => {
    const [left, right] = [at / count, (at + 1 - gap) / count]
    // A bar of height 0 is visible too.
    const top = 1 - Math.min(1, Math.max(0.08, height))
    return [[left, 1], [left, top], [right, top], [right, 1]]
  })
  return `polygon(${points.map(([x, y]) => `${percent(x)} ${percent(y)}`).join(", ")})`
}

/**
 * Reduce values to at most `most`, each the mean of neighbours.
 *
 * @param {number[]} values
 * @param {number} most
 */
export function thinned(values, most) {
  const each = Math.ceil(values.length / most)
  if (each < 2) return values
  return Array.from({ length: Math.ceil(values.length / each) }, (_, at) => {
    const some = values.slice(at * each, (at + 1) * each)
    return some.reduce((sum, value) => sum + value, 0) / some.length
  })
}

/**
 * What is written below a bar: the number of a block, else the last word of its name.
 *
 * @param {Bar} bar
 * @param {Group} group
 */
export function labelOf({ name }, group) {
  const rest = name.startsWith(`${group.name}.`) ? name.slice(group.name.length + 1) : name
  return /^[\d.]+$/u.test(rest) || group.sort === "kinds" ? rest : (rest.split(".").at(-1) ?? rest)
}
