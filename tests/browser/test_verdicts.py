"""Verdicts that stay: nodes run alone, errors begin with a sentence, and reports come back in every tab."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.harness.page import building

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = [
    pytest.mark.browser,
    pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"]),
]

BUILD = building(
    "()",
    """
    const load = make("LycorisLoadAdapter", 20, 60, {file: "lokr.safetensors"})
    const resize = make("LycorisResizeAdapter", 420, 60, {size: "rank 2"})
    load.connect(0, resize, resize.inputs.findIndex(({name}) => name === "stack"))
    make("LycorisExtractAdapter", 860, 60)
    make("LycorisMergeAdapters", 420, 560)
""",
)
SHOWN = """() => Object.fromEntries(app.graph.nodes.flatMap(({type, widgets}) => {
    const box = widgets?.find(({name}) => name === "report")?.element
    return box?.isConnected ? [[type, [box.dataset.state, ...box.innerText.trim().split("\\n")]]] : []
}))"""


@pytest.fixture
def page_of_a_site(base: Path) -> Iterator[str]:
    """The name of a file that is a web page."""
    path = base / "models" / "loras" / "page.safetensors"
    path.write_text("<!DOCTYPE html><html><body>Log in</body></html>" + " " * 300)
    yield path.name
    path.unlink()


CONTRAST = """selector => {
    const first = document.querySelector(selector)
    const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
    const light = colour => {
        context.fillStyle = colour
        context.fillRect(0, 0, 1, 1)
        const [red, green, blue] = [...context.getImageData(0, 0, 1, 1).data]
            .map(part => ((part / 255 + 0.055) / 1.055) ** 2.4)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05
    }
    const words = light(getComputedStyle(first).color)
    const behind = light(getComputedStyle(first.closest(".lycoris-report")).backgroundColor)
    return Math.max(words, behind) / Math.min(words, behind)
}"""
"""The contrast of words and their background, as WCAG computes it."""


@pytest.mark.every_front_end
def test_nodes_run_alone_and_their_verdicts_stay(
    ui: Ui, vue: bool, page_of_a_site: str, screenshot: Callable[[str], None]
) -> None:
    page = ui.page
    ui.render_with_vue(vue)
    page.evaluate(BUILD)
    page.wait_for_timeout(500)

    def opened(workflow: dict[str, object]) -> None:
        ui.load(workflow)
        page.wait_for_timeout(1500)

    opened({**ui.serialized(), "id": str(uuid4())})
    # No node takes their outputs. A node without inputs says so, and does not stop the others.
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(1500)
    said = page.evaluate(SHOWN)
    state, first, details = said["LycorisResizeAdapter"]
    assert state == "partly" and re.match(r"0\.\d\d → [\d.]+ MB: larger, and loses", first)
    assert details == "details"
    assert said["LycorisMergeAdapters"][:2] == ["nothing", "Nothing was merged: no stack arrived."]
    assert said["LycorisExtractAdapter"][:2] == ["nothing", "Nothing was extracted: no models are chosen."]
    screenshot(f"verdicts-{'vue' if vue else 'canvas'}")
    for palette in ("light", "dark"):
        page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(500)
        assert page.evaluate(CONTRAST, ".lycoris-report[data-state=partly] .first") > 4.5
    first_tab = ui.serialized()

    # An error: what is wrong, what to do, and the details folded. It stays too.
    page.evaluate("name => { app.graph.nodes[0].widgets[0].options.values.push(name) }", page_of_a_site)
    ui.set("LycorisLoadAdapter", "file", page_of_a_site)
    ui.press_run()
    page.locator(".lycoris-report[data-state=error]").wait_for()
    page.wait_for_timeout(1500)
    broken = page.evaluate(SHOWN)
    assert broken["LycorisLoadAdapter"] == [
        "error",
        "page.safetensors: this is a web page, not a model.",
        "Download it again; a login may be needed.",
        "details",
    ]
    assert page.evaluate(CONTRAST, ".lycoris-report[data-state=error] .first") > 4.5
    screenshot(f"verdicts-error-{'vue' if vue else 'canvas'}")
    second_tab = {**ui.serialized(), "id": str(uuid4())}

    # The verdicts come back in another tab with the same nodes, and after the page is loaded anew.
    opened(first_tab)
    again = page.evaluate(SHOWN)
    assert again == said
    opened(second_tab)
    page.locator(".lycoris-report[data-state=error]").wait_for()
    assert page.evaluate(SHOWN)["LycorisLoadAdapter"] == broken["LycorisLoadAdapter"]
    opened(first_tab)
    ui.reload()
    page.locator(".lycoris-report").first.wait_for()
    page.wait_for_timeout(1500)
    assert page.evaluate(SHOWN) == said
    # Details that are open stay open in the next run.
    page.locator(".lycoris-report[data-state=partly] summary", has_text="details").click()
    page.wait_for_timeout(800)
    assert "error" in page.evaluate(SHOWN)["LycorisResizeAdapter"][5]
    screenshot(f"verdicts-open-{'vue' if vue else 'canvas'}")
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(1500)
    assert len(page.evaluate(SHOWN)["LycorisResizeAdapter"]) > 5
    assert [error for error in ui.errors if "page.safetensors" not in error] == []
