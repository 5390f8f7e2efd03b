// Which files the picker shows, in which order, and in which folders.

import { t } from "../../language.js"
import { splitName } from "../names.js"

/**
 * A file of the list, and what is known of it so far. Typed words are sought in `name`, `path` and `more`.
 *
 * @typedef {{
 *   listed: import("../server.js").Listed, file: string, parts: [folder: string, name: string],
 *   name: string, path: string, more: string[], facts: import("../server.js").Facts | null, reason: string,
 * }} Entry
 *
 * @typedef {{item: "file", key: string, entry: Entry, depth: number, found: string[], whole: boolean}} FileItem
 * `found`: the title, trigger words and tags that hold typed words; `whole`: shown with its folder
 * @typedef {{item: "folder", key: string, words: string, count: number, depth: number, open: boolean}} FolderItem
 * @typedef {FileItem | FolderItem} Item
 *
 * @typedef {{
 *   view: "list" | "grid", sort: string, closed: string[],
 *   favourites: Record<string, boolean>, used: Record<string, [times: number, last: number]>,
 *   sets: import("../state.js").RunSet[],
 * }} Kept what the picker remembers, and the sets of rows that were run, the last one first
 */

export const FAVOURITES = "*favourites"
export const RECENT = "*recent"
export const ALL = "*all"
const RECENTS = 8
/** More than any rank of `rankOf`. */
const LAST = 10

const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" })
/** Lower case, with one space between words. */
const plain = (/** @type {string} */ text) =>
  text.normalize("NFKC").toLowerCase().replaceAll("\\", "/").replace(/[\s_.\-]+/gu, " ").trim()

/** @param {import("../server.js").Listed} listed */
function entryOf(listed) {
  const [file] = listed
  const parts = splitName(file)
  /** @type {Entry} */
  const entry = { listed, file, parts, name: plain(parts[1]), path: plain(file), more: [], facts: null, reason: "" }
  return entry
}

/**
 * The files by name: sorted once, since that is the slowest order.
 *
 * @param {import("../server.js").Listed[]} files
 */
export function entriesOf(files) {
  const byName = (/** @type {Entry} */ one, /** @type {Entry} */ other) =>
    order.compare(one.parts[1], other.parts[1]) || order.compare(one.file, other.file)
  return files.map(entryOf).sort(byName)
}

/**
 * @param {Entry} entry
 * @param {import("../server.js").Facts} facts
 * @param {(facts: import("../server.js").Facts) => string | null} suits says why it does not suit the model
 */
export function learn(entry, facts, suits) {
  entry.facts = facts
  entry.reason = suits(facts) ?? ""
  const { triggers, tags, title, family, base, kind } = facts
  entry.more = [...triggers, ...tags, title, family, base, kind].map(plain)
}

/**
 * How well a file matches what is typed, 0 the best; -1 if a word is not found.
 *
 * @param {Entry} entry
 * @param {string} typed
 * @param {string[]} words
 */
function rankOf({ name, path, more }, typed, words) {
  if (name === typed) return 0
  if (name.startsWith(typed)) return 1
  const apart = ` ${name}`
  if (words.every((word) => apart.includes(` ${word}`))) return 2
  if (words.every((word) => name.includes(word))) return 3
  if (words.every((word) => path.includes(word))) return 4
  if (more.some((one) => one.includes(typed))) return 5
  return words.every((word) => path.includes(word) || more.some((one) => one.includes(word))) ? 6 : -1
}

/**
 * @param {Kept} kept
 * @param {Entry} entry
 */
export const isFavourite = (kept, { file, facts }) => kept.favourites[file] ?? facts?.favourite ?? false

const timesOf = (/** @type {Kept} */ { used }, /** @type {Entry} */ { file }) => used[file]?.[0] ?? 0
const lastOf = (/** @type {Kept} */ { used }, /** @type {Entry} */ { file }) => used[file]?.[1] ?? 0

/** Files that compare as equal stay in the order of their names. @type {Record<string, undefined | ((kept: Kept) => (one: Entry, other: Entry) => number)>} */
const SORTS = {
  date: () => (one, other) => other.listed[2] - one.listed[2],
  size: () => (one, other) => other.listed[1] - one.listed[1],
  use: (kept) => (one, other) => timesOf(kept, other) - timesOf(kept, one) || lastOf(kept, other) - lastOf(kept, one),
}

/** The orders with their words. */
export const sorts = () => [
  ["name", t("by name")],
  ["date", t("newest first")],
  ["size", t("largest first")],
  ["use", t("most used first")],
]

/**
 * The files that match what is typed, the best first. Broken files come last. Among equal matches, files that do not
 * suit the model come last.
 *
 * @param {Entry[]} sorted
 * @param {string} text
 * @returns {Item[]}
 */
