// Chooses a file: typed words match anywhere in its path, and the marked file shows its picture.

import { badges, make, nameParts } from "./elements.js"
import { aboutFile, badgesOf, listFiles, previewOf, splitName } from "./files.js"
import { closePopup, openPopup } from "./popup.js"

const MOST = 400

function matching(files, typed) {
  const words = typed.toLowerCase().split(/\s+/u).filter(Boolean)
  return files.filter((file) => words.every((word) => file.toLowerCase().includes(word)))
}

/** Ask for a file. `pick` gets each one that is chosen; with `many`, Ctrl-click leaves the picker open. */
export async function openPicker({ current, many = false, pick }, point) {
  const search = make("input", {
    type: "search",
    placeholder: "Search: words match anywhere in the path",
    "aria-label": "search files",
  })
  const results = make("div", { class: "lycoris-results" })
  const picture = make("img", { alt: "" })
  const words = make("div", { class: "lycoris-hint" })
  const hint = make("div", {
    class: "lycoris-hint lycoris-bottom",
    textContent: many ? "Ctrl-click adds a file and stays open" : "",
  })
  const side = make("div", { class: "lycoris-side" }, picture, words)
  picture.onload = () => (picture.hidden = false)
  picture.onerror = () => (picture.hidden = true)
  picture.hidden = true

  // Headers are read only for what is on the screen.
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue
      seen.unobserve(target)
      aboutFile(target.dataset.file).then((about) => target.append(...badges(badgesOf(about))))
    }
  })
  let files = []
  let active = null

  function choose(file, stay) {
    if (!stay) closePopup()
    pick(file)
  }

  async function activate(item) {
    active?.classList.remove("lycoris-active")
    active = item
    if (!item) return
    item.classList.add("lycoris-active")
    const { file } = item.dataset
    picture.src = previewOf(file)
    const about = await aboutFile(file)
    if (active === item) words.textContent = about.error ?? about.triggers.join(", ")
  }

  function itemOf(file) {
    const item = make("button", { type: "button", class: "lycoris-item", data: { file }, title: file })
    item.append(make("span", { class: "lycoris-name" }, ...nameParts(splitName(file))))
    item.classList.toggle("lycoris-current", file === current)
    // A list that changes under a mouse at rest leaves the mark where it is.
    item.onpointermove = (event) => {
      if (item !== active && (event.movementX || event.movementY)) activate(item)
    }
    item.onclick = (event) => choose(file, many && (event.ctrlKey || event.metaKey))
    seen.observe(item)
    return item
  }

  function draw() {
    seen.disconnect()
    const found = matching(files, search.value)
    const items = found.slice(0, MOST).map(itemOf)
    const more = found.length - items.length
    const rest = more > 0 ? `${more} more: type to narrow the list` : found.length ? "" : "No file matches"
    results.replaceChildren(...items, ...(rest ? [make("div", { class: "lycoris-hint", textContent: rest })] : []))
    results.scrollTop = 0
    const chosen = search.value.trim() ? null : items.find((item) => item.dataset.file === current)
    activate(chosen ?? items[0] ?? null)
  }

  search.oninput = draw
  search.addEventListener("keydown", (event) => {
    const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key]
    if (next && active?.[next]?.dataset.file !== undefined) {
      event.preventDefault()
      activate(active[next])
      active.scrollIntoView({ block: "nearest" })
    }
    // With an input method, Enter ends a word first.
    if (event.key === "Enter" && active && !event.isComposing) choose(active.dataset.file, many && event.ctrlKey)
  })
  const panel = make("div", { class: "lycoris-picker" }, search, results, side, hint)
  const popup = openPopup(panel, point, () => seen.disconnect())
  search.focus()
  files = await listFiles()
  draw()
  popup.moved()
}
