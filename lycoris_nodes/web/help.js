// Links from one help page to another. The front end would open them as addresses of its own, in a new tab.

import { app } from "../../scripts/app.js"
import { addStyle, make } from "./elements.js"
import { onHelpLink } from "./host.js"
import { t } from "./language.js"

const PAGES = new URL("./docs/", import.meta.url)

/**
 * The help page of a node in the user's language, else in English.
 *
 * @param {string} node
 */
async function read(node) {
  const language = String(app.ui.settings.getSettingValue("Comfy.Locale") ?? "en")
  for (const path of [`${node}/${language}.md`, `${node}.md`]) {
    const answer = await fetch(new URL(path, PAGES))
    if (answer.ok) return answer.text()
  }
  throw new Error(`There is no help page for ${node}.`)
}

/**
 * Show a page in place of the one that is open, with a way back to it.
 *
 * @param {Element} shown what the front end has rendered
 * @param {string} node
 */
async function show(shown, node) {
  const before = [...shown.childNodes]
  const { renderMarkdownToHtml } = /** @type {any} */ (app.extensionManager)
  const page = make("div", { innerHTML: renderMarkdownToHtml(await read(node), PAGES.pathname) })
  const back = make("button", { type: "button", className: "lycoris-button", textContent: t("Back") })
  back.addEventListener("click", () => shown.replaceChildren(...before))
  shown.replaceChildren(back, page)
  shown.scrollIntoView({ block: "start" })
}

export function linkHelp() {
  addStyle("./help.css", import.meta.url)
  onHelpLink(show)
}
