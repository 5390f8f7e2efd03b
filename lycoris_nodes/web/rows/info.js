// A panel about a file. All of it is read from the file and from the files beside it.

import { badges, make, nameParts } from "../elements.js"
import { t } from "../language.js"
import { badgesOf, shownSize, splitName } from "./names.js"
import { mediaOf } from "./picker/media.js"
import { openPopup } from "./popup.js"
import { aboutFile } from "./server.js"

const TAGS = 40

/**
 * A title with elements below it; nothing if there are no elements.
 *
 * @param {string} title
 * @param {HTMLElement[]} children
 */
function part(title, ...children) {
  return children.length ? [make("h4", { textContent: title }), ...children] : []
}

/** @param {string[]} words */
function chips(words) {
  return make("div", { class: "lycoris-chips" }, ...badges(words))
}

/** @param {[name: string, value: string][]} pairs */
function table(pairs) {
  const lines = pairs.map(([name, value]) =>
    make("tr", {}, make("th", { textContent: name }), make("td", { textContent: value })),
  )
  return make("table", {}, ...lines)
}

/** @param {string} text */
function copyButton(text) {
  const button = make("button", { type: "button", class: "lycoris-button", textContent: t("Copy") })
  button.onclick = async () => {
    // Only pages over https or on this machine have a clipboard.
    await navigator.clipboard?.writeText(text)
    button.textContent = navigator.clipboard ? t("Copied") : t("No clipboard here: select the words")
  }
  return button
}

/** @param {import("./server.js").About} about */
function content(about) {
  const words = about.stated ? t("Trigger words") : t("Tags of every training picture")
  /** @type {[string, string][]} */
  const facts = [
    [t("title"), about.title],
    [t("kind"), t("{kind}, rank {rank}", { kind: about.kind, rank: about.rank })],
    [t("base model"), about.base],
    [t("family"), about.family],
    [t("date"), about.date],
    [t("names as in"), about.dialect],
    [t("size"), shownSize(about.size)],
    ...about.facts,
  ]
  const counted = about.tags.slice(0, TAGS).map(([tag, count]) => `${tag} ${count}`)
  const tags = [...counted, ...about.tags_beside.slice(0, TAGS)]
  const triggers = about.triggers
  return [
    ...(about.preview ? [make("div", { class: "lycoris-picture" }, mediaOf(about.file, about.preview, true))] : []),
    ...part(words, ...(triggers.length ? [chips(triggers), copyButton(triggers.join(", "))] : [])),
    table(facts.filter(([, value]) => value)),
    ...part(t("Notes"), ...about.notes.map((note) => make("p", { textContent: note }))),
    ...part(t("Tags"), ...(tags.length ? [chips(tags)] : [])),
    ...about.problems.map((problem) => make("div", { class: "lycoris-problem", textContent: problem })),
  ]
}

/**
 * @param {string} file
 * @param {import("./popup.js").Point} point
 */
export async function openInfo(file, point) {
  const body = make("div", { class: "lycoris-info-body", textContent: "…" })
  const title = make("h3", {}, make("span", {}, ...nameParts(splitName(file))))
  const popup = openPopup(
    make("div", { class: "lycoris-info", "aria-label": t("About the file") }, title, body),
    point,
  )
  // Its picture comes later.
  new ResizeObserver(popup.moved).observe(body)
  const about = await aboutFile(file)
  if (about.error) body.replaceChildren(make("div", { class: "lycoris-problem", textContent: about.error }))
  else {
    body.replaceChildren(...content(about))
    title.append(...badges(badgesOf(about)))
  }
}
