// What the server says of the adapter files.

import { app } from "../../../scripts/app.js"

const ROOT = "/lycoris/adapters"
const known = new Map()

/** The names of all files, as they are now. */
export async function listFiles() {
  const answer = await app.api.fetchApi(ROOT)
  return answer.json()
}

async function ask(file) {
  const answer = await app.api.fetchApi(`${ROOT}/about?file=${encodeURIComponent(file)}`)
  return answer.json()
}

/** What a file says of itself, or `{error}` where it cannot be read. Each file is asked for once. */
export function aboutFile(file) {
  if (!known.has(file)) known.set(file, ask(file).catch((error) => ({ error: String(error) })))
  return known.get(file)
}

export function forgetFiles() {
  known.clear()
}

export function previewOf(file) {
  return app.api.apiURL(`${ROOT}/preview?file=${encodeURIComponent(file)}`)
}

/** A file's folder, with its last slash, and its name without the ending. */
export function splitName(file) {
  const [, folder, name] = /^(.*[/\\])?(.*?)$/su.exec(file)
  return [folder ?? "", name.replace(/\.(safetensors|sft|pt|pth|ckpt|bin)$/iu, "")]
}

/** Kind, rank and family of models of a file, in few words. */
export function badgesOf(about) {
  if (!about || about.error) return []
  const rank = /^\d+$/u.test(about.rank) ? ` ${about.rank}` : ""
  return [`${about.kind.split(" ")[0]}${rank}`, about.family].filter(Boolean)
}
