"""Load LoRA / LyCORIS (rows) on a page, and what a user does with its list."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .page import Ui, building

if TYPE_CHECKING:
    from playwright.sync_api import Locator


BUILD = building("text", "make('LycorisAdapterRows', 0, 0, {rows: text})")


class Rows:
    """The node on the page, and how many times the mouse was clicked."""

    def __init__(self, ui: Ui) -> None:
        self.ui = ui
        self.page = ui.page
        self.clicks = 0

    def click(self, found: Locator, **options: Any) -> None:
        self.clicks += 1
        found.click(**options)

    def add(self, file: str) -> None:
        self.click(self.page.get_by_role("button", name="+ Add LoRA / LyCORIS"))
        self.click(self.page.locator(".lycoris-picker").get_by_title(file, exact=True))

    def line(self, index: int) -> Locator:
        return self.page.locator(".lycoris-row").nth(index)

    def menu(self, index: int, words: str) -> None:
        self.click(self.line(index).locator(".lycoris-file"), button="right")
        self.click(self.page.locator(".lycoris-menu").get_by_role("button", name=words, exact=True))

    def drag(self, source: int, target: int) -> None:
        start = self.line(source).locator(".lycoris-handle").bounding_box()
        end = self.line(target).bounding_box()
        assert start and end
        mouse = self.page.mouse
        mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
        mouse.down()
        mouse.move(end["x"] + 30, end["y"] + end["height"] / 2, steps=4)
        mouse.up()

    def said(self) -> list[list[dict[str, Any]]]:
        """The rows of each such node as the prompt has them."""
        nodes = self.ui.prompt().values()
        texts = [node["inputs"]["rows"] for node in nodes if node["class_type"] == "LycorisAdapterRows"]
        return [json.loads(text)["rows"] for text in texts]

    def files(self) -> list[str]:
        return [row["file"] for row in self.said()[0]]

    def wait(self, files: list[str]) -> None:
        """Wait until the list shows these files; undoing takes its time."""
        self.page.wait_for_function(
            """names => {
                const shown = [...document.querySelectorAll('.lycoris-row .lycoris-file')]
                return JSON.stringify(shown.map(name => name.textContent)) === JSON.stringify(names)
            }""",
            arg=[file.removesuffix(".safetensors") for file in files],
        )
        assert self.files() == files


def start(ui: Ui, vue_nodes: bool, *files: str) -> Rows:
    """The node alone on the page, with a row for each file."""
    ui.render_with_vue(vue_nodes)
    ui.page.evaluate(BUILD, json.dumps({"rows": [{"file": file} for file in files]}))
    ui.look(300, 200)
    # The page must have recorded this state, so that Undo comes back to it.
    ui.page.wait_for_function(
        """() => {
            app.canvas.emitBeforeChange()
            app.canvas.emitAfterChange()
            const { activeState } = app.extensionManager.workflow.activeWorkflow.changeTracker
            return activeState.nodes.map(({ type }) => type).join() === 'LycorisAdapterRows'
        }"""
    )
    return Rows(ui)
