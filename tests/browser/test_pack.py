"""What a user does with the pack in the front end: finds nodes, reads help, opens and runs the example."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.facts import NODES, ROOT
from tests.harness.launch import Server
from tests.harness.workflow import to_prompt

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from .conftest import Ui

pytestmark = pytest.mark.browser

PACK = "lycoris-nodes"


def workflow(name: str = "blend_and_export") -> dict[str, Any]:
    """A template, as the front end saves it."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_page_loads_without_an_error(ui: Ui, server: Server) -> None:
    info = server.object_info()
    ours = {name for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK}"}
    assert ours == set(NODES)
    assert ui.page.evaluate("app.extensions.some(({name}) => name === 'lycoris.report')")
    assert ui.errors == []


@pytest.mark.parametrize("node", NODES)
def test_a_node_is_found_by_name_and_by_alias(ui: Ui, server: Server, node: str) -> None:
    definition = server.object_info()[node]
    for query in (definition["display_name"], definition["search_aliases"][0]):
        ui.page.evaluate("app.graph.clear()")
        ui.command("Workspace.SearchBox.Toggle")
        search = ui.page.get_by_placeholder("Add a node...")
        search.fill(query)
        ui.page.get_by_test_id("result-item").filter(has_text=definition["display_name"]).first.click()
        search.wait_for(state="hidden")
        # A new node follows the pointer until a click puts it down.
        ui.page.wait_for_function("app.graph.nodes.length === 1")
        ui.click(600, 300)
        ui.page.wait_for_function("!app.graph.nodes[0].flags.ghost")
        assert ui.page.evaluate("app.graph.nodes[0].type") == node
    assert ui.errors == []


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_has_a_tooltip(server: Server, node: str) -> None:
    definition = server.object_info()[node]
    for group in definition["input"].values():
        for name, (kind, *options) in group.items():
            if name not in definition["input"].get("hidden", {}):
                assert options[0].get("tooltip"), f"{node}.{name} ({kind})"
    assert len(definition["output_tooltips"]) == len(definition["output"])
    assert all(definition["output_tooltips"])


@pytest.mark.parametrize("node", NODES)
def test_the_help_page_opens(ui: Ui, server: Server, node: str) -> None:
    page = ui.page
    page.evaluate(
        """type => {
            app.graph.clear()
            const node = LiteGraph.createNode(type)
            app.graph.add(node)
            Object.assign(app.canvas.ds, {scale: 1, offset: [700, 400]})
        }""",
        node,
    )
    ui.click(800, 385)
    page.get_by_test_id("info-button").click()
    shown = page.locator(".node-help-content")
    title = server.object_info()[node]["display_name"]
    shown.get_by_role("heading", name=title, level=1).wait_for()
    assert shown.get_by_role("table").count() or node == "LycorisCombineStacks"
    # A row or a heading that is not recognised stays on the page as it is written.
    assert not re.search(r"^(#+ [A-Z]|\|)", shown.inner_text(), re.MULTILINE)
    assert ui.errors == []