function matching(sorted, text) {
  const typed = plain(text)
  const words = typed.split(" ").filter(Boolean)
  const found = []
  for (const entry of sorted) {
    const rank = rankOf(entry, typed, words)
    if (rank >= 0) found.push({ entry, place: 2 * (rank + (entry.facts?.error ? LAST : 0)) + (entry.reason ? 1 : 0) })
  }
  // Equal ones stay in their order.
  found.sort((one, other) => one.place - other.place)
  return found.map(({ entry }) => {
    const { title, triggers, tags } = entry.facts ?? { title: "", triggers: [], tags: [] }
    const texts = [...new Set([title, ...triggers, ...tags])]
    const beyond = words.filter((word) => !entry.path.includes(word))
    const hits = texts.filter((one) => beyond.some((word) => plain(one).includes(word)))
    return { item: "file", key: entry.file, entry, depth: 0, found: hits, whole: true }
  })
}

/**
 * @typedef {{name: string, path: string, files: Entry[], folders: Map<string, Folder>, count: number}} Folder
 */

/**
 * @param {string} name
 * @param {string} path
 * @returns {Folder}
 */
const newFolder = (name, path) => ({ name, path, files: [], folders: new Map(), count: 0 })

/** @param {Entry[]} sorted */
function treeOf(sorted) {
  const root = newFolder("", "")
  for (const entry of sorted) {
    let folder = root
    root.count += 1
    for (const name of entry.parts[0].split(/[/\\]/u).filter(Boolean)) {
      const path = `${folder.path}${name}/`
      const inner = folder.folders.get(name) ?? newFolder(name, path)
      folder.folders.set(name, inner)
      folder = inner
      folder.count += 1
    }
    folder.files.push(entry)
  }
  return root
}

/**
 * A folder's files, and then the folders in it.
 *
 * @param {Folder} folder
 * @param {Set<string>} closed
 * @param {number} depth
 * @returns {Item[]}
 */
function inFolder({ files, folders }, closed, depth) {
  const items = files.map((entry) => fileItem(entry, entry.file, depth, false))
  const inner = [...folders.values()].sort((one, other) => order.compare(one.name, other.name))
  return items.concat(
    ...inner.map((folder) => {
      const head = headOf(folder.path, folder.name, folder.count, closed, depth)
      return head.open ? [head, ...inFolder(folder, closed, depth + 1)] : [head]
    }),
  )
}

/**
 * @param {Entry} entry
 * @param {string} key
 * @param {number} depth
 * @param {boolean} whole
 * @returns {Item}
 */
const fileItem = (entry, key, depth, whole) => ({ item: "file", key, entry, depth, found: [], whole })

/**
 * @param {string} key
 * @param {string} words
 * @param {number} count
 * @param {Set<string>} closed
 * @param {number} depth
 * @returns {FolderItem}
 */
const headOf = (key, words, count, closed, depth) => ({
  item: "folder",
  key,
  words,
  count,
  depth,
  open: !closed.has(key),
})

/**
 * @param {string} key
 * @param {string} words
 * @param {Entry[]} entries
 * @param {Set<string>} closed
 * @returns {Item[]}
 */
function section(key, words, entries, closed) {
  if (!entries.length) return []
  const head = headOf(key, words, entries.length, closed, 0)
  return head.open ? [head, ...entries.map((entry) => fileItem(entry, `${key}/${entry.file}`, 1, true))] : [head]
}

/**
 * The items to show: the files that match the typed words. Without words all files, in their folders if they are sorted
 * by name.
 *
 * @param {Entry[]} entries by name
 * @param {string} typed
 * @param {Kept} kept
 * @returns {Item[]}
 */
export function arranged(entries, typed, kept) {
  const compare = SORTS[kept.sort]?.(kept)
  const sorted = compare ? entries.toSorted(compare) : entries
  if (typed.trim()) return matching(sorted, typed)
  if (compare) return sorted.map((entry) => fileItem(entry, entry.file, 0, true))
  const closed = new Set(kept.closed)
  const favourites = sorted.filter((entry) => isFavourite(kept, entry))
  const recent = sorted.filter((entry) => lastOf(kept, entry))
  recent.sort((one, other) => lastOf(kept, other) - lastOf(kept, one))
  const above = [
    ...section(FAVOURITES, t("Favourites"), favourites, closed),
    ...section(RECENT, t("Recently used"), recent.slice(0, RECENTS), closed),
  ]
  const tree = treeOf(sorted)
  if (!above.length) return inFolder(tree, closed, 0)
  // Without it, files outside folders would seem to belong to the section above.
  const head = headOf(ALL, t("All files"), sorted.length, closed, 0)
  return [...above, head, ...(head.open ? inFolder(tree, closed, 1) : [])]
}
