"""Reports, and nodes that are switched off, as a person with a mouse meets them, in both renderers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
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
    "files",
    """
    const base = make("CheckpointLoaderSimple", 20, 60, {ckpt_name: "base.safetensors"})
    const combine = make("LycorisCombineStacks", 460, 300)
    files.forEach((file, index) => {
        const load = make("LycorisLoadAdapter", 20, 240 + 280 * index, {file})
        join(load, 0, combine, `stack${index}`)
    })
    const weigh = make("LycorisWeightBlocks", 460, 520, {rules: ""})
    const apply = make("LycorisApplyStack", 860, 60)
    const show = make("PreviewAny", 860, 520)
    join(combine, 0, weigh, "stack")
    join(weigh, 0, apply, "stack")
    join(base, 0, apply, "model")
    join(base, 1, apply, "clip")
    join(apply, 2, show, "source")
""",
)
BOX = ".lycoris-report"
# In the order in which they were made: a click moves a node to the end of the graph's list.
SIZES = "[...app.graph.nodes].sort((a, b) => a.id - b.id).map(({size, pos}) => [...pos, ...size])"


def build(ui: Ui, vue: bool, *files: str) -> None:
    """A small graph on the canvas, saved and opened as a user's workflow would be."""
    page = ui.page
    ui.render_with_vue(vue)
    page.evaluate(BUILD, list(files))
    page.wait_for_timeout(500)
    # Each workflow of a user has its own id; a graph that was cleared may have none.
    ui.load({**ui.serialized(), "id": str(uuid4())})
    ui.look(60, 60)
    page.wait_for_timeout(800)


def box(ui: Ui) -> str:
    """What the box on the node says, including what is folded; "" where there is none."""
    texts: list[str] = ui.page.locator(f"{BOX} pre").all_text_contents()
    return "\n".join(texts)


def boxes(ui: Ui) -> dict[str, list[str]]:
    """The state and the text of each box, by the type of its node."""
    return ui.page.evaluate(
        """() => Object.fromEntries(app.graph.nodes.flatMap(({type, widgets}) => {
            const box = widgets?.find(({name}) => name === "report")?.element
            return box?.isConnected ? [[type, [box.dataset.state, box.innerText.trim()]]] : []
        }))"""
    )


def kept(node: dict[str, Any]) -> tuple[Any, ...]:
    """What no run changes in a saved node."""
    return node["id"], node["pos"], node["size"], str(node.get("widgets_values"))


def press_on(ui: Ui, kind: str, key: str, index: int = 0) -> None:
    """Click on the title of a node and press a key."""
    x, y = ui.page.evaluate(
        """([type, index]) => {
            const node = app.graph.nodes.filter(node => node.type === type).sort((a, b) => a.id - b.id)[index]
            const {scale, offset} = app.canvas.ds
            const place = app.canvas.canvas.getBoundingClientRect()
            return [(node.pos[0] + 90 + offset[0]) * scale + place.left,
                (node.pos[1] - 14 + offset[1]) * scale + place.top]
        }""",
        [kind, index],
    )
    ui.page.mouse.click(x, y)
    ui.page.keyboard.press(key)
    ui.page.wait_for_timeout(150)


def test_nothing_that_is_switched_off_breaks(ui: Ui, vue: bool) -> None:
    build(ui, vue, "lora.safetensors", "loha.safetensors", "lokr.safetensors")

    def applied() -> list[str]:
        end = ui.run()
        assert end["name"] == "execution_success", end
        ui.page.wait_for_timeout(600)
        return [line for line in box(ui).splitlines() if line.endswith(".safetensors")]

    assert applied() == ["lora.safetensors", "loha.safetensors", "lokr.safetensors"]
    for key in ("Control+b", "Control+m"):
        press_on(ui, "LycorisLoadAdapter", key, 1)
        assert applied() == ["lora.safetensors", "lokr.safetensors"]
        press_on(ui, "LycorisLoadAdapter", key, 1)
    ui.page.evaluate(
        """() => {
            const value = (node, name) => node.widgets?.find(widget => widget.name === name)
            const node = app.graph.nodes.find(node => value(node, "file")?.value === "lokr.safetensors")
            value(node, "on").value = false
        }"""
    )
    assert applied() == ["lora.safetensors", "loha.safetensors"]
    for index in (0, 1):
        press_on(ui, "LycorisLoadAdapter", "Control+b", index)
    assert applied() == [] and box(ui).strip() == "Nothing was changed: the stack is empty."
    press_on(ui, "LycorisWeightBlocks", "Control+m")
    assert applied() == [] and box(ui).startswith("Nothing was changed: no stack arrived.")
    press_on(ui, "LycorisWeightBlocks", "Control+m")
    press_on(ui, "LycorisLoadAdapter", "Control+b", 0)
    press_on(ui, "LycorisLoadAdapter", "Control+b", 1)
    # The front end passes on only the first input of a bypassed node, and the report shows that.
    press_on(ui, "LycorisCombineStacks", "Control+b")
    assert applied() == ["lora.safetensors"]
    assert ui.errors == []


