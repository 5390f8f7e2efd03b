// What of the picker stays: in the host's settings of the user, so that it follows the user and not the browser.

import { app } from "../../../../scripts/app.js"

/** @typedef {import("./find.js").Kept} Kept */

const ID = "lycoris.picker"
/** How many files are remembered as used. */
const MOST = 300
/** @type {Kept} */
const NOTHING = { view: "list", sort: "name", closed: [], favourites: {}, used: {} }

/** @returns {Promise<Kept>} */
export async function readKept() {
  return { ...NOTHING, .../** @type {any} */ (await app.api.getSetting(/** @type {any} */ (ID))) }
}

/** @type {Promise<unknown>} */
let last = Promise.resolve()

/**
 * Change what stays, as it is now: another page may have changed it.
 *
 * @param {(kept: Kept) => Kept} change
 */
export function changeKept(change) {
  const done = last.then(async () => app.api.storeSetting(/** @type {any} */ (ID), /** @type {any} */ (change(await readKept()))))
  last = done.catch(() => {})
  return done
}

/**
 * @param {Kept} kept
 * @param {string} file
 * @returns {Kept}
 */
export function withUse(kept, file) {
  const { [file]: before, ...others } = kept.used
  const latest = Object.entries(others).sort(([, one], [, other]) => other[1] - one[1])
  return { ...kept, used: { [file]: [(before?.[0] ?? 0) + 1, Date.now()], ...Object.fromEntries(latest.slice(0, MOST - 1)) } }
}
