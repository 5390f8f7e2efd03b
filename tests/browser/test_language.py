"""Rows, menus and reports in the user's language."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.harness.facts import ROOT
from tests.harness.page import building
from tests.harness.templates import SMALL, TRAIN, ready, template

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

INSPECT = "04 Inspect LoRA and LyCORIS files"

BUILD = building(
    "rows",
    """
    const base = make("CheckpointLoaderSimple", 0, 0, {ckpt_name: "base.safetensors"})
    const apply = make("LycorisApplyStack", 600, 0)
    join(base, 0, apply, "model")
    join(make("LycorisAdapterRows", 0, 250, {rows}), 0, apply, "stack")
""",
)
SHOWN = """selector => [...document.querySelectorAll(selector)].flatMap(root =>
    [root, ...root.querySelectorAll("*")].flatMap(one => [
        one.title, one.placeholder, one.ariaLabel,
        ...[...one.childNodes].filter(({nodeType}) => nodeType === 3).map(({data}) => data),
        ...(one.tagName === "INPUT" && one.type === "text" ? [one.value] : []),
    ])).filter(Boolean).map(text => text.trim()).filter(Boolean)"""
NAMES = re.compile(
    r"[\w/ ]+\.safetensors|LoRA|LyCORIS|rgthree|Power Lora Loader|<lora:|nowhere(?: = 0\.5)?|Ctrl|Shift"
    r"|Alt|Enter|Esc|`\w+`|SD 1\.5|\b(loha|lora|lokr|loras|kohya|lycoris\.kohya|missing|base)\b|[A-Z]{2,}"
)
"""What has no translation: names, keys of the keyboard, and words of files."""


def english(ui: Ui, selector: str) -> list[str]:
    """What these elements say in English, once there are some."""
    ui.page.locator(selector).first.wait_for()
    ui.page.wait_for_timeout(400)
    texts = ui.page.evaluate(SHOWN, selector)
    assert texts
    return [text for text in texts if re.search("[A-Za-z]{3}", NAMES.sub("", text))]


def close(ui: Ui) -> None:
    ui.page.keyboard.press("Escape")
    ui.page.wait_for_timeout(200)


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_all_is_said_in_chinese(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    page, kind = ui.page, "vue" if vue_nodes else "canvas"
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.Locale', 'zh')")
    page.wait_for_timeout(500)
    ui.reload()
    ui.render_with_vue(vue_nodes)
    left: dict[str, list[str]] = {}

    def look(selector: str) -> None:
        if found := english(ui, selector):
            left[selector] = found

    # The names of all inputs, also of rare ones.
    ui.load(template(TRAIN))
    ui.drawn(vue_nodes)
    inputs = "app.graph.nodes.find(node => node.type === 'LycorisTrain').inputs"
    said = page.evaluate(f"{inputs}.map(input => input.label ?? input.localized_name)")
    assert [text for text in said if re.search("[a-z]{3}", NAMES.sub("", text))] == []

    rows = [
        {"file": "loha.safetensors", "rules": "nowhere = 0.5"},
        {"file": "missing.safetensors", "strength_model": "1/3", "strength_clip": 1},
    ]
    page.evaluate(BUILD, json.dumps({"rows": rows}))
    ui.look(150, 100)
    ui.drawn(vue_nodes)
    node = "app.graph.nodes.find(node => node.type === 'LycorisApplyStack')"
    said = page.evaluate(
        f"[{node}.title, ...[...{node}.inputs, ...{node}.outputs, ...{node}.widgets].map(one => one.label)]"
    )
    assert [text for text in said if text and re.search("[a-z]{3}", NAMES.sub("", text))] == []
    # A choice is shown in words, and stays what it is.
    mode = f"{node}.widgets.find(widget => widget.name === 'mode')"
    assert page.evaluate(f"[{mode}.value, {mode}._displayValue]") == ["merge", "合并（merge）"]
    if vue_nodes:
        # The oldest front end asks `getOptionLabel` for files alone.
        shown = "merge" if ui.front_end == "1.41.21" else "合并（merge）"
        page.locator(".lg-node").get_by_text(shown, exact=True).wait_for()
    page.locator(".lycoris-bad", has_text="!").wait_for()
    look(".lycoris-rows")
    screenshot(f"chinese-rows-{kind}")

    page.locator(".lycoris-row .lycoris-file").first.click(button="right")
    look(".lycoris-menu")
    screenshot(f"chinese-menu-{kind}")
    close(ui)
    page.locator(".lycoris-head .lycoris-icon").click()
    look(".lycoris-menu")
    page.locator(".lycoris-menu button", has_text="粘贴").click()
    look(".lycoris-textbox")
    close(ui)
    page.locator(".lycoris-about").first.click()
    page.locator(".lycoris-info table").wait_for()
    look(".lycoris-info")
    screenshot(f"chinese-about-{kind}")
    close(ui)
    page.locator(".lycoris-foot .lycoris-button").click()
    page.locator(".lycoris-picker .lycoris-item").first.wait_for()
    look(".lycoris-bar")
    look(".lycoris-star")
    screenshot(f"chinese-picker-{kind}")
    close(ui)
    page.locator(".lycoris-spark").first.click()
    page.locator(".lycoris-block").first.wait_for()
    look(".lycoris-blocks-head")
    look(".lycoris-block-readout")
    look(".lycoris-blocks-text .lycoris-hint div")
    look(".lycoris-blocks-text .lycoris-button")
    screenshot(f"chinese-blocks-{kind}")
    close(ui)

    # The run is refused, and the row says why.
    ui.press_run()
    page.locator(".lycoris-reason:visible").wait_for()
    look(".lycoris-reason:not([hidden])")
    screenshot(f"chinese-refused-{kind}")
    page.locator(".lycoris-row .lycoris-file").nth(1).click(button="right")
    page.locator(".lycoris-menu button", has_text="删除").first.click()
    ui.run()
    page.locator(".lycoris-report .first", has_text="没有全部").wait_for()
    look(".lycoris-report .first")
    look(".lycoris-report summary")
    screenshot(f"chinese-report-{kind}")

    ui.load_template(ready(INSPECT, ui.server.object_info(), SMALL))
    ui.drawn(vue_nodes)
    ui.run()
    drawing = page.locator(".lycoris-drawing svg").filter(visible=True)
    drawing.wait_for()
    charts = [
        text for text in drawing.locator("text").all_text_contents() if re.search(" (of|the|each) ", text)
    ]
    assert charts == []
    screenshot(f"chinese-inspect-{kind}")
    assert left == {}


@pytest.mark.every_front_end
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_a_note_is_shown_in_chinese_and_saved_as_delivered(ui: Ui, vue_nodes: bool) -> None:
    page, delivered = ui.page, template(INSPECT)
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.Locale', 'zh')")
    page.wait_for_timeout(500)
    ui.reload()
    ui.render_with_vue(vue_nodes)
    words = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    notes: dict[str, str] = words["lycoris"]["notes"]
    note = "app.graph.nodes.find(node => node.type === 'MarkdownNote')"

    def shown() -> list[str]:
        return page.evaluate(f"[{note}.title, {note}.widgets[0].value]")

    def saved() -> list[str]:
        [found] = [node for node in ui.serialized()["nodes"] if node["type"] == "MarkdownNote"]
        return [found["title"], *found["widgets_values"]]

    [english] = [[node["title"], *node["widgets_values"]] for node in delivered["nodes"] if node["id"] == 1]
    chinese = [notes[text] for text in english]
    ui.load_template(delivered)
    ui.drawn(vue_nodes)
    assert shown() == chinese
    # Markdown has taken all marks of bold text.
    heading = page.locator("h2", has_text="查看 LoRA 改变了什么")
    assert "**" not in heading.locator("..").inner_text()
    assert saved() == english
    # What the user writes is kept.
    page.evaluate(f"{note}.widgets[0].value += '!'")
    changed = [chinese[0], chinese[1] + "!"]
    assert saved() == changed
    ui.load(ui.serialized())
    assert shown() == changed
    assert ui.errors == []
