// What the front end loads: one extension, whose hooks call the parts of this folder in the order in which they stand.
// The front end imports the other files too, which does nothing.

import { app } from "../../scripts/app.js"
import { addStyle } from "./elements.js"
import { saveBareHeights } from "./height.js"
import { linkHelp } from "./help.js"
import { closeGaps, keepColours, onPrompt, paint, putFirst } from "./host.js"
import { readWords, sayLanguage, translateChoices, translateNotes } from "./locale.js"
import { isOurs } from "./nodes.js"
import { expandPrefix } from "./prefixes.js"
import { bringBackReports, keepReports, listenToReports } from "./report.js"
import { addList, prepareRows, readBounds, refreshRows } from "./rows.js"
import { forgetModels, lookAgain } from "./rows/model.js"
import { keepSets } from "./rows/sets.js"
import { addPicture } from "./schedule.js"
import { fit, foldGroups } from "./sizes.js"
import { askSoon, listenToTrainings, pasteItem } from "./training.js"

const STYLES = ["report/style", "rows/style", "rows/blocks", "training/style"]

app.registerExtension({
  name: "lycoris",

  init: readWords,

  addCustomNodeDefs: putFirst,

  beforeRegisterNodeDef(nodeType, definition) {
    if (!isOurs(definition.name)) return
    closeGaps(nodeType)
    saveBareHeights(nodeType)
    foldGroups(nodeType)
    if (definition.name === "LycorisLoadAdapter") readBounds(definition)
    if (definition.name === "LycorisAdapterRows") prepareRows(nodeType)
  },

  setup() {
    for (const style of STYLES) addStyle(`./${style}.css`, import.meta.url)
    linkHelp()
    onPrompt({ ask: sayLanguage })
    keepColours()
    keepSets()
    // A report is shown before a training removes it.
    listenToReports()
    listenToTrainings()
    app.api.addEventListener("graphChanged", lookAgain)
  },

  nodeCreated(/** @type {GraphNode} */ node) {
    if (!isOurs(node.comfyClass)) return
    // First, because it gives the node its least size.
    fit(node)
    translateChoices(node)
    expandPrefix(node)
    if (node.comfyClass === "LycorisSchedule") addPicture(node)
    if (node.comfyClass === "LycorisAdapterRows") addList(node)
    askSoon()
  },

  beforeConfigureGraph: keepReports,

  afterConfigureGraph() {
    // The colours of palettes are there before the first graph.
    paint()
    translateNotes()
    bringBackReports()
    lookAgain()
    askSoon(true)
  },

  refreshComboInNodes() {
    forgetModels()
    refreshRows()
  },

  getNodeMenuItems: pasteItem,
})
