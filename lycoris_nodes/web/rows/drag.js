// Moves a line with the pointer: a mark shows where it would come to be.

/**
 * @param {PointerEvent} event the press on the line's handle
 * @param {HTMLElement[]} lines
 * @param {number} from
 * @param {(to: number) => void} moved
 */
export function dragLine(event, lines, from, moved) {
  if (event.button !== 0) return
  event.preventDefault()
  const handle = /** @type {HTMLElement} */ (event.currentTarget)
  handle.setPointerCapture(event.pointerId)
  let to = from
  const mark = (/** @type {number} */ place) => {
    to = place
    for (const [at, line] of lines.entries()) {
      line.classList.toggle("lycoris-before", at === to && to < from)
      line.classList.toggle("lycoris-after", at === to && to > from)
    }
  }
  lines[from].classList.add("lycoris-dragged")
  handle.onpointermove = ({ clientY }) => {
    const below = lines.findIndex((line) => clientY < line.getBoundingClientRect().bottom)
    mark(below < 0 ? lines.length - 1 : below)
  }
  const end = (/** @type {PointerEvent} */ { type }) => {
    handle.onpointermove = handle.onpointerup = handle.onpointercancel = null
    lines[from].classList.remove("lycoris-dragged")
    const target = to
    mark(from)
    if (type === "pointerup" && target !== from) moved(target)
  }
  handle.onpointerup = handle.onpointercancel = end
}
