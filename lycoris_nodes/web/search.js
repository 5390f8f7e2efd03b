// The rank of a node among the results of the front end's search for nodes.

// What users type to find a node that loads their files.
const WORDS = ["lora", "lycoris"]

/**
 * Whether the user has typed one of WORDS, and one of the node's names matched it. The front end does not give the
 * query, but a score: how a name matched (1: at its beginning; more: further in), where, and the length of the name. So
 * this looks for a name of that length that has one of WORDS at that place.
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
