// Reads the words of the user's language before any node is made.

import { app } from "../../scripts/app.js"
import { speak } from "./language.js"

const LANGUAGES = ["ja", "zh"]

app.registerExtension({
  name: "lycoris.locale",

  async init() {
    // "zh-TW" is read as "zh": simplified characters are nearer than English.
    const language = String(app.ui.settings.getSettingValue("Comfy.Locale") ?? "en").split("-")[0]
    if (!LANGUAGES.includes(language)) return
    const answer = await fetch(new URL(`./words/${language}.json`, import.meta.url))
    const { page, server } = await answer.json()
    speak(page, server)
  },
})