@pytest.mark.every_front_end
def test_a_report_is_of_the_last_run_and_no_part_of_the_workflow(
    ui: Ui, vue: bool, screenshot: Callable[[str], None]
) -> None:
    page = ui.page
    build(ui, vue, "lora.safetensors", "loha.safetensors")
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    before = ui.serialized()
    page.mouse.click(700, 900)
    page.evaluate(f"{tracker}.checkState?.()")
    undo = page.evaluate(f"{tracker}.undoQueue.length")
    # Zoomed out so far that the canvas hides what is on nodes.
    lod = "LiteGraph.Canvas.MinFontSizeForLOD"
    page.evaluate(f"app.ui.settings.setSettingValueAsync('{lod}', 8)")
    page.evaluate("app.canvas.ds.scale = 0.3, app.canvas.setDirty(true, true)")
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(1200)
    page.evaluate("app.canvas.ds.scale = 1, app.canvas.setDirty(true, true)")
    page.wait_for_timeout(600)
    assert box(ui).startswith("All of it was applied: 380 of 380 layers of 2 files.")
    summary = page.locator(f"{BOX} summary").bounding_box()
    whole = page.locator(BOX).bounding_box()
    assert summary and whole and summary["y"] + summary["height"] <= whole["y"] + whole["height"]
    assert page.locator(BOX).get_attribute("data-state") == "all"
    screenshot(f"report-{'vue' if vue else 'canvas'}")
    # It is on the node, and not on the one below.
    place, below = page.locator(BOX).bounding_box(), page.evaluate(SIZES)[-1]
    assert place and place["y"] + place["height"] < below[1] + 60
    # It has the host's own size of text.
    assert page.evaluate(
        f"getComputedStyle(document.querySelector('{BOX}')).fontSize === "
        "`${getComputedStyle(document.documentElement).getPropertyValue('--comfy-textarea-font-size').trim()}`"
    )
    assert ui.serialized() == before
    page.mouse.click(700, 900)
    page.evaluate(f"{tracker}.checkState?.()")
    assert page.evaluate(f"{tracker}.undoQueue.length") == undo

    # Undo makes the nodes anew, and keeps the report, although the values are no longer those of the run.
    for weight in (5, 6):
        page.evaluate(
            """block => {
                app.canvas.emitBeforeChange()
                const strength = app.graph.nodes.find(({type}) => type === "LycorisWeightBlocks")
                strength.widgets.find(({name}) => name === "rules").value = `mid = ${block}`
                app.canvas.emitAfterChange()
            }""",
            weight,
        )
        page.wait_for_timeout(300)
    ui.command("Comfy.Undo")
    page.wait_for_function(
        """app.graph.nodes.find(({type}) => type === "LycorisWeightBlocks")
            .widgets.find(({name}) => name === "rules").value === "mid = 5" """
    )
    page.wait_for_timeout(1200)
    assert box(ui).startswith("All of it was applied: 380 of 380 layers of 2 files.")

    # All that was left out can be unfolded and scrolled by the wheel, which leaves the canvas alone.
    ui.set("LycorisWeightBlocks", "rules", "\n".join(f"nowhere{n} = 0" for n in range(40)))
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(700)
    assert page.locator(BOX).get_attribute("data-state") == "partly"
    first = "The layers were applied, but not all of the rules: 380 of 380 layers of 2 files; "
    assert page.locator(BOX).inner_text().splitlines() == [
        f"{first}40 patterns of the rules match nothing.",
        "details",
    ]
    height = page.locator(BOX).bounding_box()
    for summary, shown, hidden in (
        ("details", "nowhere7", "nowhere39"),
        ("everything that was left out", "nowhere39", "nowhere40"),
    ):
        page.locator(f"{BOX} summary", has_text=summary).click()
        page.wait_for_timeout(700)
        said = page.locator(BOX).inner_text()
        assert shown in said and hidden not in said
    place = page.locator(BOX).bounding_box()
    assert place and height and place["height"] > height["height"]
    view = "[app.canvas.ds.scale, ...app.canvas.ds.offset]"
    scrolled, seen = f"document.querySelector('{BOX}').scrollTop", page.evaluate(view)
    page.evaluate(f"{scrolled} = 0")
    page.mouse.move(place["x"] + 60, place["y"] + 20)
    page.mouse.wheel(0, 80)
    page.wait_for_timeout(400)
    assert page.evaluate(scrolled) > 0 and page.evaluate(view) == seen
    screenshot(f"report-partly-{'vue' if vue else 'canvas'}")

    # An error takes its place, without the path of a class, and a refused prompt says where the fault is.
    ui.set("LycorisWeightBlocks", "rules", "1,2,3,4,5,6")
    assert ui.run()["name"] == "execution_error"
    page.wait_for_timeout(300)
    assert page.locator(BOX).get_attribute("data-state") == "error"
    assert "a vector of 6 numbers does not fit the model" in box(ui)
    assert "applied" not in box(ui) and "lycoris_ops" not in box(ui)
    screenshot(f"report-error-{'vue' if vue else 'canvas'}")
    assert ui.errors == []
    ui.set("LycorisWeightBlocks", "rules", "mid = 1\n  te = much")
    page.evaluate("app.graph.nodes.find(({type}) => type === 'LycorisApplyStack').disconnectInput(0)")
    ui.press_run()
    page.locator(f"{BOX}[data-state=refused]").nth(1).wait_for()
    page.wait_for_timeout(1200)
    said = boxes(ui)
    start = "The run was refused: "
    assert said.pop("LycorisApplyStack") == ["refused", f"{start}Required input is missing: model"]
    state, text = said.pop("LycorisWeightBlocks")
    assert state == "refused" and text.startswith(start) and not said
    assert text.count("line 2, column 8 of the block rules is not understood") == 1
    screenshot(f"report-refused-{'vue' if vue else 'canvas'}")
    marked = page.evaluate("app.graph.nodes.filter(node => node.has_errors).map(node => node.type)")
    assert sorted(marked) == ["LycorisApplyStack", "LycorisWeightBlocks"]
    # The host's own button stays free.
    for button in page.get_by_role("button", name="Error", exact=True).filter(visible=True).all():
        place = button.bounding_box()
        assert place
        # It hangs below the node, and is in part behind it.
        button.click(trial=True, position={"x": place["width"] / 2, "y": place["height"] - 6})
    # The next run takes the reasons away.
    ui.set("LycorisWeightBlocks", "rules", "")
    page.evaluate(
        """() => {
            const of = type => app.graph.nodes.find(node => node.type === type)
            of("CheckpointLoaderSimple").connect(0, of("LycorisApplyStack"), 0)
        }"""
    )
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(1200)
    assert list(boxes(ui)) == ["LycorisApplyStack"]
    assert sorted(map(kept, ui.serialized()["nodes"])) == sorted(map(kept, before["nodes"]))


