// The rank of a node among the results of the front end's search for nodes.

// What users type to find a node that loads their files.
const WORDS = ["lora", "lycoris"]

/**
 * Whether the front end's score of a node says that one of its names matched at a place where it has one of WORDS. The
 * score does not hold the query, but how the name matched (1: at its beginning; more: further in), where, and the length
 * of the name.
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