@pytest.mark.parametrize("name", ["blend_and_export", "train_a_style"])
def test_the_prompt_of_a_workflow_is_the_front_ends(ui: Ui, server: Server, name: str) -> None:
    graph = workflow(name)
    ui.load(graph)
    expected = ui.prompt()
    for node in expected.values():
        node.pop("_meta")
    assert to_prompt(graph, server.object_info()) == expected


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_advanced_inputs_are_folded(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    """Only the first settings of a training are on the node, until it is unfolded."""
    page = ui.page
    page.evaluate("on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", vue_nodes)
    ui.load(workflow("train_a_style"))
    ui.command("Comfy.Canvas.FitView")
    node = "app.graph.nodes.find(node => node.type === 'LycorisTrain')"
    shown = f"{node}.widgets.filter(widget => {node}.isWidgetVisible(widget)).map(widget => widget.name)"
    first = ["steps", "learning_rate", "algorithm", "rank", "filename_prefix", "resume", "seed"]
    assert page.evaluate(shown) == first
    if vue_nodes:
        button = page.get_by_test_id("advanced-inputs-button")
        page.get_by_text("filename_prefix").first.wait_for()
        assert page.get_by_text("max_weight_norm").count() == 0
        button.filter(visible=True).last.click()
        page.get_by_text("max_weight_norm").first.wait_for()
    else:
        page.evaluate(f"{node}.toggleAdvanced()")
    assert "max_weight_norm" in page.evaluate(shown)
    screenshot(f"advanced-{'vue' if vue_nodes else 'canvas'}")
    assert ui.errors == []


def test_the_template_is_opened_and_run(ui: Ui, base: Path, screenshot: Callable[[str], None]) -> None:
    """The example runs, runs again without any node doing work, and runs with another strength.

    Only the nodes that depend on the strength then run again.
    """
    page = ui.page
    _open_template(page)
    page.wait_for_function("app.graph.nodes.length === 15")

    assert _succeeded(ui.run()) == []
    saved = base / "output"
    assert [file.name for file in (saved / "checkpoints").iterdir()] == ["blend_00001_.safetensors"]
    assert len(list(saved.glob("blend_*.png"))) == 1
    page.wait_for_function("app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.length")
    report = ui.report("LycorisApplyStack")
    for name in ("lora", "loha", "lokr"):
        assert re.search(
            rf"^{name}\.safetensors\n(  .*\n)*  applied (\d+) of \2 layers", report, re.MULTILINE
        )
    assert "blend_00001_.safetensors: " in ui.report("LycorisSaveCheckpoint")
    ui.command("Comfy.Canvas.FitView")
    # The view glides into place, and the note that the run has ended goes away.
    page.wait_for_timeout(6000)
    screenshot("blend_and_export")

    # The report is no part of the workflow or of the prompt, or each run would differ from the last.
    assert "of 191 layers" not in json.dumps([ui.serialized(), ui.prompt()])
    everything = {node for node, content in ui.prompt().items() if content["class_type"] != "Note"}
    assert set(_succeeded(ui.run())) == everything
    assert ui.report("LycorisApplyStack") == report

    ui.set("LycorisLoadAdapter", "strength_model", 0.25)
    again = everything - set(_succeeded(ui.run()))
    types = {ui.prompt()[node]["class_type"] for node in again}
    assert {"LycorisApplyStack", "LycorisSaveCheckpoint", "KSampler", "SaveImage"} <= types
    assert "CheckpointLoaderSimple" not in types
    assert "strength 0.25, text encoder 0.8" in ui.report("LycorisApplyStack")
    assert (saved / "checkpoints" / "blend_00002_.safetensors").is_file()
    assert ui.errors == []


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_the_report_survives_a_reload(ui: Ui, vue_nodes: bool) -> None:
    """A reloaded workflow sends the same prompt, and shows the same report after the next run.

    No node has changed its size.
    """
    page = ui.page
    page.evaluate("on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", vue_nodes)
    ui.load(_without(workflow(), "SaveImage"))
    _succeeded(ui.run())
    report = ui.report("LycorisSaveCheckpoint")
    text = page.locator("textarea").filter(visible=True)
    assert report in [text.nth(index).input_value() for index in range(text.count())]

    before, prompt = ui.serialized(), ui.prompt()
    size = {node["id"]: node["size"] for node in before["nodes"]}
    ui.load(before)
    assert ui.prompt() == prompt
    _succeeded(ui.run())
    assert ui.report("LycorisSaveCheckpoint") == report
    assert {node["id"]: node["size"] for node in ui.serialized()["nodes"]} == size


def test_a_wrong_rule_shows_its_error_on_the_node(ui: Ui) -> None:
    page = ui.page
    ui.load(workflow())
    ui.set("LycorisWeightBlocks", "rules", "mid = 0.5\nte = much")
    ui.press_run()
    page.get_by_test_id("error-overlay-see-errors").click()
    page.get_by_role("button", name="Info for Weight LyCORIS Blocks - rules").click()
    page.get_by_text("line 2 of the block rules is not understood (found te = much;").wait_for()
    marked = page.evaluate("app.graph.nodes.filter(node => node.has_errors).map(node => node.type)")
    assert marked == ["LycorisWeightBlocks"]


def _open_template(page: Page) -> None:
    page.get_by_role("button", name="Templates").click()
    page.get_by_text(PACK, exact=True).click()
    page.get_by_test_id("template-workflow-blend_and_export").click()


def _succeeded(end: dict[str, Any]) -> list[str]:
    """The ids of the nodes that a run did not execute again. The run must have succeeded."""
    assert end["name"] == "execution_success", end
    return end["cached"]


def _without(graph: dict[str, Any], *types: str) -> dict[str, Any]:
    """The workflow with the nodes of some types muted."""
    for node in graph["nodes"]:
        if node["type"] in types:
            # The front end's number for a muted node.
            node["mode"] = 2
    return graph
