// The words of the page in other languages.

import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { test } from "node:test"

import { speak, t } from "../../lycoris_nodes/web/language.js"

const WEB = new URL("../../lycoris_nodes/web/", import.meta.url)
const TEMPLATES = new URL("../../workflows/", import.meta.url)
const LOCALES = new URL("../../locales/", import.meta.url)
const LANGUAGES = readdirSync(LOCALES).filter((language) => language !== "en")
const names = (/** @type {string} */ text) => [...text.matchAll(/\{\w+\}/gu)].map(String).sort()

/** The texts that the scripts of the page say. */
function saidInPage() {
  const found = new Set()
  for (const file of readdirSync(WEB, { recursive: true, encoding: "utf-8" })) {
    if (!file.endsWith(".js")) continue
    const script = readFileSync(new URL(file, WEB), "utf-8").replace("function t(", "")
    const texts = [...script.matchAll(/\bt\(\s*("(?:[^"\\\n]|\\.)*")/gu)].map(([, text]) => JSON.parse(text))
    // Another text than a plain one could not be found here.
    assert.equal(texts.length, [...script.matchAll(/\bt\(/gu)].length, file)
    for (const text of texts) found.add(text)
  }
  return found
}

/** The notes of the templates, with their titles. */
function notesOfTemplates() {
  const files = readdirSync(TEMPLATES).filter((file) => file.endsWith(".json"))
  const nodes = files.flatMap((file) => JSON.parse(readFileSync(new URL(file, TEMPLATES), "utf-8")).nodes)
  return nodes.flatMap(({ type, title, widgets_values: [text] = [] }) => (type === "MarkdownNote" ? [title, text] : []))
}

/** How the lines begin: with a heading, the number of a step, or other text. @param {string} text */
const outline = (text) => text.split("\n").map((line) => /^(?:##|\d\.)/u.exec(line)?.[0] ?? Boolean(line))

for (const language of LANGUAGES) {
  const { page, notes } = JSON.parse(readFileSync(new URL(`${language}/main.json`, LOCALES), "utf-8")).lycoris

  test(`the page says all in ${language}, and no word is left of what it no longer says`, () => {
    const said = saidInPage()
    assert.deepEqual({ missing: [...said].filter((text) => !page[text]) }, { missing: [] })
    assert.deepEqual({ stale: Object.keys(page).filter((text) => !said.has(text)) }, { stale: [] })
  })

  test(`each note of each template is there in ${language}, and no other`, () => {
    assert.deepEqual(Object.keys(notes).sort(), [...new Set(notesOfTemplates())].sort())
    // What is saved in English is found by what is shown.
    assert.equal(new Set(Object.values(notes)).size, Object.keys(notes).length)
    for (const [english, text] of Object.entries(notes)) assert.deepEqual(outline(text), outline(english))
    // Markdown takes no bold text that ends in brackets before a letter.
    for (const text of Object.values(notes)) assert.doesNotMatch(text, /[）)]\*\*[^\s\p{P}]/u)
  })

  test(`no value is lost in ${language}`, () => {
    for (const [english, text] of Object.entries(page)) {
      assert.deepEqual(names(text), names(english), english)
    }
  })
}

test("a text without a translation is in English, with its values", () => {
  speak({ "known {a}": "{a}" })
  assert.equal(t("known {a}", { a: "x" }), "x")
  assert.equal(t("unknown {a}", { a: 1 }), "unknown 1")
  speak({})
})
