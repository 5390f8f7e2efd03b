// Chooses a file: typed words match anywhere in its path, and the marked file shows its picture.

import { badges, make, nameParts } from "../elements.js"
import { t } from "../language.js"
import { badgesOf, matching, splitName } from "./names.js"
import { closePopup, openPopup } from "./popup.js"
import { aboutFile, listFiles, previewOf } from "./server.js"

const MOST = 400

/**
 * Ask for a file. `pick` gets each one that is chosen; with `many`, Ctrl-click leaves the picker open.
 *
 * @param {{current?: string, many?: boolean, pick: (file: string) => void}} question
 * @param {import("./popup.js").Point} point
 */
export async function openPicker({ current, many = false, pick }, point) {
  const search = make("input", {
    type: "search",
    placeholder: t("Search: words match anywhere in the path"),
    "aria-label": t("search files"),
  })
  const results = make("div", { class: "lycoris-results" })
  const picture = make("img", { alt: "" })
  const words = make("div", { class: "lycoris-hint" })
  const hint = make("div", {
    class: "lycoris-hint lycoris-bottom",
    textContent: many ? t("Ctrl-click adds a file and stays open") : "",
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
      const file = /** @type {HTMLElement} */ (target).title
      aboutFile(file).then((about) => target.append(...badges(badgesOf(about))))
    }
  })
  /** @type {string[]} */
  let files = []
  /** @type {HTMLElement | null} */
  let active = null

  /**
   * @param {string} file
   * @param {boolean} stay
   */
  function choose(file, stay) {
    if (!stay) closePopup()
    pick(file)
  }

  /** @param {HTMLElement | null} item */
  async function activate(item) {
    active?.classList.remove("lycoris-active")
    active = item
    if (!item) return
    item.classList.add("lycoris-active")
    const { title: file } = item
    picture.src = previewOf(file)
    const about = await aboutFile(file)
    if (active === item) words.textContent = about.error ?? about.triggers.join(", ")
  }

  /** @param {string} file */
  function itemOf(file) {
    const item = make("button", { type: "button", class: "lycoris-item", title: file })
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
    const none = found.length ? "" : t("No file matches")
    const rest = more > 0 ? t("{more} more: type to narrow the list", { more }) : none
    results.replaceChildren(...items, ...(rest ? [make("div", { class: "lycoris-hint", textContent: rest })] : []))
    results.scrollTop = 0
    const chosen = search.value.trim() ? null : items.find((item) => item.title === current)
    activate(chosen ?? items[0] ?? null)
  }

  search.oninput = draw
  search.onkeydown = (event) => {
    const next = { ArrowDown: active?.nextElementSibling, ArrowUp: active?.previousElementSibling }[event.key]
    if (next instanceof HTMLButtonElement) {
      event.preventDefault()
      activate(next)
      next.scrollIntoView({ block: "nearest" })
    }
    // With an input method, Enter ends a word first.
    if (event.key === "Enter" && active && !event.isComposing) choose(active.title, many && event.ctrlKey)
  }
  const panel = make("div", { class: "lycoris-picker" }, search, results, side, hint)
  const popup = openPopup(panel, point, () => seen.disconnect())
  search.focus()
  files = await listFiles()
  draw()
  popup.moved()
}
