// Names, badges and sizes of files, as the page shows them.

import { ENDINGS } from "../routes.js"

/**
 * A file's folder, with its last slash, and its name without the ending.
 *
 * @param {string} file
 * @returns {[folder: string, name: string]}
 */
export function splitName(file) {
  const start = Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\")) + 1
  const name = file.slice(start)
  const ending = ENDINGS.find((one) => name.toLowerCase().endsWith(one)) ?? ""
  return [file.slice(0, start), name.slice(0, name.length - ending.length)]
}

/** The names that PEFT and mlx-lm give to every adapter. */
const GENERIC = new Set(["adapter_model", "adapters"])

/**
 * As `splitName`, for rows, which have little room for the folder. Where a tool calls all its files alike, the folder's
 * name is shown in place of theirs.
 *
 * @param {string} file
 * @returns {[folder: string, name: string]}
 */
export function nameInRow(file) {
  const [folder, name] = splitName(file)
  return GENERIC.has(name) && folder ? splitName(folder.slice(0, -1)) : [folder, name]
}

/** How many letters of a name stay where it is cut: versions and steps are at the end. */
const END = 8

/**
 * A name in two parts, of which the first is cut where there is too little room.
 *
 * @param {string} name
 */
export function halves(name) {
  const letters = [...name]
  const at = letters.length > 2 * END ? letters.length - END : letters.length
  return [letters.slice(0, at).join(""), letters.slice(at).join("")]
}

/**
 * Kind, rank and family of models of a file, in few words.
 *
 * @param {import("./server.js").About | import("./server.js").Facts} about
 */
export function badgesOf(about) {
  if (about.error) return []
  const rank = /^\d+$/u.test(about.rank) ? ` ${about.rank}` : ""
  return [`${about.kind.split(" ")[0]}${rank}`, about.family].filter(Boolean)
}

/**
 * Whether two files are known to be for models of different families.
 *
 * @param {{families?: string[]}} one
 * @param {{families?: string[]}} other
 */
export function apart({ families: own = [] }, { families: others = [] }) {
  return own.length > 0 && others.length > 0 && !own.some((family) => others.includes(family))
}

/** @param {number} bytes */
export function shownSize(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`
}

/** @param {string} file */
const lettersOf = (file) => splitName(file)[1].toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim()

/**
 * All pairs of neighbouring letters, with a space at each end.
 *
 * @param {string} text
 */
function pairsOf(text) {
  const whole = [..." ", ...text, " "]
  return new Set(whole.slice(1).map((letter, index) => `${whole[index]}${letter}`))
}

/** Two names are near if the Dice coefficient of their pairs of letters is at least this. */
const NEAR = 0.5

/**
 * A function that finds the files whose names are nearest to a missing file's name, the nearest first. Folders do not
 * count.
 *
 * @param {string[]} files
 */
export function nearestOf(files) {
  /** @type {Map<string, number[]>} */
  const places = new Map()
  const sizes = files.map((file, index) => {
    const pairs = pairsOf(lettersOf(file))
    for (const pair of pairs) {
      const found = places.get(pair)
      if (found) found.push(index)
      else places.set(pair, [index])
    }
    return pairs.size
  })
  return (/** @type {string} */ name, most = 3) => {
    const pairs = pairsOf(lettersOf(name))
    /** @type {Map<number, number>} */
    const shared = new Map()
    for (const pair of pairs) for (const index of places.get(pair) ?? []) shared.set(index, (shared.get(index) ?? 0) + 1)
    return [...shared]
      .map(([index, count]) => ({ file: files[index], near: (2 * count) / (pairs.size + sizes[index]) }))
      .filter(({ near }) => near >= NEAR)
      .sort((one, other) => other.near - one.near)
      .slice(0, most)
      .map(({ file }) => file)
  }
}
