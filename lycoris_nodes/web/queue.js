// The server's queue of prompts.

import { app } from "../../scripts/app.js"

/**
 * The ids of the prompts that run or wait.
 *
 * @returns {Promise<Set<string>>}
 */
export async function queuedPrompts() {
  const answer = await app.api.fetchApi("/queue")
  const { queue_running: now, queue_pending: later } = await answer.json()
  return new Set([...now, ...later].map(([, id]) => id))
}
