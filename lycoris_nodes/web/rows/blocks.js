// Block rules as text and as bars: which lines the bars can show, and the text that they write.
//
// The end of a text belongs to the bars: lines that name only bars, then lines that scale kinds of layers. Everything
// up to the last line of another form (a pattern, a preset, a vector) stays as written. The bars' lines come after it,
// so they win.

/**
 * `sort` is `blocks`, `beside` (in no list of blocks), `text` (a text encoder) or `kinds`. `layers` counts the model's
 * layers in a bar, `mine` the file's, and `share` is the bar's part of the file's change, from 0 to 1.
 *
 * @typedef {{name: string, layers: number, mine: number, share: number}} Bar
 * @typedef {{name: string, sort: string, bars: Bar[]}} Group
 */

const LINE = /^\s*([^=:/%#]+?)\s*=\s*(\*?)\s*([-+]?(?:\d+\.?\d*|\.\d+)|off)\s*$/iu
const RANGE = /^(.+)\.(\d+)-(?:\1\.)?(\d+)$/u
/** The most letters of the names in one line. */
const WIDE = 48

/**
 * What one line says.
 *
 * @typedef {{sort: "note" | "other"} | {sort: "values" | "kinds", names: string[], value: number, comment: string}} Said
 */

/** @param {Group[]} groups */
function placesOf(groups) {
  const bars = groups.filter(({ sort }) => sort !== "kinds").flatMap(({ bars: own }) => own)
  return new Map(bars.map(({ name }, place) => [name.toLowerCase(), { name, place }]))
}

/**
 * The bars that a word names; null if one of them does not exist.
 *
 * @param {string} word
 * @param {ReturnType<typeof placesOf>} places
 */
function namedBy(word, places) {
  const low = word.toLowerCase()
  const one = places.get(low)
  if (one) return [one.name]
  const range = RANGE.exec(low)
  if (!range) return null
  const found = []
  for (let at = Number(range[2]); at <= Number(range[3]) && found.length <= places.size; at++) {
    const bar = places.get(`${range[1]}.${at}`)
    if (!bar) return null
    found.push(bar.name)
  }
  return found.length ? found : null
}

/**
 * @param {string} line
 * @param {ReturnType<typeof placesOf>} places
 * @param {Set<string>} kinds
 * @returns {Said}
 */
function saidBy(line, places, kinds) {
  const start = line.indexOf("#")
  const body = start < 0 ? line : line.slice(0, start)
  if (!body.trim()) return { sort: "note" }
  const found = LINE.exec(body)
  if (!found) return { sort: "other" }
  const words = found[1].split(/[\s,]+/u)
  const value = found[3].toLowerCase() === "off" ? 0 : Number(found[3])
  const comment = start < 0 ? "" : line.slice(start)
  if (found[2]) {
    const names = words.map((word) => word.toLowerCase())
    return names.every((name) => kinds.has(name)) ? { sort: "kinds", names, value, comment } : { sort: "other" }
  }
  const names = words.map((word) => namedBy(word, places))
  return names.includes(null)
    ? { sort: "other" }
    : { sort: "values", names: /** @type {string[][]} */ (names).flat(), value, comment }
}

/**
 * Split a text into the lines before those of the bars (`head`) and the values of the bars. `first` is the number of
 * the first line that scales a kind.
 *
 * @param {string} text
 * @param {Group[]} groups
 */
export function partsOf(text, groups) {
  const places = placesOf(groups)
  const kindBars = groups.filter(({ sort }) => sort === "kinds").flatMap(({ bars }) => bars)
  const kindNames = new Set(kindBars.map(({ name }) => name))
  const lines = text.replace(/\n+$/u, "").split("\n")
  const said = lines.map((line) => saidBy(line, places, kindNames))
  let end = said.length
  let met = "kinds"
  while (end > 0) {
    const { sort } = said[end - 1]
    // A scale before values has no effect on them.
    if (sort === "other" || (sort === "kinds" && met === "values")) break
    if (sort === "values") met = sort
    end--
  }
  /** @type {Map<string, number>} */
  const values = new Map()
  /** @type {Map<string, number>} */
  const kinds = new Map()
  /** @type {string[]} */
  const notes = []
  /** @type {Map<string, string>} */
  const comments = new Map()
  let first = lines.length
  for (const [at, one] of said.entries()) {
    if (at < end) continue
    if (one.sort === "note") {
      if (lines[at].trim()) notes.push(lines[at])
    } else if (one.sort === "values" || one.sort === "kinds") {
      const table = one.sort === "kinds" ? kinds : values
      if (one.sort === "kinds") first = Math.min(first, at)
      for (const name of one.names) table.set(name, one.sort === "kinds" ? one.value * (kinds.get(name) ?? 1) : one.value)
      if (one.comment) comments.set(key(one.names, one.value, places), one.comment)
    }
  }
  return { head: lines.slice(0, end), values, kinds, notes, comments, first }
}

/**
 * A text without its lines at the end that scale kinds: the bars of the kinds show these. The lines before them keep
 * their line numbers.
 *
 * @param {string} text
 * @param {Group[]} groups
 */
export function withoutKinds(text, groups) {
  return text.split("\n").slice(0, partsOf(text, groups).first).join("\n")
}

/** @param {number} value */
export const shownWeight = (value) => String(Number(value.toFixed(3)))

/**
 * @param {string[]} names
 * @param {number} value
 * @param {ReturnType<typeof placesOf>} places
 */
const key = (names, value, places) => `${spelled(names, places).join(" ")} = ${shownWeight(value)}`

/**
 * Names of bars, consecutive ones as ranges.
 *
 * @param {string[]} names
 * @param {ReturnType<typeof placesOf>} places
 */
function spelled(names, places) {
  const at = (/** @type {string} */ name) => places.get(name.toLowerCase())?.place ?? 0
  const sorted = [...new Set(names)].sort((one, other) => at(one) - at(other))
  /** @type {{family: string, from: number, to: number, name: string}[]} */
  const found = []
  for (const name of sorted) {
    const parts = /^(.*)\.(\d+)$/u.exec(name)
    const [family, number] = parts ? [parts[1], Number(parts[2])] : [name, NaN]
    const last = found.at(-1)
    if (last?.family === family && last.to + 1 === number) last.to = number
    else found.push({ family, from: number, to: number, name })
  }
  return found.map(({ family, from, to, name }) => (from < to ? `${family}.${from}-${to}` : name))
}

/**
 * The lines that give bars their values. Bars of the same value share a line.
 *
 * @param {Map<string, number>} values
 * @param {ReturnType<typeof placesOf>} places
 */
function linesOf(values, places) {
  /** @type {Map<string, string[]>} */
  const byValue = new Map()
  const order = [...places.values()].filter(({ name }) => values.has(name))
  for (const { name } of order) {
    const shown = shownWeight(values.get(name) ?? 1)
    byValue.set(shown, [...(byValue.get(shown) ?? []), name])
  }
  return [...byValue].flatMap(([shown, names]) => {
    /** @type {string[]} */
    const lines = []
    for (const word of spelled(names, places)) {
      const last = lines.at(-1)
      if (last !== undefined && last.length + word.length < WIDE) lines[lines.length - 1] = `${last} ${word}`
      else lines.push(word)
    }
    return lines.map((line) => `${line} = ${shown}`)
  })
}

/**
 * The text after some bars have been set.
 *
 * @param {string} text
 * @param {Map<string, number>} changes the new weight of each bar
 * @param {Group[]} groups
 */
export function painted(text, changes, groups) {
  const places = placesOf(groups)
  const { head, values, kinds, notes, comments } = partsOf(text, groups)
  for (const [name, value] of changes) {
    if (places.has(name.toLowerCase())) values.set(name, value)
    else kinds.set(name, value)
  }
  // If no other lines come before, a bar without a line has the weight 1.
  if (!head.length) for (const [name, value] of values) if (value === 1) values.delete(name)
  const scales = [...kinds].filter(([, value]) => value !== 1)
  const commented = (/** @type {string} */ line) => {
    const comment = comments.get(line)
    comments.delete(line)
    return comment ? `${line}  ${comment}` : line
  }
  const lines = linesOf(values, places).map(commented)
  const rest = [...comments.values()]
  return [...head, ...notes, ...rest, ...lines, ...scales.map(([name, value]) => `${name} = *${shownWeight(value)}`)].join(
    "\n",
  )
}

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
