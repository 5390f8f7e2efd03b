// Moves lines with the pointer: a mark shows where they would land. A press without movement is a click.

/** How far the pointer goes before a press is a drag, in pixels. */
const STILL = 3

/**
 * @param {PointerEvent} event the press on a line's handle
 * @param {HTMLElement[]} lines
 * @param {Set<number>} chosen the lines that move, `from` among them
 * @param {number} from
 * @param {{moved: (to: number) => void, clicked: (event: MouseEvent) => void}} acts
 */
export function dragLines(event, lines, chosen, from, { moved, clicked }) {
  if (event.button !== 0) return
  event.preventDefault()
  const handle = /** @type {HTMLElement} */ (event.currentTarget)
  handle.setPointerCapture(event.pointerId)
  const start = event.clientY
  let to = from
  let dragged = false
  const mark = (/** @type {number} */ place) => {
    to = place
    for (const [at, line] of lines.entries()) {
      line.classList.toggle("lycoris-before", at === to && to < from)
      line.classList.toggle("lycoris-after", at === to && to > from)
      line.classList.toggle("lycoris-dragged", dragged && chosen.has(at))
    }
  }
  handle.onpointermove = ({ clientY }) => {
    dragged ||= Math.abs(clientY - start) > STILL
    if (!dragged) return
    const below = lines.findIndex((line) => clientY < line.getBoundingClientRect().bottom)
    mark(below < 0 ? lines.length - 1 : below)
  }
  const end = (/** @type {PointerEvent} */ event) => {
    handle.onpointermove = handle.onpointerup = handle.onpointercancel = null
    const target = to
    const still = !dragged
    dragged = false
    mark(from)
    if (event.type !== "pointerup") return
    if (still) clicked(event)
    else if (target !== from) moved(target)
  }
  handle.onpointerup = handle.onpointercancel = end
}
