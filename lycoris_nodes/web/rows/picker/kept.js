// What the picker and the sets of rows remember. It is in the host's settings of the user, so that it follows the user
// and not the browser.

import { app } from "../../../../scripts/app.js"

/** @typedef {import("./find.js").Kept} Kept */

const ID = "lycoris.picker"
/** How many files are remembered as used. */
const MOST = 300
/** @type {Kept} */
const NOTHING = { view: "list", sort: "name", closed: [], favourites: {}, used: {}, sets: [] }

/** Changes that are not written yet. @type {((kept: Kept) => Kept)[]} */
const waiting = []
/** Whether a write of them is planned. */
let planned = false
/** The latest write. @type {Promise<unknown>} */
let writing = Promise.resolve()

/** @returns {Promise<Kept>} */
async function stored() {
  return { ...NOTHING, .../** @type {any} */ (await app.api.getSetting(/** @type {any} */ (ID))) }
}

/** @returns {Promise<Kept>} */
export async function readKept() {
  await writing
  return stored()
}

async function write() {
  /** @type {typeof waiting} */
  let changes = []
  try {
    // As it is now: another page may have changed it.
    const before = await stored()
    changes = waiting.splice(0)
    planned = false
    const kept = changes.reduce((found, change) => change(found), before)
    await app.api.storeSetting(/** @type {any} */ (ID), /** @type {any} */ (kept))
  } catch {
    // Where the server does not answer, the next change is written with these.
    waiting.unshift(...changes)
    planned = false
  }
}

/** @param {(kept: Kept) => Kept} change */
export function changeKept(change) {
  waiting.push(change)
  if (planned) return
  planned = true
  writing = writing.then(write)
}

/**
 * @param {Kept} kept
 * @param {string} file
 * @returns {Kept}
 */
export function withUse(kept, file) {
  const { [file]: before, ...others } = kept.used
  const latest = Object.entries(others).sort(([, one], [, other]) => other[1] - one[1])
  const used = { [file]: [(before?.[0] ?? 0) + 1, Date.now()], ...Object.fromEntries(latest.slice(0, MOST - 1)) }
  return { ...kept, used: /** @type {Kept["used"]} */ (used) }
}
