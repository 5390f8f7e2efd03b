// The words of the page and of the server in other languages.

import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { test } from "node:test"

import { speak, t, told } from "../../lycoris_nodes/web/language.js"

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
  const { page, notes, server } = JSON.parse(readFileSync(new URL(`words/${language}.json`, WEB), "utf-8"))

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
    for (const [english, text] of Object.entries({ ...page, ...server })) {
      assert.deepEqual(names(text), names(english), english)
    }
  })
}

test("what the server says is known by its form, part by part", () => {
  const page = { ".": "。", ": ": "：", "; ": "；" }
  const server = {
    "{sizes}: larger, and {loss}": "{sizes}：变大，{loss}",
    "loses {share}": "损失 {share}",
    "row {number}": "第 {number} 行",
    "there is no such file (here)": "没有此文件",
    "{problem} (found {got}; expected {wanted})": "{problem}（{got}，应为 {wanted}）",
    "Nothing was changed: {why}": "未作任何更改：{why}",
  }
  assert.equal(told("row 2: there is no such file (here)."), "row 2: there is no such file (here).")
  speak(page, server)
  assert.equal(told("0.55 → 13.5 MB: larger, and loses 31 %."), "0.55 → 13.5 MB：变大，损失 31 %。")
  assert.equal(told("row 2: x.safetensors: there is no such file (here)."), "第 2 行：x.safetensors：没有此文件。")
  assert.equal(told("row 2: row 4 (found 1: a; b; expected row 3: c). row 5"), "第 2 行：第 4 行（1: a; b，应为 第 3 行：c）. 第 5 行")
  assert.equal(told("Nothing was changed: loses 1 %\n  row 3\nx. y"), "未作任何更改：损失 1 %\n  第 3 行\nx. y")
  assert.equal(t("unknown {a}", { a: 1 }), "unknown 1")
  // An error of other code, of which no part is known: this ends, in however many ways the text can be parted.
  const unknown = "a.b: size [3, 4, 3] in the file, and [3, 4] in the model; as in a. ".repeat(40)
  assert.equal(told(unknown), unknown)
  speak({})
})
