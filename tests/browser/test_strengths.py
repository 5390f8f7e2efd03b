"""Strengths of the rows: dragged, stepped and typed, one or several at once, in both renderers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.harness.list_of_rows import Rows, start

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

STEP = 4
"""How many pixels the pointer goes for one step."""
FILES = ("lora.safetensors", "loha.safetensors", "lokr.safetensors")


def field(rows: Rows, row: int, column: int = 0) -> Locator:
    return rows.line(row).locator(".lycoris-number").nth(column)


def drag(rows: Rows, source: Locator, steps: int, *keys: str, release: bool = True) -> None:
    """Drag to the right by so many steps, or to the left, with keys held."""
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
        """shown => JSON.stringify([...document.querySelectorAll('.lycoris-row')]
            .map(row => row.querySelector('.lycoris-number').value)) === JSON.stringify(shown)""",
        arg=list(shown),
    )
    # The front end takes no key while it is still at the last Undo.
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
    # Escape gives a drag up.
    drag(rows, first, -20, release=False)
    assert (first.input_value(), strengths(rows)[0]) == ("-0.30", 0.7)
    screenshot(f"strengths-{name}-dragged")
    page.keyboard.press("Escape")
    page.mouse.up()
    assert (first.input_value(), strengths(rows)[0]) == ("0.70", 0.7)

    # At another zoom the way is the same on the screen.
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
    # A few in a row are one step, and Undo reaches them from the field.
    page.keyboard.press("Control+z")
    wait(rows, "0.80", "1.00", "1.00")
    page.keyboard.press("Control+y")
    wait(rows, "1.43", "1.00", "1.00")
    field(rows, 1).hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function(f"app.canvas.ds.scale < {scale}")
    assert strengths(rows) == [1.43, 1, 1]
    page.evaluate("Object.assign(app.canvas.ds, {scale: 1, offset: [300, 200]})")
    page.wait_for_timeout(300)

    # A click or two, and what is typed takes the place of all that was there.
    first.dblclick()
    page.keyboard.type("-0,5")
    # The next press ends it.
    drag(rows, field(rows, 1), 2)
    assert strengths(rows) == [-0.5, 1.1, 1]
    field(rows, 2).click()
    page.keyboard.type("1/3")
    page.keyboard.press("Enter")
    assert strengths(rows)[2] == "1/3" and field(rows, 2).input_value() == "1/3"
    assert "lycoris-wrong" in str(field(rows, 2).get_attribute("class"))
    assert "a number from -100 to 100" in str(field(rows, 2).get_attribute("title"))
    drag(rows, field(rows, 2), 9)
    assert strengths(rows)[2] == "1/3"
    field(rows, 2).click()
    page.keyboard.type("2")
    page.keyboard.press("Escape")
    assert field(rows, 2).input_value() == "1/3"
    screenshot(f"strengths-{name}-typed")
    field(rows, 1).hover()
    more = rows.line(1).get_by_title("0.05 more").first
    more.click()
    more.click(modifiers=["Shift"])
    assert strengths(rows)[1] == 1.16

    # With a finger.
    page.evaluate(
        """() => {
            const [field] = document.querySelectorAll('.lycoris-number')
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
        }"""
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

    # By the handle, with Ctrl and with Shift anywhere on a row: a click there opens nothing.
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
    field(rows, 0).click()
    page.keyboard.press("ArrowUp")
    assert strengths(rows) == [0.85, 0.15, 1, 0.85, 1]
    # The front end takes what follows within a moment for the same step.
    page.wait_for_timeout(800)
    # A row that is not selected is alone.
    drag(rows, field(rows, 2), 2)
    assert strengths(rows) == [0.85, 0.15, 1.1, 0.85, 1]
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

    # They are moved, and taken out, together.
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
    """Strengths with either separator; what cannot be read stays after a reload, and stops the run."""
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
        ("1000", "1000", "1000"),
        ("abc", "abc", "abc"),
    ):
        typed.fill(text)
        typed.press("Enter")
        assert (strengths(rows)[1], typed.input_value()) == (sent, shown)
        assert ("lycoris-wrong" in str(typed.get_attribute("class"))) == (sent == text), text
    ui.load(ui.serialized())
    page.locator(".lycoris-wrong:visible").wait_for()
    refused = page.evaluate(
        "app.graphToPrompt().then(made => app.api.queuePrompt(0, made)).catch(error => error.response)"
    )
    assert 'row 2: the field `strength_model` cannot be used (found "abc"; expected' in str(refused)
