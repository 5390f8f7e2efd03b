// Colours of our wires. A colour palette that has one for a type of ours takes precedence.

import { app } from "../../scripts/app.js"

const COLOURS = { LYCORIS_STACK: "#58c7a8", LYCORIS_PLAN: "#c792e0", LORA_STACK: "#a0c75c" }

/** Give a colour to a type for as long as nothing else does: palettes empty what they do not know. */
function keep(table, type, colour) {
  let given = table[type]
  Object.defineProperty(table, type, {
    get: () => given || colour,
    set: (value) => (given = value),
    enumerable: true,
    configurable: true,
  })
}

app.registerExtension({
  name: "lycoris.colours",

  setup() {
    const style = document.createElement("style")
    for (const [type, colour] of Object.entries(COLOURS)) {
      // Links and slots on the canvas, and slots that Vue draws.
      keep(app.canvas.constructor.link_type_colors, type, colour)
      keep(app.canvas.default_connection_color_byType, type, colour)
      style.textContent += `:where(html) { --color-datatype-${type}: ${colour}; }\n`
    }
    document.head.append(style)
  },
})
