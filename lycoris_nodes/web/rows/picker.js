// Chooses a file from a list or cards of all files in their folders. Typed words are searched in paths, in metadata and
// in the files beside the adapters. The side shows the file that the mouse or the keyboard is on.

import { badges, make, nameParts } from "../elements.js"
import { t } from "../language.js"
import { badgesOf, shownSize } from "./names.js"
import { arranged, entriesOf, isFavourite, learn, sorts } from "./picker/find.js"
import { changeKept, readKept, withUse } from "./picker/kept.js"
import { mediaOf } from "./picker/media.js"
import { createScroll } from "./picker/scroll.js"
import { closePopup, openPopup } from "./popup.js"
import { askFacts, knownFacts, listed } from "./server.js"

/** How many files one request asks about: `FIRST` at first, later as many as take about `MILLISECONDS`. */
const FIRST = 30
const MOST = 500
const MILLISECONDS = 700
const PAGE = 10
const TAGS = 24

/** @typedef {import("./picker/find.js").Entry} Entry */
/** @typedef {import("./picker/find.js").Item} Item */

/**
 * What was shown last.
 *
 * @type {{files: import("./server.js").Listed[], kept: import("./picker/find.js").Kept} | null}
 */
let latest = null

/**
 * Ask for a file. `pick` gets each one that is chosen; with `many`, Ctrl-click leaves the picker open.
 *
 * @param {{
 *   current?: string, many?: boolean, pick: (file: string) => void,
 *   model?: Promise<import("./model.js").Model>,
 * }} question `model` is the one that the file is for
 * @param {import("./popup.js").Place} point
 */
