// A panel above everything else, one at a time. A press outside of it or Escape closes it.

const GAP = 4
/** Beside the list of a node: the node's own margin too. */
const ASIDE = 20

/**
 * @typedef {{x: number, y: number}} Point
 * @typedef {Point | ((size: DOMRect) => Point)} Place a point, or a function that gives it for a panel of this size
 */

/** @type {{panel: HTMLElement, controller: AbortController, closed?: (escaped: boolean) => void} | null} */
let open = null

/** @param {boolean} [escaped] whether Escape closes it */
export function closePopup(escaped = false) {
  const closing = open
  open = null
  closing?.panel.remove()
  closing?.controller.abort()
  closing?.closed?.(escaped)
}

/**
 * Show a panel at a place, but within the window.
 *
 * @param {HTMLElement} panel
 * @param {Place} where
 */
function place(panel, where) {
  const size = panel.getBoundingClientRect()
  const { width, height } = size
  const { x, y } = typeof where === "function" ? where(size) : where
  panel.style.left = `${Math.max(GAP, Math.min(x, innerWidth - width - GAP))}px`
  panel.style.top = `${Math.max(GAP, Math.min(y, innerHeight - height - GAP))}px`
}

/**
 * Show a panel at a place in the window.
 *
 * @param {HTMLElement} panel
 * @param {Place} point
 * @param {(escaped: boolean) => void} [closed] called when it is gone, with whether the user has pressed Escape
 */
export function openPopup(panel, point, closed) {
  closePopup()
  const controller = new AbortController()
  open = { panel, controller, closed }
  panel.classList.add("lycoris-popup")
  document.body.append(panel)
  place(panel, point)
  const options = { capture: true, signal: controller.signal }
  addEventListener("resize", () => place(panel, point), options)
  addEventListener("pointerdown", ({ target }) => panel.contains(/** @type {Node} */ (target)) || closePopup(), options)
  addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape") return
      event.stopPropagation()
      closePopup(true)
    },
    options,
  )
  // The front end has shortcuts for keys and for the wheel.
  for (const name of ["keydown", "wheel", "contextmenu"]) {
    panel.addEventListener(name, (event) => event.stopPropagation())
  }
  return { moved: () => place(panel, point) }
}

/**
 * The point below an element.
 *
 * @param {Element} element
 * @returns {Point}
 */
export function below(element) {
  const { left, bottom } = element.getBoundingClientRect()
  return { x: left, y: bottom + GAP }
}

/**
 * The place beside an element if there is room, otherwise below another one.
 *
 * @param {Element} element
 * @param {Element} other
 * @returns {Place}
 */
export function beside(element, other) {
  const { right, top } = element.getBoundingClientRect()
  const under = below(other)
  return ({ width }) => (right + ASIDE + width < innerWidth ? { x: right + ASIDE, y: top } : under)
}
