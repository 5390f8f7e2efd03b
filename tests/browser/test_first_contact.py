"""What a new user sees first: the search for nodes, the templates, and a picture on a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.harness.templates import SMALL, TEMPLATES, ready, template

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

INSPECT = "04 Inspect LoRA and LyCORIS files"
EMPTY = 130
"""The most empty pixels below the widgets of one of our nodes that has not run yet."""
BEHIND = """() => {
    // Test points within each node against the path of each wire.
    const context = document.createElement("canvas").getContext("2d")
    context.lineWidth = 4
    const found = []
    const graph = app.graph
    const parts = [...graph.links.values(), ...graph.reroutes.values()]
    for (const part of parts) {
        if (!part.path) continue
        for (const node of graph.nodes) {
            const [left, top, width, height] = node.getBounding()
            for (let x = left + 14; x < left + width - 14; x += 9)
                for (let y = top + 6; y < top + height - 6; y += 4)
                    if (context.isPointInStroke(part.path, x, y)) {
                        found.push([part.type ?? "reroute", node.type])
                        x = Infinity
                        break
                    }
        }
    }
    return found
}"""


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_a_new_user_finds_the_rows_and_reads_a_picture(
    ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    """The rows come first, templates have no wire behind a node, and a picture follows the palette."""
    page, kind = ui.page, "vue" if vue_nodes else "canvas"
    ui.render_with_vue(vue_nodes)
    ui.command("Workspace.SearchBox.Toggle")
    search = page.get_by_placeholder("Add a node...")
    for word in ("lora", "lycoris"):
        search.fill(word)
        first = page.get_by_test_id("result-item").first
        first.filter(has_text="Load LoRA / LyCORIS (rows)").wait_for()
        screenshot(f"search-{word}-{kind}")
    page.keyboard.press("Escape")
    _templates_are_tidy(ui, vue_nodes)
    _inspect_draws(ui, vue_nodes, screenshot)
    assert ui.errors == []


def _templates_are_tidy(ui: Ui, vue_nodes: bool) -> None:
    """No wire is behind a node, and no node of ours is larger than what it holds."""
    assert all(name[:2].isdigit() and " LoRA " in name and "LyCORIS" in name for name in TEMPLATES)
    for name in TEMPLATES:
        ui.load_template(template(name))
        ui.drawn(vue_nodes)
        assert ui.page.evaluate(BEHIND) == [], name
        spare = ui.page.evaluate(
            """() => app.graph.nodes
                // The training node reserves room for its box.
                .filter(({type}) => type.startsWith("Lycoris") && type !== "LycorisTrain")
                .map(node => [node.type, node.size[1] - node.computeSize()[1]])"""
        )
        assert [one for one in spare if one[1] > EMPTY] == [], name


def _inspect_draws(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    page, kind = ui.page, "vue" if vue_nodes else "canvas"
    ui.load_template(ready(INSPECT, ui.server.object_info(), SMALL))
    ui.drawn(vue_nodes)
    assert ui.run()["name"] == "execution_success"
    assert ui.report("LycorisInspect").startswith("These three do not disturb each other.")
    drawing = page.locator(".lycoris-drawing svg").filter(visible=True)
    drawing.wait_for()
    page.wait_for_timeout(4000)
    # One picture, as wide as the node, with words that can be read at zoom 1.
    assert drawing.count() == 1 and page.evaluate("app.graph.nodes.every(node => !node.imgs?.length)")
    small = page.evaluate(
        """() => {
            const svg = document.querySelector(".lycoris-drawing svg")
            const shown = svg.getBoundingClientRect().width / app.canvas.ds.scale
            return 11 * shown / svg.viewBox.baseVal.width
        }"""
    )
    assert small > 9
    # On the screen, whole.
    bottom = page.evaluate("""() => {
        const node = app.graph.nodes.find(({type}) => type === "LycorisInspect")
        const {scale, offset} = app.canvas.ds
        return (node.pos[1] + node.size[1] + offset[1]) * scale
    }""")
    assert bottom < page.viewport_size["height"]
    colours = set()
    for palette in ("light", "dark"):
        page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(1000)
        screenshot(f"inspect-{palette}-{kind}")
        colours.add(drawing.locator("text").first.evaluate("one => getComputedStyle(one).fill"))
    assert len(colours) == 2
    drawing.dispatch_event("click")
    large = page.locator("dialog.lycoris-large svg")
    large.wait_for()
    screenshot(f"inspect-large-{kind}")
    large.click()
    large.wait_for(state="detached")
