"""The rows' strengths, warnings and narrow nodes, in both renderers of the front end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets
from tests.harness.list_of_rows import Rows, start

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

STEP = 4
"""How many pixels the pointer goes for one step."""
INK, LONG, OTHER = (
    "warned/old ones/ink wash v2.safetensors",
    "warned/a name that is far too long for any node of any width at all.safetensors",
    "warned/sdxl_style.safetensors",
)
FILES = ("lora.safetensors", "loha.safetensors", "lokr.safetensors")
WRONG = {"file": FILES[0], "strength_model": "abc"}


STRENGTHS = ".lycoris-strength:not(.lycoris-signal) .lycoris-number"
"""The fields of the model and of the text encoder. Those of picture and sound are hidden for most files."""


def field(rows: Rows, row: int, column: int = 0) -> Locator:
    return rows.line(row).locator(STRENGTHS).nth(column)


def drag(rows: Rows, source: Locator, steps: int, *keys: str, release: bool = True) -> None:
    """Drag to the right by so many steps (to the left if negative), with these keys held."""
    box = source.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse, keyboard = rows.page.mouse, rows.page.keyboard
    for key in keys:
        keyboard.down(key)
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + STEP * steps / 2, y, steps=3)
    mouse.move(x + STEP * steps, y, steps=3)
    if release:
        mouse.up()
    for key in keys:
        keyboard.up(key)


def strengths(rows: Rows) -> list[float | str]:
    return [row.get("strength_model", 1) for row in rows.said()[0]]


def wait(rows: Rows, *shown: str) -> None:
    """Wait until the first column shows these strengths."""
    rows.page.wait_for_function(
        """([strengths, ...shown]) => JSON.stringify([...document.querySelectorAll('.lycoris-row')]
            .map(row => row.querySelector(strengths).value)) === JSON.stringify(shown)""",
        arg=[STRENGTHS, *shown],
    )
    # The front end ignores keys until it has finished the last Undo.
    rows.page.wait_for_timeout(400)


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_strengths_are_dragged_stepped_and_typed(
    ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    page, rows = ui.page, start(ui, vue_nodes, *FILES)
    name = "vue" if vue_nodes else "canvas"
    first = field(rows, 0)
    first.wait_for()
    page.wait_for_timeout(500)

    # A drag is one step for Undo, and focuses nothing.
    drag(rows, first, -6)
    assert strengths(rows) == [0.7, 1, 1]
    assert page.evaluate("document.activeElement.tagName") != "INPUT"
    drag(rows, first, 7, "Shift")
    assert strengths(rows)[0] == 0.77
    drag(rows, field(rows, 1), 3, "Control")
    assert strengths(rows) == [0.77, 2.5, 1]
    page.mouse.move(1500, 900)
    page.wait_for_timeout(300)
    for shown in (("0.77", "1.00", "1.00"), ("0.70", "1.00", "1.00"), ("1.00", "1.00", "1.00")):
        page.keyboard.press("Control+z")
        wait(rows, *shown)
    page.keyboard.press("Control+y")
    wait(rows, "0.70", "1.00", "1.00")
    # Escape cancels a drag.
    drag(rows, first, -20, release=False)
    assert (first.input_value(), strengths(rows)[0]) == ("-0.30", 0.7)
    screenshot(f"strengths-{name}-dragged")
    page.keyboard.press("Escape")
    page.mouse.up()
    assert (first.input_value(), strengths(rows)[0]) == ("0.70", 0.7)

    # At another zoom a step takes the same distance on the screen.
    page.evaluate("Object.assign(app.canvas.ds, {scale: 0.6}); app.canvas.setDirty(true, true)")
    page.wait_for_timeout(300)
    drag(rows, first, 2)
    assert strengths(rows)[0] == 0.8
    page.evaluate("Object.assign(app.canvas.ds, {scale: 1}); app.canvas.setDirty(true, true)")
    page.wait_for_timeout(300)

    # The wheel belongs to the field that has the focus, and to no other.
    scale = page.evaluate("app.canvas.ds.scale")
    first.click()
    assert page.evaluate("getSelection().toString()") == "0.80"
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, -100)
    wait(rows, "0.90", "1.00", "1.00")
    page.keyboard.down("Shift")
    page.mouse.wheel(0, 100)
    page.keyboard.up("Shift")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+ArrowUp")
    page.keyboard.press("Shift+ArrowDown")
    assert strengths(rows)[0] == 1.43
    assert page.evaluate("app.canvas.ds.scale") == scale
    # Several changes in a row are one step, and Undo works while the field has the focus.
    page.keyboard.press("Control+z")
    wait(rows, "0.80", "1.00", "1.00")
    page.keyboard.press("Control+y")
    wait(rows, "1.43", "1.00", "1.00")
    field(rows, 1).hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function(f"app.canvas.ds.scale < {scale}")
    assert strengths(rows) == [1.43, 1, 1]
    ui.look(300, 200)
    page.wait_for_timeout(300)

    # After a click or a double click, what is typed replaces the whole value.
    first.dblclick()
    page.keyboard.type("-0,5")
    # Pressing elsewhere ends the typing.
    drag(rows, field(rows, 1), 2)
    assert strengths(rows) == [-0.5, 1.1, 1]
    field(rows, 2).click()
    page.keyboard.type("1/3")
    page.keyboard.press("Enter")
    assert strengths(rows)[2] == 1 and field(rows, 2).input_value() == "1.00"
    word = page.locator(".lycoris-reason:visible")
    assert word.inner_text() == "1/3 is no number from -100 to 100, so 1.00 stays."
    screenshot(f"strengths-{name}-refused")
    field(rows, 2).click()
    page.keyboard.type("2")
    page.keyboard.press("Escape")
    assert field(rows, 2).input_value() == "1.00"
    screenshot(f"strengths-{name}-typed")
    field(rows, 1).hover()
    more = rows.line(1).get_by_title("0.05 more").filter(visible=True).first
    more.click()
    more.click(modifiers=["Shift"])
    assert strengths(rows)[1] == 1.16

    # With a finger.
    page.evaluate(
        """strengths => {
            const [field] = document.querySelectorAll(strengths)
            const {left, top} = field.getBoundingClientRect()
            const send = (type, x) => field.dispatchEvent(new PointerEvent(type, {
                pointerType: 'touch', pointerId: 1, isPrimary: true, bubbles: true, cancelable: true,
                clientX: left + 20 + x, clientY: top + 5, button: type === 'pointermove' ? -1 : 0,
            }))
            const {setPointerCapture} = Element.prototype
            // No finger of this number is on the screen.
            Element.prototype.setPointerCapture = () => {}
            send('pointerdown', 0)
            for (const x of [10, 20, 40]) send('pointermove', x)
            send('pointerup', 40)
            Object.assign(Element.prototype, {setPointerCapture})
        }""",
        STRENGTHS,
    )
    assert strengths(rows)[0] == 0
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.lycoris-strength')).touchAction") == "none"
    )
    assert ui.errors == []


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_several_rows_are_changed_as_one(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    page, rows = ui.page, start(ui, vue_nodes, *FILES, *FILES[:2])
    name = "vue" if vue_nodes else "canvas"
    field(rows, 0).wait_for()
    page.wait_for_timeout(500)
    field(rows, 1).click()
    page.keyboard.type("0.3")
    page.keyboard.press("Enter")

    # Rows are selected by the handle, or with Ctrl or Shift anywhere on a row. Such a click opens nothing.
    rows.line(0).locator(".lycoris-handle").click()
    rows.line(1).locator(".lycoris-file").click(modifiers=["Control"])
    page.get_by_text("2 selected").wait_for()
    rows.line(3).locator(".lycoris-file").click(modifiers=["Shift"])
    rows.line(2).locator(".lycoris-file").click(modifiers=["ControlOrMeta"])
    page.get_by_text("3 selected").wait_for()
    assert page.locator(".lycoris-picker").count() == 0
    drag(rows, field(rows, 3), -4)
    assert strengths(rows) == [0.8, 0.1, 1, 0.8, 1]
    screenshot(f"strengths-{name}-selected")
    # What is no strength changes none of them.
    field(rows, 1).click()
    page.keyboard.type("much")
    page.keyboard.press("Enter")
    assert strengths(rows) == [0.8, 0.1, 1, 0.8, 1]
    page.get_by_text("much is no number from -100 to 100, so 0.10 stays.").wait_for()
    field(rows, 0).click()
    page.keyboard.press("ArrowUp")
    assert strengths(rows) == [0.85, 0.15, 1, 0.85, 1]
    # The front end counts a change that follows at once as the same step.
    page.wait_for_timeout(800)
    # A row that is not selected changes alone.
    drag(rows, field(rows, 2), 2)
    assert strengths(rows) == [0.85, 0.15, 1.1, 0.85, 1]
    page.wait_for_timeout(800)
    rows.click(rows.line(1).get_by_role("checkbox"))
    assert [row.get("on", True) for row in rows.said()[0]] == [False, False, True, False, True]
    page.mouse.move(1500, 900)
    page.wait_for_timeout(800)
    page.keyboard.press("Control+z")
    page.get_by_text("5 of 5 on").wait_for()
    page.wait_for_timeout(400)
    page.keyboard.press("Control+z")
    wait(rows, "0.85", "0.15", "1.00", "0.85", "1.00")

    # Model and CLIP apart.
    rows.menu(0, "Separate strength for CLIP")
    for row in (0, 1):
        rows.line(row).locator(".lycoris-handle").click()
    drag(rows, field(rows, 0, 1), 2)
    drag(rows, field(rows, 1, 0), -2)
    said = [(row.get("strength_model", 1), row["strength_clip"]) for row in rows.said()[0][:3]]
    assert said == [(0.75, 0.95), (0.05, 0.25), (1, 1)], said
    clip = field(rows, 2, 1)
    clip.fill("-0.25")
    clip.press("Enter")
    clip.fill("")
    clip.press("Enter")
    assert (rows.said()[0][2]["strength_clip"], clip.input_value()) == (-0.25, "-0.25")
    screenshot(f"strengths-{name}-clip")

    # Selected rows are moved together, and removed together.
    rows.drag(1, 3)
    order = [FILES[2], FILES[0], FILES[0], FILES[1], FILES[1]]
    rows.wait(order)
    page.get_by_text("2 selected").wait_for()
    rows.menu(2, "Remove 2 rows")
    rows.wait([FILES[2], FILES[0], FILES[1]])
    assert page.locator(".lycoris-chosen-count").is_hidden()
    rows.line(0).locator(".lycoris-handle").click()
    page.get_by_text("1 selected").click()
    assert page.locator(".lycoris-chosen").count() == 0
    assert ui.errors == []


def test_what_is_typed_is_never_taken_for_something_else(ui: Ui) -> None:
    """A comma may stand for the point. What cannot be read is not taken; in a workflow it stops the run."""
    page, rows = ui.page, start(ui, False, "lora.safetensors", "lokr.safetensors")
    page.evaluate(
        """() => {
            const [shown, rows] = [LiteGraph.createNode('PreviewAny'), app.graph.nodes[0]]
            app.graph.add(shown)
            shown.pos = [600, 0]
            rows.connect(1, shown, 0)
        }"""
    )
    typed = field(rows, 1)
    for text, sent, shown in (
        ("0,5", 0.5, "0.50"),
        ("1000", 0.5, "0.50"),
        ("abc", 0.5, "0.50"),
    ):
        typed.fill(text)
        typed.press("Enter")
        assert (strengths(rows)[1], typed.input_value()) == (sent, shown)
    ui.set("LycorisAdapterRows", "rows", json.dumps({"rows": [{"file": FILES[0]}, WRONG]}))
    ui.load(ui.serialized())
    page.locator(".lycoris-wrong:visible").wait_for()
    refused = page.evaluate(
        "app.graphToPrompt().then(made => app.api.queuePrompt(0, made)).catch(error => error.response)"
    )
    ((reason,),) = (node["errors"] for node in refused["node_errors"].values())
    first, wanted, _, *details = reason["details"].splitlines()
    assert first.endswith("row 2: the field `strength_model` cannot be used.")
    assert wanted.startswith("Expected: a number") and 'found: "abc"' in details


@pytest.fixture
def files(loras: Path) -> None:
    """Files in folders, one of another family, one with a tall picture."""
    (loras / INK).parent.mkdir(parents=True)
    tensors = load_file(assets() / "loras" / "lora.safetensors")
    for name in (INK, LONG):
        save_file(tensors, loras / name, {"modelspec.description": "a line\n" * 200})
    save_file(tensors, loras / OTHER, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"})
    Image.new("RGB", (400, 900), "purple").save((loras / INK).with_suffix(".png"))


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_rows_warn_before_a_run_and_say_why_it_was_refused(
    ui: Ui, files: None, loras: Path, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    page = ui.page
    rows = start(
        ui, vue_nodes, FILES[0], "lohaa.safetensors", "gone/ink_wash.safetensors", "qzx", "lora", OTHER
    )
    name = "vue" if vue_nodes else "canvas"
    page.evaluate(
        """() => {
            const [rows] = app.graph.nodes
            const types = ['LycorisApplyStack', 'CheckpointLoaderSimple', 'PreviewAny']
            const [apply, model, shown] = types.map(type => LiteGraph.createNode(type))
            for (const [index, node] of [apply, model, shown].entries()) {
                app.graph.add(node)
                node.pos = [560, 240 * index]
            }
            model.connect(0, apply, 'model')
            rows.connect(1, shown, 0)
        }"""
    )
    # The family is a warning only while the rows are linked to a model of another family.
    wrong = rows.line(5).locator(".lycoris-bad:visible")
    rows.line(5).get_by_text("SDXL", exact=True).last.wait_for()
    assert wrong.count() == 0
    connect = """on => {
        const [rows, apply] = ['LycorisAdapterRows', 'LycorisApplyStack'].map(
            type => app.graph.nodes.find(node => node.type === type))
        app.canvas.emitBeforeChange()
        if (on) rows.connect(0, apply, 'stack')
        else rows.disconnectOutput(0)
        app.canvas.emitAfterChange()
    }"""
    page.evaluate(connect, True)
    wrong.wait_for()
    assert wrong.text_content() == "SDXL"
    assert "made for SDXL; this model is" in str(wrong.get_attribute("title"))
    assert rows.line(0).locator(".lycoris-bad:visible").count() == 0
    page.evaluate(connect, False)
    wrong.wait_for(state="detached")
    page.evaluate(connect, True)
    wrong.wait_for()
    # A file under two names counts as twice, unless one of the rows is off.
    twice = page.locator(".lycoris-twice:visible")
    page.wait_for_function("document.querySelectorAll('.lycoris-twice:not([hidden])').length === 2")
    assert set(twice.all_text_contents()) == {"x2"}
    said_rows = rows.said()[0]
    said_rows[0]["strength_model"] = "1/3"
    ui.set("LycorisAdapterRows", "rows", json.dumps({"rows": said_rows}))
    page.wait_for_timeout(500)
    screenshot(f"warnings-{name}-before")

    # Each row says why the run was refused, and no report or message covers the node.
    ui.press_run()
    reasons = page.locator(".lycoris-reason:visible")
    reasons.first.wait_for()
    said = reasons.all_text_contents()
    assert said[0].startswith("the field `strength_model` cannot be used")
    assert len(said) == 4 and all("the file is not there" in each for each in said[1:])
    assert page.locator(".lycoris-report").count() == 0
    page.wait_for_timeout(1000)
    assert page.locator(".p-toast-message", has_text="row").count() == 0
    screenshot(f"warnings-{name}-refused")
    ui.errors.clear()

    # One click replaces a missing name by the nearest one. A reason disappears once its cause is gone.
    rows.line(1).get_by_text("→ loha", exact=True).click()
    rows.line(2).get_by_text("→ ink wash v2").click()
    page.wait_for_function("document.querySelectorAll('.lycoris-reason:not([hidden])').length === 2")
    assert rows.files()[1:3] == [FILES[1], INK]
    assert rows.line(3).locator(".lycoris-near").count() == 0
    rows.menu(3, "Remove")
    field(rows, 0).fill("1")
    field(rows, 0).press("Enter")
    assert reasons.count() == 0
    # An error during the run is shown on its row too.
    (loras / INK).write_bytes(b"no adapter")
    page.evaluate(
        """() => app.api.dispatchCustomEvent('execution_error', {
            node_id: app.graph.nodes.find(node => node.type === 'LycorisAdapterRows').id,
            node_type: 'LycorisAdapterRows',
            exception_type: 'Error',
            exception_message: 'the run stopped',
            traceback: [],
        })"""
    )
    reasons.wait_for()
    assert "ink wash v2" in str(reasons.locator("span").text_content())
    assert page.locator(".lycoris-report").count() == 0
    reasons.get_by_role("button", name="switch this row off").click()
    assert rows.said()[0][2]["on"] is False
    assert reasons.count() == 0
    page.keyboard.press("Escape")
    rows.click(rows.line(0).get_by_role("checkbox"))
    page.wait_for_function("!document.querySelector('.lycoris-twice:not([hidden])')")
    assert ui.errors == []


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_a_narrow_node_and_panels_show_what_matters(
    ui: Ui, files: None, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    page, rows = ui.page, start(ui, vue_nodes, INK, LONG)
    name = "vue" if vue_nodes else "canvas"
    title, folder = (rows.line(0).locator(f".lycoris-file bdi:{place}-child") for place in ("last", "first"))
    rows.line(0).get_by_text("lora 4").wait_for()
    whole = title.bounding_box()
    shown = folder.bounding_box()
    line = rows.line(0).locator(".lycoris-file").bounding_box()
    assert whole and shown and line and shown["y"] < line["y"] + line["height"]
    # The picture is beside the node and not over it, on the side where there is room.
    for offset, after in ((300, True), (1400, False)):
        page.mouse.move(5, 900)
        page.evaluate("x => { app.canvas.ds.offset[0] = x; app.canvas.setDirty(true, true) }", offset)
        page.wait_for_timeout(400)
        title.hover()
        page.locator(".lycoris-preview").wait_for()
        page.wait_for_timeout(200)
        node = page.locator("[data-node-id]" if vue_nodes else ".lycoris-rows").first.bounding_box()
        picture = page.locator(".lycoris-preview").bounding_box()
        assert node and picture
        assert (
            picture["x"] >= node["x"] + node["width"]
            if after
            else picture["x"] + picture["width"] <= node["x"]
        )
        assert picture["y"] >= 0 and picture["y"] + picture["height"] <= 1080
        screenshot(f"rows-{name}-preview-{'after' if after else 'before'}")
    page.mouse.move(5, 900)
    page.evaluate(
        """() => {
            app.canvas.ds.offset[0] = 300
            app.graph.nodes[0].setSize([290, app.graph.nodes[0].size[1]])
            app.canvas.setDirty(true, true)
        }"""
    )
    page.wait_for_timeout(500)
    kept, dropped = title.bounding_box(), folder.bounding_box()
    line = rows.line(0).locator(".lycoris-file").bounding_box()
    assert kept and dropped and line
    assert (
        kept["width"] == pytest.approx(whole["width"], abs=1) and dropped["y"] >= line["y"] + line["height"]
    )
    screenshot(f"rows-{name}-narrow")

    # The panel about a file scrolls and stays on the screen, in a small window and if its picture loads late.
    page.set_viewport_size({"width": 900, "height": 500})
    rows.click(rows.line(0).get_by_title("About the file"))
    panel = page.locator(".lycoris-info")
    panel.locator("img").wait_for()
    page.wait_for_timeout(300)
    box = panel.bounding_box()
    assert box and box["x"] >= 0 and box["y"] >= 0
    assert box["x"] + box["width"] <= 900 and box["y"] + box["height"] <= 500
    screenshot(f"rows-{name}-about")
    panel.hover()
    page.mouse.wheel(0, 300)
    page.wait_for_function("document.querySelector('.lycoris-info').scrollTop > 100")

    # Two columns and a warning fit into the narrowest node.
    page.keyboard.press("Escape")
    page.evaluate(
        """text => {
            const node = app.graph.nodes[0]
            node.widgets.find(widget => widget.name === "rows").value = text
            node.setSize([225, node.size[1]])
            app.canvas.setDirty(true, true)
        }""",
        json.dumps({"rows": [{"file": INK, "strength_clip": 0.5}] * 2}),
    )
    page.locator(".lycoris-twice:visible").first.wait_for()
    page.wait_for_timeout(500)
    cut = page.evaluate(
        """() => [".lycoris-head", ".lycoris-row"].flatMap(name => {
            const line = document.querySelector(name)
            const right = line.getBoundingClientRect().right
            return [...line.children].filter(part => part.getBoundingClientRect().right > right + 0.5)
                .map(part => part.className)
        })"""
    )
    assert cut == []
    assert page.evaluate("document.querySelector('.lycoris-count').scrollHeight") < 20
    screenshot(f"rows-{name}-narrowest")
    assert ui.errors == []
