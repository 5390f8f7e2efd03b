// The menu of a row.

import { make } from "../elements.js"
import { t } from "../language.js"
import { closePopup, openPopup } from "./popup.js"

/**
 * A null item is a separator. An item whose action is null cannot be chosen.
 *
 * @typedef {[words: string, action: (() => void) | null] | null} Item
 */

/**
 * @param {Item[]} items
 * @param {import("./popup.js").Point} point
 */
export function openMenu(items, point) {
  const entries = items.map((item) => {
    if (!item) return make("hr")
    const [words, action] = item
    return make("button", {
      type: "button",
      textContent: words,
      disabled: !action,
      onclick: () => {
        closePopup()
        action?.()
      },
    })
  })
  openPopup(make("div", { class: "lycoris-menu", "aria-label": t("row menu") }, ...entries), point)
}
