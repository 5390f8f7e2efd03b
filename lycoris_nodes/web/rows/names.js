// Files in words.

/**
 * A file's folder, with its last slash, and its name without the ending.
 *
 * @param {string} file
 * @returns {[folder: string, name: string]}
 */
export function splitName(file) {
  const start = Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\")) + 1
  const name = file.slice(start).replace(/\.(safetensors|sft|pt|pth|ckpt|bin)$/iu, "")
  return [file.slice(0, start), name]
}

/**
 * Kind, rank and family of models of a file, in few words.
 *
 * @param {import("./server.js").About | import("./server.js").Facts} about
 */
export function badgesOf(about) {
  if (about.error) return []
  const rank = /^\d+$/u.test(about.rank) ? ` ${about.rank}` : ""
  return [`${about.kind.split(" ")[0]}${rank}`, about.family].filter(Boolean)
}

/** @param {number} bytes */
export function shownSize(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`
}