def test_a_reload_leaves_no_empty_box_and_a_run_that_stops_no_report(ui: Ui, vue: bool) -> None:
    page = ui.page
    build(ui, vue, "lora.safetensors")
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(700)
    saved: dict[str, Any] = json.loads(json.dumps(ui.serialized()))
    ui.load(saved)
    page.wait_for_timeout(700)
    assert not page.locator(BOX).count() or box(ui).startswith("All of it was applied")
    # No title is cut off.
    widths = page.evaluate(
        """app.graph.nodes.filter(node => node.type.startsWith("Lycoris")).map(node => {
            const context = document.createElement("canvas").getContext("2d")
            context.font = `${LiteGraph.NODE_TEXT_SIZE}px ${LiteGraph.NODE_FONT}`
            return node.size[0] - context.measureText(node.title).width
        })"""
    )
    assert all(left > 40 for left in widths)
    # Names of files are expanded as the host's own nodes do it.
    name = page.evaluate(
        """async () => {
            const node = LiteGraph.createNode("LycorisSaveAdapter")
            app.graph.add(node)
            const prefix = node.widgets.find(widget => widget.name === "filename_prefix")
            prefix.value = "%date:yyyy%/%LycorisApplyStack.mode%"
            const value = await prefix.serializeValue(node, 0)
            app.graph.remove(node)
            return value
        }"""
    )
    assert name == f"{page.evaluate('new Date().getFullYear()')}/merge"
    assert ui.errors == []


