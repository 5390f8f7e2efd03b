// Where a node stands among the results of the front end's search for nodes.

// What users type to find a node that loads their files.
const WORDS = ["lora", "lycoris"]

/**
 * Whether the front end's score of a node says that one of its names matched where one of WORDS is. The score has not
 * the query, but how the name matched (1: it begins with the query; more: the query is within), where, and its length.
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
