// Elements of drawings.

const SVG = "http://www.w3.org/2000/svg"

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {string} [text]
 */
export function shape(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
  // As text, never as markup.
  if (text !== undefined) element.textContent = text
  return element
}

/**
 * @param {number} x
 * @param {number} y
 * @param {string} text
 */
export function label(x, y, text, attributes = {}) {
  return shape("text", { x, y, "font-size": 9, fill: "var(--descrip-text, #999)", ...attributes }, text)
}
