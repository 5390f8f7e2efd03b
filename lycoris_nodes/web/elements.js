// Elements of the page. Texts are set as text, so that markup in a name or in metadata shows as it is written.

/**
 * An element with properties, `class` and `data`, and children.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {{[property: string]: any}} [properties]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, { class: name, data, ...properties } = {}, ...children) {
  const element = document.createElement(tag)
  if (name) element.className = name
  Object.assign(element.dataset, data)
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-")) element.setAttribute(key, value)
    else Object.assign(element, { [key]: value })
  }
  element.append(...children)
  return element
}

/**
 * A name and its folder, which is paler; each in the writing direction of its own letters.
 *
 * @param {[folder: string, name: string]} parts
 */
export function nameParts([folder, name]) {
  return [make("bdi", { class: "lycoris-folder", textContent: folder }), make("bdi", { textContent: name })]
}

/** @param {string[]} words */
export function badges(words) {
  return words.map((word) => make("span", { class: "lycoris-badge", textContent: word }))
}

/**
 * Add a style sheet to the page.
 *
 * @param {string} path
 * @param {string} from the address of the script that needs it
 */
export function addStyle(path, from) {
  document.head.append(make("link", { rel: "stylesheet", href: new URL(path, from).href }))
}
