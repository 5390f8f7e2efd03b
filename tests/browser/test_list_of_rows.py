"""The list of Load LoRA / LyCORIS (rows), used with the mouse in both renderers of the front end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets
from tests.harness.launch import PACK
from tests.harness.list_of_rows import Rows, start
from tests.harness.page import building

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

RGTHREE = 10
"""Clicks that rgthree's Power Lora Loader (commit 13b4399) takes for five files."""
INK, ALICE, LONG = (
    "rows/ink wash.safetensors",
    'rows/alice\'s "é" \u05e2\u05d1\u05e8\u05d9\u05ea \U0001f388 <i>.safetensors',
    "rows/a name that is far too long for any node of any width at all.safetensors",
)
FIVE = (INK, ALICE, LONG, "loha.safetensors", "lokr.safetensors")
BESIDE_A_TEXT = building(
    "text",
    """
    const apply = make("LycorisApplyStack", 600, 0)
    join(make("LycorisAdapterRows", 0, 0, {rows: text}), 0, apply, "stack")
    make("PrimitiveStringMultiline", 600, 400)
""",
)
MARKUP = "<img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def files(loras: Path) -> Path:
    """Files with metadata, a preview, a preview that is no picture, and odd names."""
    folder = loras / "rows"
    folder.mkdir()
    tensors = load_file(assets() / "loras" / "lora.safetensors")
    told = {
        "modelspec.trigger_phrase": f"ink wash, {MARKUP}",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.description": "Best at 0.7",
        "ss_tag_frequency": json.dumps({"10_ink": {"ink wash": 20, "tree": 7}}),
    }
    save_file(tensors, loras / INK, told)
    save_file(tensors, loras / ALICE)
    save_file(tensors, loras / LONG)
    Image.new("RGB", (60, 80), "purple").save(folder / "ink wash.preview.png")
    (loras / LONG).with_suffix(".png").write_text("no picture")
    return folder


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_rows_are_edited_with_the_mouse(
    ui: Ui, files: Path, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    page, rows = ui.page, start(ui, vue_nodes)
    for file in FIVE:
        rows.add(file)
    assert rows.clicks <= RGTHREE
    rows.wait(list(FIVE))
    assert rows.said()[0][0] == {"on": True, "file": INK, "strength_model": 1}
    assert page.title() != "run" and page.locator(".lycoris-file i").count() == 0
    rows.line(0).get_by_text("SD 1.5").wait_for()
    screenshot(f"rows-{'vue' if vue_nodes else 'canvas'}-five")

    # One row is switched off and nothing else changes.
    before = rows.said()[0]
    rows.click(rows.line(1).get_by_role("checkbox"))
    assert rows.said()[0] == [before[0], {**before[1], "on": False}, *before[2:]]
    page.get_by_text("4 of 5 on").wait_for()

    # Undo and redo, one step for each change.
    page.mouse.click(1500, 900)
    page.keyboard.press("Control+z")
    page.get_by_text("5 of 5 on").wait_for()
    page.keyboard.press("Control+z")
    rows.wait(list(FIVE[:4]))
    page.keyboard.press("Control+y")
    page.keyboard.press("Control+y")
    page.get_by_text("4 of 5 on").wait_for()
    rows.wait(list(FIVE))

    rows.drag(0, 3)
    order = [FIVE[1], FIVE[2], FIVE[3], INK, FIVE[4]]
    rows.wait(order)
    rows.menu(3, "Duplicate")
    rows.wait([*order[:4], INK, FIVE[4]])
    rows.menu(0, "Remove")
    order = [FIVE[2], FIVE[3], INK, INK, FIVE[4]]
    rows.wait(order)

    rows.menu(1, "Block weights…")
    page.get_by_label("Block rules of this row").fill("mid = 0.5\nte = 0")
    rows.click(page.get_by_role("button", name="Done"))
    # The panel closes when the server has read the rules.
    page.locator(".lycoris-blocks").wait_for(state="detached")
    assert rows.said()[0][1]["rules"] == "mid = 0.5\nte = 0"
    assert ui.errors == []


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_a_file_is_shown(ui: Ui, files: Path, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    page, rows = ui.page, start(ui, vue_nodes, LONG, "loha.safetensors", INK)
    name = "vue" if vue_nodes else "canvas"
    # The panel shows what the file says; markup in it is text.
    rows.click(rows.line(2).get_by_title("About the file"))
    panel = page.locator(".lycoris-info")
    for words in ("Trigger words", MARKUP, "Best at 0.7", "tree 7", "SD 1.5"):
        panel.get_by_text(words).first.wait_for()
    assert page.title() != "run" and panel.locator("img").count() == 1
    screenshot(f"rows-{name}-info")
    page.keyboard.press("Escape")
    panel.wait_for(state="detached")
    rows.line(2).locator(".lycoris-file").hover()
    page.locator(".lycoris-preview").wait_for()
    assert ui.errors == []


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_rows_are_pasted(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    page, rows = ui.page, start(ui, vue_nodes, "loha.safetensors")
    order = ["loha.safetensors"]
    # Rows of other packs. The file of the last one is missing.
    rows.click(page.get_by_title("More", exact=True))
    rows.click(page.get_by_role("button", name="Paste rows…"))
    saved = [{}, {"on": False, "lora": "lora", "strength": 0.4, "strengthTwo": None}, "", {"lora": "None"}]
    page.get_by_label("Paste rows").fill(json.dumps({"widgets_values": saved}))
    rows.click(page.get_by_role("button", name="Add rows"))
    order.append("lora.safetensors")
    rows.wait(order)
    assert rows.said()[0][1] == {"on": False, "file": "lora.safetensors", "strength_model": 0.4}
    rows.click(page.get_by_title("More", exact=True))
    rows.click(page.get_by_role("button", name="Paste rows…"))
    page.get_by_label("Paste rows").fill("[('gone\\\\it\\'s.safetensors', 0.5, 1.0), (None, 1, 1)]")
    rows.click(page.get_by_role("button", name="Add rows"))
    order.append("gone\\it's.safetensors")
    rows.wait(order)
    page.locator(".lycoris-missing").wait_for()
    assert "not there" in str(rows.line(2).locator(".lycoris-file").get_attribute("title"))
    screenshot(f"rows-{'vue' if vue_nodes else 'canvas'}-missing")
    # The ends of all rows are in line, in a narrow node too.
    page.wait_for_function(
        """() => {
            const shown = [...document.querySelectorAll(".lycoris-row")]
            if (shown[0].clientWidth > 420) {
                const [node] = app.graph.nodes
                node.setSize([420, node.size[1]])
                app.canvas.setDirty(true, true)
                return false
            }
            const places = new Set(shown.map(row => Math.round(row.lastChild.getBoundingClientRect().left)))
            return places.size === 1
        }"""
    )

    # A text with a fault, then tags of prompts with block weights.
    rows.click(page.get_by_title("More", exact=True))
    rows.click(page.get_by_role("button", name="Paste rows…"))
    page.get_by_label("Paste rows").fill('{"lora": "lora", "strength": "much"}')
    rows.click(page.get_by_role("button", name="Add rows"))
    page.get_by_text('row 1: the field `strength_model` cannot be used (found "much"').wait_for()
    page.get_by_label("Paste rows").fill("a cat <lyco:loha:0,2:1:lbw=INS> <lora:lokr:.5>")
    rows.click(page.get_by_role("button", name="Add rows"))
    rows.wait([*order, "loha.safetensors", "lokr.safetensors"])
    loha = {"on": True, "file": "loha.safetensors", "strength_model": 1, "strength_clip": 0.2, "rules": "INS"}
    assert rows.said()[0][3:] == [loha, {"on": True, "file": "lokr.safetensors", "strength_model": 0.5}]

    # Copied rows can be pasted. Where none is selected, all are copied.
    page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
    rows.click(page.get_by_title("More", exact=True))
    rows.click(page.get_by_role("button", name="Copy rows"))
    before = rows.said()[0]
    rows.click(page.get_by_title("More", exact=True))
    rows.click(page.get_by_role("button", name="Paste rows…"))
    # Pasted with the keys, the rows are added without the button.
    page.get_by_label("Paste rows").fill(page.evaluate("copied"))
    for keys in ("Control+a", "Control+x", "Control+v"):
        page.keyboard.press(keys)
    rows.wait([row["file"] for row in before] * 2)
    assert rows.said()[0] == before + [{"on": True, "strength_model": 1, **row} for row in before]
    assert ui.errors == []


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_sets_that_were_run_come_back(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    page, rows = ui.page, start(ui, vue_nodes, "lora.safetensors", "loha.safetensors")

    def run() -> None:
        # The host would refuse to run these nodes alone, so its answer is made up.
        answer = {"prompt_id": "0", "number": 0, "node_errors": {}}
        page.route("**/api/prompt", lambda route: route.fulfill(json=answer), times=1)
        # The page reads the sets first and then writes them: wait for the second.
        with page.expect_response(
            lambda got: got.url.endswith("lycoris.picker") and got.request.method == "POST"
        ):
            ui.press_run()

    def open_sets() -> None:
        rows.click(page.get_by_title("More", exact=True))
        rows.click(page.get_by_role("button", name="Sets of rows…"))

    run()
    before = rows.said()
    # With the first file off it is another set.
    rows.click(rows.line(0).get_by_role("checkbox"))
    run()
    # A new page knows the sets too, and offers them in another node.
    ui.reload()
    rows = start(ui, vue_nodes, "lokr.safetensors")
    open_sets()
    sets = page.locator(".lycoris-sets button")
    sets.nth(1).wait_for()
    assert [words.splitlines()[0] for words in sets.all_inner_texts()] == ["loha 1", "lora 1, loha 1"]
    screenshot(f"rows-{'vue' if vue_nodes else 'canvas'}-sets")
    rows.click(sets.nth(1))
    rows.wait(["lora.safetensors", "loha.safetensors"])
    assert rows.said() == before
    open_sets()
    rows.click(sets.first, modifiers=["Control"])
    rows.wait(["lora.safetensors", "loha.safetensors"] * 2)
    # A set with a name is not lost when its files are run again.
    open_sets()
    page.get_by_placeholder("A name for the rows").fill("last week")
    page.keyboard.press("Enter")
    run()
    open_sets()
    expect(sets.first).to_contain_text("last week lora 1, loha 1, loha 1")
    expect(sets).to_have_count(5)
    screenshot(f"rows-{'vue' if vue_nodes else 'canvas'}-named-sets")
    rows.click(page.get_by_title("Remove the set last week"))
    expect(sets).to_have_count(3)
    assert ui.errors == []


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_rows_are_copied_and_kept(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    """Rows are kept in a copy of the node, in a subgraph of a subgraph, and after a reload."""
    page, rows = ui.page, start(ui, vue_nodes, "lora.safetensors", "loha.safetensors")
    rows.click(rows.line(1).get_by_role("checkbox"))
    # In a copy of the node.
    said = rows.said()[0]
    page.evaluate("app.canvas.selectItems([app.graph.nodes[0]])")
    page.mouse.move(1500, 900)
    page.keyboard.press("Control+c")
    page.keyboard.press("Control+v")
    page.wait_for_function("app.graph.nodes.length === 2")
    assert rows.said() == [said, said]
    page.evaluate("app.graph.remove(app.graph.nodes[1])")

    # In a subgraph of a subgraph.
    for _ in range(2):
        page.evaluate("app.canvas.selectItems([app.canvas.graph.nodes[0]])")
        ui.command("Comfy.Graph.ConvertToSubgraph")
        page.wait_for_function("app.graph.nodes[0].subgraph")
        page.wait_for_timeout(300)
    for _ in range(2):
        page.evaluate(
            "app.canvas.openSubgraph(app.canvas.graph.nodes[0].subgraph, app.canvas.graph.nodes[0])"
        )
        page.wait_for_timeout(300)
    ui.look(300, 200)
    rows.click(page.locator(".lycoris-head").get_by_role("checkbox"))
    page.get_by_text("2 of 2 on").wait_for()
    said = [{**row, "on": True} for row in said]
    assert rows.said() == [said]
    screenshot(f"rows-{'vue' if vue_nodes else 'canvas'}-subgraph")

    # A reload of the page keeps the rows.
    workflow = json.loads(page.evaluate("JSON.stringify(app.rootGraph.serialize())"))
    ui.load(workflow)
    assert rows.said() == [said]
    assert ui.errors == []


def test_a_missing_file_is_replaced(ui: Ui, base: Path, files: Path) -> None:
    """No text on the page says where the files are."""
    page, rows = ui.page, start(ui, False, "lora.safetensors", "lokr.safetensors", "gone")
    missing = page.locator(".lycoris-missing .lycoris-file")
    titles = [str(missing.get_attribute("title"))]
    rows.click(missing)
    search = page.get_by_label("search files")
    search.press_sequentially("lo")
    search.press("ArrowDown")
    chosen = str(page.locator(".lycoris-active").get_attribute("title"))
    titles += page.evaluate("[...document.querySelectorAll('[title]')].map(element => element.title)")
    titles.append(page.locator("body").inner_text())
    search.press("Enter")
    rows.wait(["lora.safetensors", "lokr.safetensors", chosen])
    assert [text for text in titles if str(base) in text or str(base.resolve()) in text] == []
    assert "not there" in titles[0]


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_a_long_list_scrolls_and_a_text_that_is_none_says_so(
    ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]
) -> None:
    """500 rows do not enlarge the node. Wires of stacks have our colour. Another node can give the rows."""
    page, rows = ui.page, Rows(ui)
    ui.render_with_vue(vue_nodes)
    many = [{"file": f"gone {number}.safetensors", "on": False} for number in range(500)]
    page.evaluate(BESIDE_A_TEXT, json.dumps({"version": 1, "rows": many}))
    ui.look(300, 200)
    page.get_by_text("0 of 500 on").wait_for()
    height = page.evaluate("app.graph.nodes[0].size[1]")
    assert height < 720
    scale = page.evaluate("app.canvas.ds.scale")
    rows.line(3).hover()
    page.mouse.wheel(0, 300)
    page.wait_for_function("document.querySelector('.lycoris-list').scrollTop > 100")
    assert page.evaluate("app.canvas.ds.scale") == scale
    # Also with a palette that does not know our types.
    colours = "[app.canvas.constructor.link_type_colors, app.canvas.default_connection_color_byType]"
    ours = f"{colours}.every(table => table.LYCORIS_STACK === '#58c7a8')"
    page.wait_for_function(ours)
    for palette in ("light", "dark"):
        page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(500)
        page.wait_for_function(ours)
    screenshot(f"rows-{'vue' if vue_nodes else 'canvas'}-many")

    rows.click(page.locator(".lycoris-head").get_by_role("checkbox"))
    page.get_by_text("500 of 500 on").wait_for()
    assert all(row["on"] for row in rows.said()[0])
    ui.set("LycorisAdapterRows", "rows", '{"version": 2, "rows": []}')
    page.get_by_text("cannot be shown as rows: version: the rows are of a later version").wait_for()
    assert page.get_by_role("button", name="+ Add LoRA / LyCORIS").is_disabled()
    odd = {"version": 1, "rows": [{"file": "a"}, {"file": "b", "on": "no"}]}
    ui.set("LycorisAdapterRows", "rows", json.dumps(odd))
    page.get_by_text("row 2: the field `on` cannot be used").wait_for()
    # A text in another format is shown too, and the first change turns it into ours.
    ui.set("LycorisAdapterRows", "rows", "<lora:lora:0,5> <lora:lokr>")
    page.get_by_text("2 of 2 on").wait_for()
    rows.click(rows.line(1).get_by_role("checkbox"))
    assert rows.said()[0] == [
        {"on": True, "file": "lora.safetensors", "strength_model": 0.5},
        {"on": False, "file": "lokr.safetensors", "strength_model": 1},
    ]
    ui.set("LycorisAdapterRows", "rows", "a cat")
    page.get_by_text("cannot be shown as rows: the rows are neither JSON nor tags").wait_for()
    # Where nothing scrolls, the wheel zooms the canvas.
    page.locator(".lycoris-hint").hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function(f"app.canvas.ds.scale < {scale}")
    ui.look(300, 200)
    ui.set("LycorisAdapterRows", "rows", "")
    page.get_by_text("No rows yet.").wait_for()
    page.evaluate(
        """() => {
            // A click brings a node to the front, so its place in the list may be another.
            const find = type => app.graph.nodes.find(node => node.type === type)
            const [load, string] = ['LycorisAdapterRows', 'PrimitiveStringMultiline'].map(find)
            string.connect(0, load, load.inputs.findIndex(input => input.widget?.name === 'rows'))
        }"""
    )
    page.get_by_text("Another node gives the rows.").wait_for()
    screenshot(f"rows-{'vue' if vue_nodes else 'canvas'}-linked")
    assert ui.errors == []


@pytest.mark.every_front_end
def test_the_properties_panel_leaves_the_rows_alone(ui: Ui) -> None:
    """The panel gave the element its own width, and showed its name alone."""
    page, rows = ui.page, start(ui, False, "lora.safetensors")
    page.evaluate("app.canvas.selectNode(app.graph.nodes[0])")
    page.get_by_role("button", name="Toggle properties panel").click()
    page.get_by_text("Advanced inputs").first.wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate("app.graph.nodes[0].widgets.find(({name}) => name === 'list').width") is None
    # The oldest front end has no option for this, and its panel changes no width.
    assert ui.front_end == "1.41.21" or page.get_by_text("list", exact=True).count() == 0
    assert rows.line(0).locator(".lycoris-spark").is_visible()


def test_an_error_of_a_listener_leaves_an_accepted_run_accepted(ui: Ui) -> None:
    page = ui.page
    start(ui, False, "lora.safetensors")
    answer = page.evaluate(
        """async pack => {
            const { onPrompt } = await import(`/extensions/${pack}/host.js`)
            const before = app.api.queuePrompt
            let told = 0
            onPrompt({ sent() { throw Error("a listener's") } })
            onPrompt({ sent: () => told++ })
            const shown = LiteGraph.createNode("PreviewAny")
            app.graph.add(shown)
            app.graph.nodes[0].connect(1, shown, 0)
            const { prompt_id } = await app.api.queuePrompt(0, await app.graphToPrompt())
            return [Boolean(prompt_id), told, before === app.api.queuePrompt]
        }""",
        PACK,
    )
    assert answer == [True, 1, True]
    page.wait_for_timeout(100)
    assert len(ui.errors) == 1 and "a listener's" in ui.errors.pop()
