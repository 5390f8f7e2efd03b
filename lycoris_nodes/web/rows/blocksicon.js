// The button of a row that opens its block weights, and shows in small what its rules do.

import { make } from "../elements.js"
import { t } from "../language.js"
import { outline, thinned } from "./blocks.js"
import { weighedBy } from "./blocksserver.js"

const MOST = 24
/** The bars of a row without rules, and of rules whose effect is not known yet. */
const NONE = [0.45, 0.8, 1, 0.6]

/** @param {() => void} open */
export function rulesButton(open) {
  const shape = make("i")
  const element = make("button", { type: "button", class: "lycoris-icon lycoris-spark", onclick: open }, shape)
  let latest = 0

  /**
   * @param {import("./state.js").Row} row
   * @param {() => Promise<import("./model.js").Model>} model
   */
  async function show({ file, rules = "" }, model) {
    const mine = ++latest
    const some = rules.trim() !== ""
    element.classList.toggle("lycoris-spark-none", !some)
    element.title = some ? rules : t("Block weights")
    if (!some) {
      element.classList.remove("lycoris-wrong")
      shape.style.clipPath = outline(NONE)
      return
    }
    shape.style.clipPath ||= outline(NONE)
    const { names } = await model()
    const { error, line } = await weighedBy({ file, ...names }, rules)
    if (mine !== latest) return
    element.classList.toggle("lycoris-wrong", Boolean(error))
    element.title = error ? `${rules}\n\n${error}` : rules
    if (error || !line.length) return
    const most = Math.max(1, ...line)
    shape.style.clipPath = outline(thinned(line, MOST).map((weight) => weight / most))
  }

  return { element, show }
}