export async function openPicker({ current, many = false, pick, model }, point) {
  const search = make("input", {
    type: "search",
    placeholder: t("Search names, trigger words, tags, kinds, families"),
    "aria-label": t("search files"),
  })
  const list = make("button", { type: "button", class: "lycoris-icon", textContent: "☰", title: t("List") })
  const grid = make("button", { type: "button", class: "lycoris-icon", textContent: "▦", title: t("Pictures") })
  const sort = make("select", { "aria-label": t("order") })
  sort.append(...sorts().map(([value, words]) => make("option", { value, textContent: words })))
  const count = make("span", { class: "lycoris-hint" })
  const hint = make("span", {
    class: "lycoris-hint",
    textContent: many ? t("Ctrl-click or Ctrl-Enter adds a file and stays open") : "",
  })
  const side = make("div", { class: "lycoris-side" })
  const scroll = createScroll({ make: makeItem, dress })
  const results = scroll.element
  results.role = "listbox"
  const panel = make(
    "div",
    { class: "lycoris-picker" },
    make("div", { class: "lycoris-bar" }, search, sort, list, grid),
    results,
    side,
    make("div", { class: "lycoris-bar lycoris-bottom" }, count, hint),
  )

  /** @type {Entry[]} */
  let entries = []
  /** @type {import("./picker/find.js").Kept} */
  let kept
  /** @type {Item[]} */
  let items = []
  /** The key of the item that Enter takes, which need not be the one under the mouse. */
  let active = ""
  /** Whether a key has moved `active`; otherwise it is the best match. */
  let moved = false
  /** The file under the mouse, which the side shows. @type {Entry | null} */
  let hovered = null
  let open = true
  /** @type {(facts: import("./server.js").Facts) => string | null} */
  let suits = () => null
  /** How many times each file was chosen here. @type {Map<string, number>} */
  const chosen = new Map()

  // Pictures are loaded when they come near the visible part.
  const seen = new IntersectionObserver(
    (found) => {
      for (const { isIntersecting, target } of found) {
        if (!isIntersecting) continue
        seen.unobserve(target)
        target.classList.add("lycoris-near")
        const item = items.find(({ key }) => key === /** @type {HTMLElement} */ (target).dataset.key)
        if (item) dress(/** @type {HTMLElement} */ (target), item)
      }
    },
    { root: results, rootMargin: "200px" },
  )

  /** @param {(kept: import("./picker/find.js").Kept) => import("./picker/find.js").Kept} change */
  function keep(change) {
    kept = change(kept)
    if (latest) latest.kept = change(latest.kept)
    changeKept(change)
  }

  /**
   * @param {string} file
   * @param {boolean} stay
   */
  function choose(file, stay) {
    keep((now) => withUse(now, file))
    if (!stay) closePopup()
    else {
      chosen.set(file, (chosen.get(file) ?? 0) + 1)
      scroll.draw()
      say()
    }
    pick(file)
  }

  /** @param {Entry} entry */
  function star(entry) {
    const on = !isFavourite(kept, entry)
    keep((now) => ({ ...now, favourites: { ...now.favourites, [entry.file]: on } }))
    arrange()
  }

  /**
   * @param {string} folder
   * @param {boolean} closed
   */
  function fold(folder, closed) {
    keep((now) => {
      const others = now.closed.filter((one) => one !== folder)
      return { ...now, closed: closed ? [...others, folder] : others }
    })
    arrange()
  }

  /** @param {Item} item */
  function makeItem(item) {
    const data = { key: item.key }
    const element = make("div", { role: "option", id: `lycoris-item-${item.key}`, class: "lycoris-item", data })
    if (item.item === "folder") {
      element.classList.add("lycoris-heading")
      element.append(make("span", { class: "lycoris-fold" }), make("bdi", { textContent: item.words }), make("small"))
      element.onclick = () => fold(item.key, element.getAttribute("aria-expanded") === "true")
      return element
    }
    const { entry } = item
    // A favourite or recent file is listed twice, and has its tooltip only in its folder.
    if (item.key === entry.file) element.title = entry.file
    const favourite = make("button", { type: "button", class: "lycoris-star", tabIndex: -1 })
    element.append(
      make("span", { class: "lycoris-thumb" }),
      make("span", { class: "lycoris-name" }),
      make("span", { class: "lycoris-marks" }),
      make("span", { class: "lycoris-tick" }),
      favourite,
    )
    favourite.onclick = (event) => {
      event.stopPropagation()
      star(entry)
    }
    element.onclick = (event) => choose(entry.file, many && (event.ctrlKey || event.metaKey))
    element.onpointermove = (event) => {
      // A list that changes under a mouse at rest leaves the side as it is.
      if (hovered !== entry && (event.movementX || event.movementY)) hover(entry)
    }
    element.onpointerenter = () => void element.querySelector("video")?.play().catch(() => {})
    element.onpointerleave = () => element.querySelector("video")?.pause()
    seen.observe(element)
    return element
  }

  /**
   * @param {HTMLElement} element
   * @param {Item} item
   */
  function dress(element, item) {
    const marked = item.key === active
    element.classList.toggle("lycoris-active", marked)
    element.ariaSelected = String(marked)
    element.style.setProperty("--lycoris-depth", String(item.depth))
    if (item.item === "folder") {
      const [arrow, , number] = /** @type {any} */ (element.children)
      element.ariaExpanded = String(item.open)
      arrow.textContent = item.open ? "▾" : "▸"
      number.textContent = String(item.count)
      return
    }
    const { entry, found, whole } = item
    const { facts, file, parts, reason } = entry
    const [thumb, name, marks, tick, favourite] = /** @type {HTMLElement[]} */ ([...element.children])
    element.classList.toggle("lycoris-current", file === current)
    element.classList.toggle("lycoris-missing", Boolean(facts?.error))
    element.classList.toggle("lycoris-unfit", Boolean(reason))
    if (facts?.preview && !thumb.firstChild && element.classList.contains("lycoris-near")) {
      thumb.append(mediaOf(file, facts.preview, false))
    }
    const state = [facts, reason, found.join(), whole, kept.view, chosen.get(file), isFavourite(kept, entry)]
    if (same(states.get(element), state)) return
    states.set(element, state)
    name.replaceChildren(...nameParts([whole && kept.view === "list" ? parts[0] : "", parts[1]]))
    const times = chosen.get(file) ?? 0
    tick.textContent = times ? `✓ ${times}` : ""
    const starred = isFavourite(kept, entry)
    favourite.textContent = starred ? "★" : "☆"
    favourite.title = starred ? t("Remove from favourites (Alt-Enter)") : t("Favourite (Alt-Enter)")
    favourite.classList.toggle("lycoris-starred", starred)
    marks.replaceChildren(...marksOf(entry, found))
  }
  /** What an element shows, so that nothing is made twice. @type {WeakMap<HTMLElement, unknown[]>} */
  const states = new WeakMap()

  /** Show the file under the mouse at the side, else the marked one. */
  function tell() {
    const item = items.find(({ key }) => key === active)
    const entry = hovered ?? (item?.item === "file" ? item.entry : null)
    side.replaceChildren(...(entry ? aboutEntry(entry) : []))
  }

  /** @param {Entry | null} entry */
  function hover(entry) {
    hovered = entry
    tell()
  }

  /** @param {string} key */
  function activate(key) {
    const last = active
    active = key
    for (const one of [last, key]) {
      const item = items.find((each) => each.key === one)
      const element = scroll.elementOf(one)
      if (item && element) dress(element, item)
    }
    search.setAttribute("aria-activedescendant", `lycoris-item-${key}`)
    tell()
  }

  function say() {
    const known = entries.filter(({ facts }) => facts).length
    const files = new Set(items.flatMap((item) => (item.item === "file" ? [item.entry.file] : [])))
    const total = [...chosen.values()].reduce((sum, times) => sum + times, 0)
    const typed = search.value.trim()
    count.textContent = [
      typed
        ? t("{count} of {all} files", { count: files.size, all: entries.length })
        : t("{count} files", { count: entries.length }),
      total ? t("{count} added", { count: total }) : "",
      known < entries.length ? t("{count} read", { count: known }) : "",
    ]
      .filter(Boolean)
      .join(", ")
  }

  /** The item marked before a key moves the mark: the row's own file if nothing is typed, else the best match. */
  function best() {
    const own = search.value.trim() ? null : items.find((item) => item.key === current)
    const whole = items.find((item) => item.item === "file" && !item.entry.facts?.error)
    return own ?? whole ?? items.find(({ item }) => item === "file") ?? items[0]
  }

  /** Show the files that match the typed words, in the chosen order; with `anew`, mark the best of them. */
  function arrange(anew = false) {
    items = arranged(entries, search.value, kept)
    list.ariaPressed = String(kept.view === "list")
    grid.ariaPressed = String(kept.view === "grid")
    if (anew) [moved, hovered] = [false, null]
    if (!moved || !items.some(({ key }) => key === active)) active = best()?.key ?? ""
    if (anew) results.scrollTop = 0
    scroll.show(items, kept.view === "grid")
    if (anew) scroll.reveal(active)
    activate(active)
    results.dataset.empty = items.length ? "" : entries.length ? t("No file matches") : t("There are no files")
    say()
  }

  /** @param {import("./server.js").Listed[]} files */
  function take(files) {
    entries = entriesOf(files)
    for (const entry of entries) {
      const facts = knownFacts(entry.listed)
      if (facts) learn(entry, facts, suits)
    }
  }

  /** Ask for the facts of all files that have none yet; visible files come first. */
  async function read() {
    let most = FIRST
    while (open) {
      const now = scroll.seen().flatMap((item) => (item.item === "file" && !item.entry.facts ? [item.entry] : []))
      const next = [...new Set([...now, ...entries.filter(({ facts }) => !facts)])].slice(0, most)
      if (!next.length) return
      const start = performance.now()
      const found = await askFacts(next.map((entry) => entry.listed))
      if (!open) return
      most = Math.round(Math.min(MOST, 1 + (next.length * MILLISECONDS) / (performance.now() - start)))
      for (const entry of next) learn(entry, found[entry.file] ?? gone(), suits)
      // The new facts may match what is typed, or mark a favourite of another pack.
      arrange()
    }
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    // With an input method, Enter and arrows belong to the word that is typed.
    if (event.isComposing || !(event.target === search || event.target === panel)) return
    if (event.target === panel && event.key.length === 1 && !event.ctrlKey && !event.metaKey) search.focus()
    if (!kept) return
    const item = items.find(({ key }) => key === active)
    const cards = kept.view === "grid"
    const empty = !search.value
    const go = (/** @type {number} */ across, /** @type {number} */ down) => scroll.beside(active, across, down)
    /** @type {Record<string, () => Item | null | undefined | void>} */
    const keys = {
      ArrowDown: () => go(0, 1),
      ArrowUp: () => go(0, -1),
      PageDown: () => paged(1),
      PageUp: () => paged(-1),
      Home: () => items[0],
      End: () => items.at(-1),
      ...(cards && { ArrowRight: () => go(1, 0), ArrowLeft: () => go(-1, 0) }),
      ...(empty &&
        item?.item === "folder" && {
          ArrowRight: () => fold(item.key, false),
          ArrowLeft: () => fold(item.key, true),
        }),
      ...(empty && !cards && item?.item === "file" && { ArrowLeft: () => folderOf(item) }),
      Enter: () => {
        if (item?.item === "folder") fold(item.key, item.open)
        else if (item && event.altKey) star(item.entry)
        else if (item) choose(item.entry.file, many && (event.ctrlKey || event.metaKey))
      },
    }
    const act = keys[event.key]
    if (!act || event.shiftKey) return
    event.preventDefault()
    const next = act()
    if (!next) return
    ;[moved, hovered] = [true, null]
    scroll.reveal(next.key)
    activate(next.key)
  }

  /** @param {number} way */
  function paged(way) {
    let found = active
    for (let step = 0; step < PAGE; step += 1) found = scroll.beside(found, 0, way)?.key ?? found
    return items.find(({ key }) => key === found)
  }

  /** @param {Item} item */
  function folderOf(item) {
    return items.slice(0, items.indexOf(item)).findLast((one) => one.item === "folder" && one.depth < item.depth)
  }

  search.oninput = () => kept && arrange(true)
  panel.onkeydown = onKey
  // Keep the focus in the picker after a click: the front end's keys delete and move nodes.
  panel.tabIndex = -1
  results.onmousedown = (event) => event.preventDefault()
  list.onclick = () => view("list")
  grid.onclick = () => view("grid")
  /** @param {"list" | "grid"} wanted */
  function view(wanted) {
    keep((now) => ({ ...now, view: wanted }))
    arrange()
    scroll.reveal(active)
    search.focus()
  }
  sort.onchange = () => {
    keep((now) => ({ ...now, sort: sort.value }))
    arrange(true)
    search.focus()
  }
  results.onpointerleave = () => hover(null)

  const popup = openPopup(panel, point, () => {
    open = false
    seen.disconnect()
  })
  search.focus()
  const anew = listed()
  /** @type {NonNullable<typeof latest>} */
  let known
  try {
    // The last list is shown until the new one is here.
    known = latest ?? (await Promise.all([anew, readKept()]).then(([files, kept]) => ({ files, kept })))
  } catch (error) {
    results.dataset.empty = t("The server does not answer: {error}", { error: String(error) })
    return
  }
  if (!open) return
  latest = known
  // The folders of the row's own file are open for now.
  const own = current?.replaceAll("\\", "/") ?? ""
  kept = { ...known.kept, closed: known.kept.closed.filter((folder) => !own.startsWith(folder)) }
  sort.value = kept.sort
  take(known.files)
  arrange(true)
  popup.moved()
  model?.then((found) => {
    if (!open) return
    suits = found.suits
    for (const entry of entries) if (entry.facts) learn(entry, entry.facts, suits)
    arrange()
  })
  try {
    const files = await anew
    if (String(files) !== String(known.files)) {
      known.files = files
      take(files)
      arrange()
    }
    await read()
  } catch (error) {
    hint.textContent = t("The server does not answer: {error}", { error: String(error) })
  }
}