def test_an_interrupt_takes_the_place_of_a_report(ui: Ui, vue: bool) -> None:
    page = ui.page
    build(ui, vue, "lora.safetensors", "loha.safetensors")
    page.evaluate(
        """() => {
            const merge = LiteGraph.createNode("LycorisMergeAdapters")
            merge.pos = [460, 700]
            app.graph.add(merge)
            const of = type => app.graph.nodes.find(node => node.type === type)
            const place = (node, name) => node.inputs.findIndex(input => input.name === name)
            const apply = of("LycorisApplyStack")
            of("LycorisWeightBlocks").connect(0, merge, place(merge, "stack"))
            merge.connect(0, apply, place(apply, "stack"))
        }"""
    )
    page.wait_for_timeout(300)

    def said() -> dict[str, list[str]]:
        """What the boxes say once the run's end has been shown."""
        page.wait_for_timeout(1000)
        return boxes(ui)

    both = {"LycorisMergeAdapters": "all", "LycorisApplyStack": "all"}
    assert ui.run()["name"] == "execution_success"
    assert {kind: state for kind, (state, _) in said().items()} == both
    # Interrupt the merge while it works. The node after it does not run, and loses its earlier report.
    ui.set("LycorisMergeAdapters", "seed", 1)
    page.evaluate(
        "app.api.addEventListener('progress', () => "
        "app.extensionManager.command.execute('Comfy.Interrupt'), {once: true})"
    )
    end = ui.run()
    assert (end["name"], end["detail"]["node_type"]) == ("execution_interrupted", "LycorisMergeAdapters")
    assert said() == {"LycorisMergeAdapters": ["error", "Interrupted: the node did not finish."]}
    assert ui.run()["name"] == "execution_success"
    assert {kind: state for kind, (state, _) in said().items()} == both
    # Where the run fails after a node whose result is in the cache, that node keeps its report.
    page.evaluate(
        """() => {
            const weigh = LiteGraph.createNode("LycorisWeightBlocks")
            weigh.pos = [460, 1000]
            app.graph.add(weigh)
            weigh.widgets.find(({name}) => name === "rules").value = "1,2,3,4,5,6"
            const of = type => app.graph.nodes.find(node => node.type === type)
            const place = (node, name) => node.inputs.findIndex(input => input.name === name)
            of("LycorisMergeAdapters").connect(0, weigh, place(weigh, "stack"))
            weigh.connect(0, of("LycorisApplyStack"), place(of("LycorisApplyStack"), "stack"))
        }"""
    )
    merged = said()["LycorisMergeAdapters"]
    assert ui.run()["name"] == "execution_error"
    after = said()
    assert after["LycorisMergeAdapters"] == merged and after["LycorisApplyStack"][0] == "error"
    # Where the host cannot say what it has kept, no box goes on waiting.
    page.route("**/lycoris/reports*", lambda route: route.fulfill(status=500))
    assert ui.run()["name"] == "execution_error"
    states = {kind: state for kind, (state, _) in said().items()}
    assert states["LycorisApplyStack"] == "error" and "waiting" not in states.values()
    page.unroute("**/lycoris/reports*")


