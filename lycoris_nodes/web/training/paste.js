// Settings of another trainer, pasted into a box of their own.

import { make } from "../elements.js"
import { t } from "../language.js"

/** @typedef {import("../routes.js").Translated & {error?: string}} Translated */

/**
 * Ask for a config, and give its settings to `use`, first those of the training, then those of the pictures. The box lists what has no counterpart.
 *
 * @param {(text: string) => Promise<Translated>} translate
 * @param {(values: Record<string, any>, pictures: Record<string, any>) => void} use
 */
export function askForSettings(translate, use) {
  const text = make("textarea", { placeholder: t("A config of kohya (TOML, a command line, or JSON of kohya_ss), ai-toolkit (YAML) or OneTrainer (JSON)") })
  const told = make("div", { class: "lycoris-told" })
  const take = make("button", { textContent: t("Take over") })
  const close = make("button", { textContent: t("Close") })
  const dialog = make("dialog", { class: "lycoris-paste" }, text, told, make("div", {}, take, close))
  take.addEventListener("click", async () => {
    const found = await translate(text.value)
    const { error, notes = [], values = {}, pictures = {} } = found
    if (!error) use(values, pictures)
    const count = Object.keys(values).length
    const first = error ?? t("{n} settings of {trainer} taken over.", { n: count, trainer: found.trainer })
    const rest = notes.length ? [make("p", { textContent: t("Without a counterpart, or set elsewhere:") })] : []
    const list = make("ul", {}, ...notes.map((note) => make("li", { textContent: note })))
    told.replaceChildren(make("p", { class: error ? "lycoris-wrong" : "", textContent: first }), ...rest, list)
  })
  close.addEventListener("click", () => dialog.close())
  dialog.addEventListener("close", () => dialog.remove())
  // The page's own keys, such as Delete, are not meant here.
  dialog.addEventListener("keydown", (event) => event.stopPropagation())
  document.body.append(dialog)
  dialog.showModal()
  text.focus()
}
