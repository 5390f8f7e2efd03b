// Which nodes are of this pack.

/** Whether a node of this type is ours. By its id: categories are translated, and titles are the user's. */
export const isOurs = (type) => type?.startsWith("Lycoris") ?? false
