// The sets of rows that were run or saved under a name, in a panel to choose one.

import { make } from "../elements.js"
import { onPrompt } from "../host.js"
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

/** @param {number} when */
const dateOf = (when) => new Date(when).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" })

/**
 * @param {Row[]} own the rows that can be saved
 * @param {(rows: Row[], added: boolean) => void} pick called with the set, and whether it is to be added to the rows
 * @param {import("./popup.js").Point} point
 */
export async function openSets(own, pick, point) {
  const { sets } = await readKept()
  const list = make("div", { class: "lycoris-menu lycoris-sets", "aria-label": t("sets of rows") })
  for (const set of [...sets.filter(({ name }) => name), ...sets.filter(({ name }) => !name)]) {
    const { name, when, rows } = set
    const words = make("span", {}, rows.filter(isOn).map(wordsOf).join(", "))
    if (name) words.prepend(make("b", { textContent: name }), " ")
    const take = (/** @type {MouseEvent} */ event) => {
      closePopup()
      pick(rows, event.ctrlKey || event.metaKey)
    }
    const entry = make("button", { type: "button", onclick: take }, words, make("small", { textContent: dateOf(when) }))
    const line = make("div", {}, entry)
    if (name) {
      const forget = () => {
        changeKept((kept) => ({ ...kept, sets: kept.sets.filter((one) => one.name !== name) }))
        line.remove()
      }
      line.append(make("button", { type: "button", title: t("Remove the set {name}", { name }), textContent: "×", onclick: forget }))
    }
    list.append(line)
  }
  const field = make("input", { type: "text", placeholder: t("A name for the rows of this node"), spellcheck: false })
  const save = () => {
    const name = field.value.trim()
    if (!name) return field.focus()
    changeKept((kept) => ({ ...kept, sets: withSet(kept.sets, { name, when: Date.now(), rows: own }) }))
    closePopup()
  }
  field.onkeydown = ({ key }) => {
    if (key === "Enter") save()
  }
  const button = make("button", { type: "button", class: "lycoris-button", textContent: t("Save"), onclick: save })
  const hint = sets.length
    ? t("A click puts a set in place of the rows; with Ctrl it is added to them.")
    : t("Each set of rows that you run is kept here.")
  const saving = own.length ? [make("div", { class: "lycoris-set-name" }, field, button)] : []
  openPopup(make("div", {}, ...saving, list, make("div", { class: "lycoris-hint", textContent: hint })), point)
}
