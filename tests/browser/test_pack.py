"""What a user does with the pack in the front end: finds nodes, reads help, opens and runs templates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.facts import NODES
from tests.harness.launch import Server
from tests.harness.page import Ui, building, page
from tests.harness.templates import BLEND, EXPORT, SMALL, TEMPLATES, TRAIN, chosen, ready, rows, template
from tests.harness.workflow import to_prompt

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

PACK = "lycoris-nodes"


@pytest.fixture(scope="module")
def whole(browser: Browser, server: Server, front_end: str) -> Iterator[Ui]:
    """One page for the tests of this file: to open another takes longer than most of them."""
    with page(browser, server, server.base, front_end) as opened:
        yield opened


@pytest.fixture
def ui(whole: Ui) -> Ui:
    """The page with an empty graph on the canvas."""
    whole.errors.clear()
    whole.render_with_vue(False)
    whole.page.evaluate("app.graph.clear()")
    return whole


def test_the_page_loads_without_an_error(whole: Ui, server: Server) -> None:
    info = server.object_info()
    ours = {name for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK}"}
    assert ours == set(NODES)
    assert whole.page.evaluate("app.extensions.some(({name}) => name === 'lycoris')")
    assert whole.errors == []


@pytest.mark.fronts
def test_a_node_is_found_by_name_and_by_alias(ui: Ui, server: Server) -> None:
    definitions = server.object_info()
    for number, node in enumerate(NODES):
        # By name for one node, by alias for the next: a search takes seconds.
        query = definitions[node]["search_aliases"][0] if number % 2 else definitions[node]["display_name"]
        ui.page.evaluate("app.graph.clear()")
        ui.command("Workspace.SearchBox.Toggle")
        search = ui.page.get_by_placeholder("Add a node...")
        search.fill(query)
        ui.page.get_by_test_id("result-item").filter(has_text=definitions[node]["display_name"]).first.click()
        search.wait_for(state="hidden")
        # A new node follows the pointer until a click puts it down.
        ui.page.wait_for_function("app.graph.nodes.length === 1")
        ui.click(600, 300)
        ui.page.wait_for_function("!app.graph.nodes[0].flags.ghost")
        assert ui.page.evaluate("app.graph.nodes[0].type") == node
    assert ui.errors == []


def test_the_help_pages_open(ui: Ui, server: Server) -> None:
    definitions = server.object_info()
    for node in NODES:
        shown = _open_help(ui, node)
        shown.get_by_role("heading", name=definitions[node]["display_name"], level=1).wait_for()
        assert shown.get_by_role("table").count() or node == "LycorisCombineStacks"
        # A row or a heading that is not recognised stays on the page as it is written.
        assert not re.search(r"^(#+ [A-Z]|\|)", shown.inner_text(), re.MULTILINE), node
        assert shown.evaluate(FITS), node
        ui.page.wait_for_function(SEEN)
    assert ui.errors == []


@pytest.fixture
def language(request: pytest.FixtureRequest, ui: Ui) -> Iterator[str]:
    """Shows the page in this language, and in English again after the test."""

    def speak(language: str) -> None:
        ui.page.evaluate(
            "language => app.ui.settings.setSettingValueAsync('Comfy.Locale', language)", language
        )
        ui.page.wait_for_timeout(500)
        ui.reload()

    speak(request.param)
    yield request.param
    speak("en")


@pytest.mark.fronts
@pytest.mark.parametrize("language", ["en", "zh"], indirect=True)
def test_help_pages_lead_to_each_other(ui: Ui, language: str, screenshot: Callable[[str], None]) -> None:
    shown = _open_help(ui, "LycorisSchedule")
    own, other = HEADINGS[language]
    shown.get_by_role("heading", name=own, level=1).wait_for()
    ui.page.wait_for_function(SEEN)
    screenshot(f"help-{language}")
    shown.get_by_role("link", name=other).click()
    shown.get_by_role("heading", name=other, level=1).wait_for()
    ui.page.wait_for_function(SEEN)
    shown.locator(".lycoris-button").click()
    shown.get_by_role("heading", name=own, level=1).wait_for()
    assert len(ui.page.context.pages) == 1
    assert ui.errors == []


HEADINGS = {
    "en": ("Schedule LyCORIS Strength", "Weight LyCORIS Blocks"),
    "zh": ("LyCORIS 强度曲线", "LyCORIS 分块权重"),
}
"""The titles of the help pages of a node and of another one that it links to."""
SEEN = """(images => images.length === 1 && images[0].naturalWidth > 100)(
    document.querySelectorAll('.node-help-content img'))"""
"""The picture of a help page has arrived."""
FITS = "page => [...page.querySelectorAll('table')].every(table => table.offsetWidth <= page.clientWidth)"
"""The panel cuts off no table of a help page."""


def _open_help(ui: Ui, node: str) -> Locator:
    """Make a graph of one node, open its help page, and return that page."""
    page = ui.page
    page.evaluate(building("type", "app.canvas.selectItems([make(type, 10, 10)])"), node)
    ui.look(700, 400)
    page.get_by_test_id("info-button").click()
    return page.locator(".node-help-content")


def test_the_prompt_of_a_workflow_is_the_front_ends(ui: Ui, server: Server) -> None:
    definitions = server.object_info()
    for name in TEMPLATES:
        graph = template(name)
        ui.load(graph)
        expected = ui.prompt()
        for node in expected.values():
            node.pop("_meta")
            # An older front end also sends what it has added to a node of the host's.
            known = set().union(*definitions[node["class_type"]]["input"].values())
            node["inputs"] = {key: one for key, one in node["inputs"].items() if key.split(".")[0] in known}
        assert to_prompt(graph, definitions) == expected, name


@pytest.mark.parametrize(
    "vue_nodes", [pytest.param(False, id="canvas", marks=pytest.mark.fronts), pytest.param(True, id="vue")]
)
def test_settings_are_folded(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    """Only the first settings are on a node: the others are in groups, or advanced."""
    page = ui.page
    ui.render_with_vue(vue_nodes)
    ui.load(template(TRAIN))
    ui.command("Comfy.Canvas.FitView")
    node = "app.graph.nodes.find(node => node.type === 'LycorisTrain')"
    shown = f"{node}.widgets.filter(widget => {node}.isWidgetVisible(widget)).map(widget => widget.name)"
    first = ["steps", "learning_rate", "algorithm", "rank", "filename_prefix"]
    groups = ["resume", "seed", "layers", "optimisation", "noise", "regularisation", "speed", "output"]
    groups.append("resume_from")
    assert page.evaluate(shown) == first
    if vue_nodes:
        button = page.locator(f"[data-node-id='{page.evaluate(f'{node}.id')}']")
        button.get_by_role("button", name="Show advanced inputs").dispatch_event("click")
    else:
        page.evaluate(f"{node}.showAdvanced = true")
        page.mouse.click(5, 300)
    assert page.evaluate(shown) == [*first, *groups]
    page.wait_for_function(f"{node}.inputs.some(input => input.name === 'low_noise_model')")
    names = page.evaluate(f"{node}.inputs.map(input => input.name)")
    assert len(names) == len({*names})
    choose = f"choice => {{ {node}.widgets.find(one => one.name === 'regularisation').value = choice }}"
    page.evaluate(choose, "own")
    inside = [name for name in page.evaluate(shown) if name not in (*first, *groups)]
    assert "regularisation.max_weight_norm" in inside
    assert all(name.startswith("regularisation.") for name in inside)
    (prompt,) = [one for one in ui.prompt().values() if one["class_type"] == "LycorisTrain"]
    assert prompt["inputs"]["regularisation.caption_dropout"] == 0.1
    if vue_nodes:
        page.get_by_text("max_weight_norm").first.wait_for()
    screenshot(f"groups-{'vue' if vue_nodes else 'canvas'}")
    page.evaluate(choose, "usual")
    assert page.evaluate(shown) == [*first, *groups]
    page.evaluate(building("()", "make('LycorisPlan', 10, 10)"))
    ui.command("Comfy.Canvas.FitView")
    node = "app.graph.nodes.find(node => node.type === 'LycorisPlan')"
    shown = f"{node}.widgets.filter(widget => {node}.isWidgetVisible(widget)).map(widget => widget.name)"
    assert "largest_rank" not in page.evaluate(shown)
    if vue_nodes:
        page.get_by_text("algorithms").first.wait_for()
        assert page.get_by_text("largest_rank").count() == 0
        # It may hang below the screen.
        unfold = page.get_by_role("button", name="Show advanced inputs")
        unfold.filter(visible=True).last.dispatch_event("click")
        page.get_by_text("largest_rank").first.wait_for()
    else:
        page.evaluate(f"{node}.toggleAdvanced()")
    assert "largest_rank" in page.evaluate(shown)
    _merge_shows_the_settings_of_its_method(ui, vue_nodes)
    screenshot(f"merge-{'vue' if vue_nodes else 'canvas'}")
    _schedule_draws_what_is_typed(ui)
    screenshot(f"schedule-{'vue' if vue_nodes else 'canvas'}")
    assert ui.errors == []


def _alone(ui: Ui, node: str) -> None:
    """A graph of one node, in full view."""
    ui.page.evaluate(
        """type => {
            // Not by `clear`: numbers would begin again, and the front end knows values by the node's number.
            for (const node of [...app.graph.nodes]) app.graph.remove(node)
            app.graph.add(LiteGraph.createNode(type))
        }""",
        node,
    )
    ui.command("Comfy.Canvas.FitView")


def _merge_shows_the_settings_of_its_method(ui: Ui, vue_nodes: bool) -> None:
    page = ui.page
    _alone(ui, "LycorisMergeAdapters")
    node = "app.graph.nodes[0]"
    own = f"""{node}.widgets.filter(widget => {node}.isWidgetVisible(widget)).map(widget => widget.name)
        .filter(name => name.startsWith("method."))"""
    for method, settings in (
        ("average", []),
        ("dare", ["density", "consensus", "scale"]),
        ("tsv", ["result"]),
    ):
        ui.set("LycorisMergeAdapters", "method", method)
        assert page.evaluate(own) == [f"method.{name}" for name in settings]
        if vue_nodes:
            for name in ("density", "consensus", "scale", "result"):
                state = "visible" if name in settings else "detached"
                page.get_by_text(name, exact=True).first.wait_for(state=state)
    (prompt,) = ui.prompt().values()
    assert prompt["inputs"]["method"] == "tsv" and prompt["inputs"]["method.result"] == "one adapter"
    assert prompt["inputs"]["size"] == "exact"
    assert "method.density" not in prompt["inputs"]


def _schedule_draws_what_is_typed(ui: Ui) -> None:
    page = ui.page
    _alone(ui, "LycorisSchedule")
    curves = page.locator(".lycoris-curve polyline")
    text = page.locator("textarea").filter(visible=True).first
    curves.first.wait_for(state="attached")
    assert curves.count() == 1
    text.fill("1@0, 0@0.5, -1@1\nmid = eas")
    text.press("End")
    page.locator(".lycoris-curve-error").wait_for()
    text.press_sequentially("e in")
    page.locator(".lycoris-curve").get_by_text("mid").wait_for()
    assert curves.count() == 2
    # All that is drawn is on the node.
    end = page.evaluate(
        """() => {
            const {scale, offset} = app.canvas.ds
            const [{pos, size}] = app.graph.nodes
            return (pos[1] + size[1] + offset[1]) * scale + app.canvas.canvas.getBoundingClientRect().top
        }"""
    )
    for part in (".lycoris-curve", ".lycoris-curve svg"):
        box = page.locator(part).bounding_box()
        assert box and box["y"] + box["height"] <= end + 1
    (prompt,) = ui.prompt().values()
    assert prompt["inputs"]["curve"] == "1@0, 0@0.5, -1@1\nmid = ease in"
    assert set(prompt["inputs"]) == {"curve", "clock"}


def test_a_template_is_found_and_run(ui: Ui, base: Path) -> None:
    """It runs, runs again without any node doing work, and runs with another strength.

    Only the nodes that depend on the strength then run again.
    """
    page, saved = ui.page, base / "output"
    _find_templates(page)
    page.get_by_test_id(f"template-workflow-{BLEND}").click()
    page.wait_for_function("app.graph.nodes.some(node => node.type === 'LycorisAdapterRows')")
    for node, values in [*chosen(BLEND).items(), *SMALL.items()]:
        for name, value in values.items() if node in ui.types() else ():
            ui.set(node, name, value)
    before = set(saved.rglob("*.safetensors"))

    # The test before may have left the checkpoint in the host's cache.
    left = [ui.prompt()[node]["class_type"] for node in _succeeded(ui.run())]
    assert set(left) <= {"CheckpointLoaderSimple"}
    assert len(list((saved / "lycoris").glob("blend_*.png"))) == 1
    assert set(saved.rglob("*.safetensors")) == before
    page.wait_for_function("app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.length")
    report = ui.report("LycorisApplyStack")
    for name in ("lora", "loha", "lokr"):
        assert re.search(
            rf"^{name}\.safetensors\n(  .*\n)*  applied (\d+) of \2 layers", report, re.MULTILINE
        )

    # The report must be in neither workflow nor prompt, or each run would differ from the last.
    assert "of 190 layers" in report
    assert "of 190 layers" not in json.dumps([ui.serialized(), ui.prompt()])
    everything = set(ui.prompt())
    assert set(_succeeded(ui.run())) == everything
    assert ui.report("LycorisApplyStack") == report

    ui.set("LycorisAdapterRows", "rows", rows(("lora.safetensors", 0.25), ("lokr.safetensors", 0.6)))
    again = everything - set(_succeeded(ui.run()))
    types = {ui.prompt()[node]["class_type"] for node in again}
    assert {"LycorisAdapterRows", "LycorisApplyStack", "KSampler", "SaveImage"} <= types
    assert "CheckpointLoaderSimple" not in types
    assert "strength 0.25" in ui.report("LycorisApplyStack")
    assert ui.errors == []


def test_a_saved_workflow_opens_as_it_was(ui: Ui, base: Path) -> None:
    """It sends the same prompt, and shows the same report after the next run.

    No node has changed its size.
    """
    page = ui.page
    ui.render_with_vue(True)
    ui.load(ready(EXPORT, ui.server.object_info()))
    ui.set("LycorisSaveCheckpoint", "filename_prefix", "checkpoints/saved")
    page.evaluate(
        """() => app.api.addEventListener('lycoris.meanwhile', () => {
            const node = app.graph.nodes.find(node => node.type === 'LycorisSaveCheckpoint')
            window.meanwhile = node.widgets.find(widget => widget.name === 'report').element.textContent
        })"""
    )
    _succeeded(ui.run())
    report = ui.report("LycorisSaveCheckpoint")
    # Before the file is written the node says how large it will be.
    found = re.search(r"tensors kept, (.* MB)\noutput/(.*)$", report)
    assert found
    said = page.evaluate("meanwhile").strip()
    assert said == f"Writing {found[1]} to output/{found[2]} ..."
    assert page.locator(".lycoris-report").filter(visible=True, has_text=report.splitlines()[0]).count()

    before, prompt = ui.serialized(), ui.prompt()
    size = {node["id"]: node["size"] for node in before["nodes"]}
    ui.load(before)
    assert ui.prompt() == prompt
    _succeeded(ui.run())
    assert ui.report("LycorisSaveCheckpoint") == report
    assert {node["id"]: node["size"] for node in ui.serialized()["nodes"]} == size
    # It takes hundreds of megabytes, and the run goes on.
    (base / "output" / found[2]).unlink()


def _find_templates(page: Page) -> None:
    """Open the templates of the pack, and find all of them under each word that users search for."""
    ours = sorted(f"template-workflow-{name}" for name in TEMPLATES)
    page.get_by_role("button", name="Templates").click()
    # Among those of the pack alone, because all of the host's take long to draw.
    page.get_by_text(PACK, exact=True).click()
    for word, found in (("zzzz", []), ("lora", ours), ("zzzz", []), ("lycoris", ours)):
        page.get_by_placeholder("Search").last.fill(word)
        page.wait_for_function(
            """found => {
                const cards = [...document.querySelectorAll("[data-testid^=template-workflow-]")]
                return String(cards.map(card => card.dataset.testid).sort()) === String(found)
            }""",
            arg=found,
        )


def _succeeded(end: dict[str, Any]) -> list[str]:
    """The ids of the nodes that a run did not execute again. The run must have succeeded."""
    assert end["name"] == "execution_success", end
    return end["cached"]
