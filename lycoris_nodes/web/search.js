// Where a node stands among the results of the front end's search for nodes.

// What users type who look for a node that loads their files.
const WORDS = ["lora", "lycoris"]

/**
 * Whether the front end's score of a node is that of one of WORDS in a name of it. The query itself is not told, but
 * how it was met (1: the name begins with it; more: it is within), where, and how long the name is.
 *
 * @param {string[]} names
 * @param {number[]} score
 */
export function isMet(names, [way, at, length]) {
  return names.some((name) => {
    const places = WORDS.map((word) => name.toLocaleLowerCase().indexOf(word)).filter((place) => place >= 0)
    if (name.length !== length) return false
    return places.some((place) => (place ? way > 1 && at === place + name.length * 0.5 : way === 1))
  })
}