def test_an_earlier_report_is_found_without_asking_widgets_for_their_values(ui: Ui, vue: bool) -> None:
    """Some widgets take or upload a picture when the front end asks for their values."""
    page = ui.page
    build(ui, vue, "lora.safetensors")
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(700)
    said = boxes(ui)
    page.evaluate(
        """() => app.registerExtension({
            name: "tests.asked",
            nodeCreated: ({widgets}) => {
                for (const widget of widgets ?? []) widget.serializeValue = () => {
                    window.asked = true
                    return widget.value
                }
            },
        })"""
    )
    ui.load(ui.serialized())
    page.wait_for_timeout(700)
    assert boxes(ui) == said and not page.evaluate("window.asked")
    ui.prompt()
    assert page.evaluate("window.asked"), "the test would show nothing"


@pytest.mark.every_front_end(vue=True)
def test_a_report_comes_back_after_a_reload(ui: Ui, vue: bool, screenshot: Callable[[str], None]) -> None:
    """At once if nothing has changed since the run, and otherwise after a run that has nothing to do."""
    page = ui.page
    build(ui, vue, "lora.safetensors")
    assert ui.run()["name"] == "execution_success"
    page.wait_for_timeout(700)
    said = boxes(ui)
    assert list(said) == ["LycorisApplyStack"]
    ui.reload()
    page.locator(BOX).wait_for()
    page.wait_for_timeout(700)
    assert boxes(ui) == said
    screenshot(f"report-reloaded-{'vue' if vue else 'canvas'}")
    # It is not shown where it would be wrong.
    ui.set("LycorisLoadAdapter", "strength_model", 0.5)
    ui.load(ui.serialized())
    page.wait_for_timeout(700)
    assert not boxes(ui)
    ui.set("LycorisLoadAdapter", "strength_model", 1)
    page.evaluate("app.api.fetchApi('/history', {method: 'POST', body: JSON.stringify({clear: true})})")
    end = ui.run()
    assert end["name"] == "execution_success" and set(end["cached"]) == set(ui.prompt())
    page.wait_for_timeout(700)
    assert boxes(ui) == said
    assert ui.errors == []


MERGED = building(
    "file",
    """
    const base = make("CheckpointLoaderSimple", 20, 60, {ckpt_name: "base.safetensors"})
    const load = make("LycorisLoadAdapter", 20, 240, {file})
    const mask = make("LycorisMask", 460, 240)
    const apply = make("LycorisApplyStack", 860, 60)
    const merge = make("TomePatchModel", 860, 520, {ratio: 0.5})
    const text = make("CLIPTextEncode", 460, 600)
    const latent = make("EmptyLatentImage", 460, 800, {width: 64, height: 64, batch_size: 1})
    const sampler = make("KSampler", 1260, 60, {steps: 1})
    const picture = make("VAEDecode", 1260, 520)
    const shown = make("PreviewImage", 1260, 640)
    join(load, 0, mask, "stack")
    join(make("SolidMask", 20, 520), 0, mask, "mask")
    join(mask, 0, apply, "stack")
    join(base, 0, apply, "model")
    join(base, 1, text, "clip")
    join(apply, 0, merge, "model")
    join(merge, 0, sampler, "model")
    join(text, 0, sampler, "positive")
    join(text, 0, sampler, "negative")
    join(latent, 0, sampler, "latent_image")
    join(sampler, 0, picture, "samples")
    join(base, 2, picture, "vae")
    join(picture, 0, shown, "images")
""",
)


def test_what_a_sampler_finds_stands_in_the_report_of_the_node_before_it(ui: Ui, vue: bool) -> None:
    ui.render_with_vue(vue)
    ui.page.evaluate(MERGED, "lora.safetensors")
    ui.page.wait_for_timeout(500)
    end = ui.run(timeout=120)
    assert end["name"] == "execution_success", end
    state, text = boxes(ui)["LycorisApplyStack"]
    assert text.startswith("In the sampling the mask has no effect on "), (state, text)
    # A page that is opened anew asks for it.
    ui.load({**ui.serialized(), "id": str(uuid4())})
    ui.run(timeout=120)
    assert boxes(ui)["LycorisApplyStack"][1] == text
