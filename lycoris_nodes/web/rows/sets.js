// The sets of rows that were run, in a panel to choose one.

import { make } from "../elements.js"
import { onPrompt } from "../frontend.js"
import { t } from "../language.js"
import { nameInRow } from "./names.js"
import { changeKept, readKept } from "./picker/kept.js"
import { closePopup, openPopup } from "./popup.js"
import { isOn, modelStrength, parseRows, withSet } from "./state.js"

/** @typedef {import("./state.js").Row} Row */

/** Keep the rows of each prompt from now on. */
export function keepSets() {
  onPrompt({
    sent(_prompt, _workflow, nodes) {
      for (const { class_type: type, inputs } of Object.values(nodes)) {
        // Rows that another node gives are not known here.
        const rows = type === "LycorisAdapterRows" && typeof inputs.rows === "string" ? parseRows(inputs.rows) : null
        if (rows?.some(isOn)) changeKept((kept) => ({ ...kept, sets: withSet(kept.sets, { when: Date.now(), rows }) }))
      }
    },
  })
}

/** @param {Row} row */
const wordsOf = (row) => `${nameInRow(row.file)[1]} ${modelStrength(row)}`

/**
 * @param {(rows: Row[], added: boolean) => void} pick called with the set, and whether it is to be added to the rows
 * @param {import("./popup.js").Point} point
 */
export async function openSets(pick, point) {
  const { sets } = await readKept()
  const entries = sets.map(({ when, rows }) =>
    make(
      "button",
      {
        type: "button",
        onclick: (/** @type {MouseEvent} */ event) => {
          closePopup()
          pick(rows, event.ctrlKey || event.metaKey)
        },
      },
      make("span", { textContent: rows.filter(isOn).map(wordsOf).join(", ") }),
      make("small", { textContent: new Date(when).toLocaleDateString() }),
    ),
  )
  const hint = sets.length
    ? t("A click puts a set in place of the rows; with Ctrl it is added to them.")
    : t("Each set of rows that you run is kept here.")
  const list = make("div", { class: "lycoris-menu lycoris-sets", "aria-label": t("sets used before") }, ...entries)
  openPopup(make("div", {}, list, make("div", { class: "lycoris-hint", textContent: hint })), point)
}
