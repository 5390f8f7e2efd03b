// A long list that draws only what is near to the visible part.

import { make } from "../../elements.js"

/** In pixels: the heights of a line and of a card, and a card's least width. */
const LINE = 30
const CARD = 148
const WIDTH = 116
/** How much is drawn beyond what is seen: enough for any quick scroll. */
const BEYOND = 3000

/** @typedef {import("./find.js").Item} Item */
/** @typedef {{item: Item, top: number, left: number, width: number, height: number}} Placed */

/**
 * Where each item is: folders and lines over the whole width, cards beside each other.
 *
 * @param {Item[]} items
 * @param {boolean} cards
 * @param {number} width
 */
function placedIn(items, cards, width) {
  const columns = cards ? Math.max(1, Math.floor(width / WIDTH)) : 1
  const [wide, high] = cards ? [width / columns, CARD] : [width, LINE]
  /** @type {Placed[]} */
  const placed = []
  let [top, column] = [0, 0]
  for (const item of items) {
    const line = item.item === "folder"
    if (column === columns || (line && column)) [top, column] = [top + high, 0]
    placed.push({
      item,
      top,
      left: line ? 0 : column * wide,
      width: line ? width : wide,
      height: line ? LINE : high,
    })
    if (line) top += LINE
    else column += 1
  }
  return { placed, height: column ? top + high : top }
}

/**
 * @param {{make: (item: Item) => HTMLElement, dress: (element: HTMLElement, item: Item) => void}} drawing `make` makes
 *   the element of an item, `dress` updates it
 */
export function createScroll({ make: makeItem, dress }) {
  const inside = make("div", { class: "lycoris-inside" })
  const element = make("div", { class: "lycoris-results" }, inside)
  /** @type {Placed[]} */
  let placed = []
  let drawnAt = 0
  /** @type {Map<string, HTMLElement>} */
  let drawn = new Map()

  /** The items that are visible, or at most `beyond` pixels away from what is visible. */
  function near(beyond = 0) {
    const { scrollTop, clientHeight } = element
    const [from, to] = [scrollTop - beyond, scrollTop + clientHeight + beyond]
    return placed.filter(({ top, height }) => top < to && top + height > from)
  }

  function draw() {
    drawnAt = element.scrollTop
    /** @type {Map<string, HTMLElement>} */
    const kept = new Map()
    let next = inside.firstElementChild
    for (const { item, top, left, width, height } of near(BEYOND)) {
      const one = drawn.get(item.key) ?? makeItem(item)
      drawn.delete(item.key)
      kept.set(item.key, one)
      Object.assign(one.style, { top: `${top}px`, left: `${left}px`, width: `${width}px`, height: `${height}px` })
      dress(one, item)
      if (one === next) next = next.nextElementSibling
      else inside.insertBefore(one, next)
    }
    for (const gone of drawn.values()) gone.remove()
    drawn = kept
  }

  /**
   * @param {Item[]} items
   * @param {boolean} cards
   */
  function show(items, cards) {
    element.classList.toggle("lycoris-cards", cards)
    const found = placedIn(items, cards, inside.clientWidth)
    placed = found.placed
    inside.style.height = `${found.height}px`
    draw()
  }

  element.onscroll = () => {
    // Draw again only near the end of what is drawn.
    if (Math.abs(element.scrollTop - drawnAt) > BEYOND / 2) draw()
  }

  return {
    element,
    show,
    draw,
    seen: () => near().map(({ item }) => item),
    elementOf: (/** @type {string} */ key) => drawn.get(key) ?? null,
    /**
     * The item that is some columns or lines away from another, or the nearest to it.
     *
     * @param {string} key
     * @param {number} across
     * @param {number} down
     */
    beside(key, across, down) {
      const at = placed.findIndex(({ item }) => item.key === key)
      if (at < 0 || across) return placed[Math.max(0, Math.min(at + across, placed.length - 1))]?.item ?? null
      const { top, left } = placed[at]
      const others = down < 0 ? placed.slice(0, at).reverse() : placed.slice(at + 1)
      const line = others.find((one) => one.top !== top)
      if (!line) return placed[at].item
      const beside = placed.filter((one) => one.top === line.top)
      return (beside.findLast((one) => one.left <= left + 1) ?? line).item
    },
    /** @param {string} key */
    reveal(key) {
      const found = placed.find(({ item }) => item.key === key)
      if (!found) return
      const { scrollTop, clientHeight } = element
      if (found.top < scrollTop) element.scrollTop = found.top
      else if (found.top + found.height > scrollTop + clientHeight) {
        element.scrollTop = found.top + found.height - clientHeight
      }
      if (!drawn.has(key)) draw()
    },
  }
}
