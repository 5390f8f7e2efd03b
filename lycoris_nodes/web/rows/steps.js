// Steps of strengths, and how rows are selected and moved.

/** A step with Shift, without a key, and with Ctrl. */
export const STEPS = { fine: 0.01, usual: 0.05, coarse: 0.5 }

/** @param {{shiftKey: boolean, ctrlKey: boolean, metaKey: boolean}} event */
export function stepOf({ shiftKey, ctrlKey, metaKey }) {
  return shiftKey ? STEPS.fine : ctrlKey || metaKey ? STEPS.coarse : STEPS.usual
}

/**
 * Counts a distance in whole pieces; the rest is kept for the next distance.
 *
 * @param {number} piece
 */
export function pieces(piece) {
  let rest = 0
  return (/** @type {number} */ way) => {
    rest += way
    const whole = Math.trunc(rest / piece)
    rest -= whole * piece
    return whole
  }
}

/**
 * A strength plus an amount, within bounds and rounded to six decimals.
 *
 * @param {number} value
 * @param {number} amount
 * @param {{min: number, max: number}} bounds
 */
export function shifted(value, amount, { min, max }) {
  return Math.min(max, Math.max(min, Number((value + amount).toFixed(6))))
}

/**
 * @param {Set<number>} chosen
 * @param {number} index
 */
export function toggled(chosen, index) {
  const now = new Set(chosen)
  if (!now.delete(index)) now.add(index)
  return now
}

/**
 * The chosen indices, and all from one to another.
 *
 * @param {Set<number>} chosen
 * @param {number} from
 * @param {number} to
 */
export function chosenUpTo(chosen, from, to) {
  const [first, last] = from < to ? [from, to] : [to, from]
  return new Set([...chosen, ...Array.from({ length: last - first + 1 }, (_, index) => first + index)])
}

/**
 * Move the chosen things, `from` among them, to the place of another one.
 *
 * @template Thing
 * @param {Thing[]} things
 * @param {Set<number>} chosen
 * @param {number} from
 * @param {number} to
 */
export function moved(things, chosen, from, to) {
  const left = [...things.keys()].filter((index) => !chosen.has(index))
  const before = left.filter((index) => (to > from ? index <= to : index < to)).length
  const order = left.toSpliced(before, 0, ...[...chosen].sort((one, other) => one - other))
  return order.map((index) => things[index])
}
