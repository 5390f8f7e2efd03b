// What of the picker stays: in the host's settings of the user, so that it follows the user and not the browser.

import { app } from "../../../../scripts/app.js"

/** @typedef {import("./find.js").Kept} Kept */

const ID = "lycoris.picker"
/** How many files are remembered as used. */
const MOST = 300
/** @type {Kept} */
const NOTHING = { view: "list", sort: "name", closed: [], favourites: {}, used: {} }

/** What was changed last. @type {Promise<unknown>} */
let last = Promise.resolve()

/** @returns {Promise<Kept>} */
async function stored() {
  return { ...NOTHING, .../** @type {any} */ (await app.api.getSetting(/** @type {any} */ (ID))) }
}

/** @returns {Promise<Kept>} */
export async function readKept() {
  await last
  return stored()
}

/**
 * Change what stays, as it is now: another page may have changed it.
 *
 * @param {(kept: Kept) => Kept} change
 */
export function changeKept(change) {
  const write = async () => app.api.storeSetting(/** @type {any} */ (ID), /** @type {any} */ (change(await stored())))
  // Where the server does not answer, the next change tries again, and the picker says so.
  last = last.then(write).catch(() => {})
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