/** The facts of a file that was removed while the picker was open. */
const gone = () => ({
  ...{ error: t("the file is not there"), kind: "", rank: "", family: "", families: [], triggers: [] },
  ...{ tags: [], title: "", base: "", favourite: false, preview: "", problems: [] },
})

/**
 * @param {unknown[] | undefined} one
 * @param {unknown[]} other
 */
const same = (one, other) => one?.every((value, index) => value === other[index])

/**
 * @param {Entry} entry
 * @param {string[]} found
 */
function marksOf({ facts, reason }, found) {
  if (!facts) return []
  if (facts.error) {
    return [make("span", { class: "lycoris-badge lycoris-bad", textContent: "!", title: facts.error })]
  }
  const [kind, family] = badgesOf(facts)
  const shown = badges([kind, family].filter(Boolean))
  if (reason && family) {
    shown[1].classList.add("lycoris-bad")
    shown[1].title = reason
  }
  const hits = found.slice(0, 2).map((words) => make("span", { class: "lycoris-badge lycoris-hit", textContent: words }))
  return [...hits, ...shown]
}

/**
 * What is known of a file, in few words.
 *
 * @param {Entry} entry
 */
function aboutEntry({ file, parts, facts, listed: [, size, changed], reason }) {
  const problem = (/** @type {string} */ words) => make("div", { class: "lycoris-problem", textContent: words })
  const date = changed ? new Date(1000 * changed).toLocaleDateString() : ""
  const head = make("div", { class: "lycoris-told" }, make("bdi", { textContent: facts?.title || parts[1] }))
  const where = make("div", { class: "lycoris-hint" }, make("bdi", { textContent: file }))
  const measured = [size ? shownSize(size) : "", date].filter(Boolean).join(", ")
  if (!facts) return [head, where, make("div", { class: "lycoris-hint", textContent: measured })]
  const chips = (/** @type {string} */ title, /** @type {string[]} */ words) =>
    words.length
      ? [make("h4", { textContent: title }), make("div", { class: "lycoris-chips" }, ...badges(words.slice(0, TAGS)))]
      : []
  return [
    ...(facts.preview ? [mediaOf(file, facts.preview, true)] : []),
    head,
    ...(facts.error ? [problem(facts.error)] : []),
    ...(reason ? [problem(reason)] : []),
    make("div", { class: "lycoris-chips" }, ...badges([...new Set([...badgesOf(facts), facts.base])].filter(Boolean))),
    where,
    make("div", { class: "lycoris-hint", textContent: measured }),
    ...chips(t("Trigger words"), facts.triggers),
    ...chips(t("Tags"), facts.tags),
    ...facts.problems.map(problem),
  ]
}
