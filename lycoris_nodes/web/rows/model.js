// Which model the stack of a node reaches, and what that model is.
//
//   const model = await modelOf(node)
//   model.file              "checkpoints/sdxl.safetensors"; "" where no model is connected or its file is not known
//   model.family            "SDXL", "SD1.5 or SD2"; "" where it is not known
//   model.suits(about)      null where a file suits or nothing is known, else the reason in words. `about` is what
//                           `aboutFile` or `askFacts` of server.js gives
//   model.names             {model: [...], clip: [...]}: the files that the loaders name, to ask the server with
//
//   followModel(node, (model) => ...)
//                           calls with the model once after the node is in a workflow, and whenever a change of the
//                           workflow gives the node another model
//
// The stack that a node gives is followed to the nodes that take it together with a model (through Combine, Weight
// Blocks, Schedule and whatever else takes and gives stacks), and their model back to the node that loads it. The names
// that this node has chosen are sent to the server, which finds the files. Nothing here throws: if a step leads
// nowhere, or the server does not answer, nothing is known of the model. If a stack reaches several models, the first
// counts; a file suits if it suits one of them.

import { app } from "../../../scripts/app.js"
import { post } from "../ask.js"
import { t } from "../language.js"
import { ourNodes } from "../nodes.js"
import { loadedBy, takersOf } from "./graph.js"
import { apart } from "./names.js"

/**
 * @typedef {import("../routes.js").ModelFacts} Facts
 * @typedef {Facts & {
 *   key: string, names: {model: string[], clip: string[]}, suits: (about: {family: string, families: string[]}) => string | null,
 * }} Model
 */

/** @type {Facts} */
const UNKNOWN = { file: "", family: "", families: [] }
/** @type {Map<string, Promise<Facts>>} */
const known = new Map()
/**
 * For each node, the function that looks at its model again. Weak, because the front end does not report that nodes in
 * subgraphs are gone when another workflow is loaded.
 *
 * @type {WeakMap<GraphNode, () => void>}
 */
const followers = new WeakMap()

/** Look at the models of all followed nodes again, once the workflow has changed. */
export function lookAgain() {
  for (const node of ourNodes()) followers.get(node)?.()
}

/**
 * @param {string} question
 * @returns {Promise<Facts>}
 */
function ask(question) {
  const asked =
    known.get(question) ??
    post("/lycoris/model", JSON.parse(question)).catch(() => {
      // The next call asks again.
      known.delete(question)
      return UNKNOWN
    })
  known.set(question, asked)
  return asked
}

/** @param {GraphNode} node */
function questionsOf(node) {
  const takers = takersOf(app.rootGraph, /** @type {any} */ (node))
  const questions = takers.map((place) =>
    JSON.stringify({ model: loadedBy(place, "MODEL"), clip: loadedBy(place, "CLIP") }),
  )
  return [...new Set(questions)]
}

/**
 * @param {string[]} questions
 * @returns {Promise<Model>}
 */
async function answered(questions) {
  const answers = await Promise.all(questions.map(ask))
  const found = answers.filter(({ file }) => file)
  const told = found.filter(({ families }) => families.length)
  /** @type {Model["suits"]} */
  const suits = (about) => {
    if (!told.length || told.length < found.length || !told.every((one) => apart(one, about))) return null
    return t("made for {made}; this model is {family}", { made: about.family, family: told[0].family })
  }
  const names = found[0] ? JSON.parse(questions[answers.indexOf(found[0])]) : { model: [], clip: [] }
  return { ...(found[0] ?? UNKNOWN), names, key: questions.join(), suits }
}

/**
 * @param {GraphNode} node
 * @returns {Promise<Model>}
 */
export async function modelOf(node) {
  return answered(questionsOf(node))
}

/**
 * @param {GraphNode} node
 * @param {(model: Model) => void} act
 */
export function followModel(node, act) {
  let key = "not asked"
  followers.set(node, async () => {
    const questions = questionsOf(node)
    if (`${questions}` === key) return
    key = `${questions}`
    const model = await answered(questions)
    if (node.graph && model.key === key) act(model)
  })
}

/** Called when the user refreshes the lists of files. */
export function forgetModels() {
  known.clear()
  lookAgain()
}
