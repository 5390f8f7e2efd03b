"""Block weights that are painted in the row, and the model whose blocks they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.harness.launch import PACK

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser
MODULE = f"/extensions/{PACK}/rows/model.js"
CHECKPOINT = "checkpoints/base.safetensors"
FILE = "lora.safetensors"
WORKFLOW = """
    app.graph.clear()
    window.make = (type, values = {}) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value
        return node
    }
    window.link = (from, output, to, input) =>
        from.connect(output, to, to.inputs.findIndex(({name}) => name.startsWith(input)))
    window.model = async () => {
        const {modelOf} = await import(MODULE)
        const {file, family, suits} = await modelOf(rows)
        const said = [['SD 1.5'], ['SDXL'], []].map(families => suits({families, family: families[0] ?? ''}))
        return {file, family, said}
    }
    window.loader = make('CheckpointLoaderSimple', {ckpt_name: 'base.safetensors'})
    window.rows = make('LycorisAdapterRows')
    window.apply = make('LycorisApplyStack')
""".replace("MODULE", json.dumps(MODULE))


@pytest.mark.every_front_end
def test_the_model_of_a_stack_is_found_through_the_workflow(ui: Ui) -> None:
    """Through our nodes, model patches, a reroute, a bypassed node, a subgraph and a value of a primitive."""
    page = ui.page

    def model(change: str) -> dict[str, Any]:
        return page.evaluate(f"async () => {{ {change}; return model() }}")

    known = {
        "file": CHECKPOINT,
        "family": "SD 1.5",
        "said": [None, "made for SDXL; this model is SD 1.5", None],
    }
    unknown = {"file": "", "family": "", "said": [None, None, None]}
    assert model(WORKFLOW) == unknown
    assert model("link(loader, 0, apply, 'model'); link(rows, 0, apply, 'stack')") == known
    assert model("apply.mode = 2") == unknown
    around = """
        apply.mode = 0
        const types = ['LycorisCombineStacks', 'LycorisSchedule', 'Reroute', 'ModelSamplingDiscrete']
        const [combine, schedule, reroute, shift] = types.map(type => make(type))
        const patch = make('LoraLoaderModelOnly')
        link(rows, 0, combine, 'stacks.'); link(combine, 0, schedule, 'stack')
        link(schedule, 0, reroute, ''); link(reroute, 0, apply, 'stack')
        link(loader, 0, shift, 'model'); link(shift, 0, patch, 'model'); link(patch, 0, apply, 'model')
        schedule.mode = patch.mode = 4
    """
    assert model(around) == known
    assert page.evaluate("app.graph.nodes.length") == 8
    follow = f"""async () => {{
        const {{followModel}} = await import({json.dumps(MODULE)})
        window.followed = []
        followModel(rows, ({{file}}) => followed.push(file))
    }}"""
    page.evaluate(follow)
    # Of what a script has changed the front end speaks when it looks next.
    look = "() => void app.extensionManager.workflow.activeWorkflow?.changeTracker?.checkState?.()"
    page.evaluate(look)
    page.wait_for_function("followed.length === 1")
    inside = """
        app.canvas.selectItems(app.graph.nodes.filter(node => ['LycorisSchedule', 'CheckpointLoaderSimple',
            'ModelSamplingDiscrete'].includes(node.type)))
        const {node, subgraph} = app.graph.convertToSubgraph(app.canvas.selectedItems)
        Object.assign(window, {holder: node, held: subgraph})
    """
    assert model(inside) == known
    assert page.evaluate("app.graph.nodes.length") == 6
    # The rows may be within, and their model outside.
    within = """
        // All of a chain: older front ends lose a link to an input that grows when they cut it.
        const combine = app.graph.nodes.find(({type}) => type === 'LycorisCombineStacks')
        app.canvas.selectItems([rows, combine, holder])
        const {subgraph} = app.graph.convertToSubgraph(app.canvas.selectedItems)
        // The nodes are made anew there.
        window.rows = subgraph.nodes.find(({type}) => type === 'LycorisAdapterRows')
    """
    assert model(within) == known
    primitive = """
        const loader = held.nodes.find(({type}) => type === 'CheckpointLoaderSimple')
        const source = LiteGraph.createNode('PrimitiveNode')
        held.add(source)
        source.connect(0, loader, loader.inputs.findIndex(({name}) => name === 'ckpt_name'))
        loader.widgets[0].value = 'none.safetensors'
    """
    assert model(primitive) == known
    page.evaluate(look)
    assert page.evaluate("followed") == [CHECKPOINT]
    # The front end itself looks for the link of an input that grows, when its node is in no graph any more.
    assert not [error for error in ui.errors if "LGraph reference" not in error]


ROWS = [
    {"file": FILE},
    {"file": "lokr.safetensors", "rules": "in.1-3 = 0.5\nmid = 0"},
    {"file": "loha.safetensors", "rules": "this is no rule"},
]
SHARED = "link(loader, 0, apply, 'model'); link(loader, 1, apply, 'clip'); link(rows, 0, apply, 'stack')"


class Painter:
    """The panel of a row, and what the node says."""

    def __init__(self, ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
        self.page = ui.page
        self.renderer = "vue" if vue_nodes else "canvas"
        self.screenshot = screenshot
        ui.render_with_vue(vue_nodes)
        self.page.evaluate(f"() => {{ {WORKFLOW}; {SHARED} }}")
        self.page.evaluate(
            """text => {
                [rows.pos, loader.pos, apply.pos] = [[0, 0], [0, 300], [500, 300]]
                rows.widgets.find(({name}) => name === 'rows').value = text
            }""",
            json.dumps({"rows": ROWS}),
        )
        ui.look(300, 150)
        self.area = self.page.locator(".lycoris-blocks textarea")
        self.problem = self.page.locator(".lycoris-blocks .lycoris-problem")

    def see(self, state: str) -> None:
        self.screenshot(f"blocks_{state}_{self.renderer}")

    def open(self, row: int = 0) -> None:
        self.page.locator(".lycoris-spark").nth(row).click()
        self.page.locator(".lycoris-block").first.wait_for()

    def close(self) -> None:
        self.page.mouse.click(1500, 1000)
        expect(self.page.locator(".lycoris-blocks")).to_have_count(0)

    def rules(self, row: int = 0) -> str | None:
        value = self.page.evaluate("rows.widgets.find(({name}) => name === 'rows').value")
        return json.loads(value)["rows"][row].get("rules")

    def place(self, bar: str, weight: float) -> tuple[float, float]:
        """Where a weight is on a bar, from 0 to 1.5."""
        box = self.page.locator(f"[data-bar='{bar}'] .lycoris-block-track").bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] * (1 - weight / 1.5)

    def drag(self, *stops: tuple[str, float], button: Any = "left") -> None:
        mouse = self.page.mouse
        mouse.move(*self.place(*stops[0]))
        mouse.down(button=button)
        for stop in stops[1:]:
            mouse.move(*self.place(*stop), steps=3)
        mouse.up(button=button)

    def wait(self, text: str) -> None:
        expect(self.area).to_have_value(text)

    def shows(self, **weights: str) -> None:
        for bar, weight in weights.items():
            name = bar.replace("_", ".")
            expect(self.page.locator(f"[data-bar='{name}']")).to_have_attribute("data-weight", weight)


@pytest.mark.every_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_block_weights_are_painted(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    """Bars and text say the same at any time, and nothing that was typed is lost."""
    painter = Painter(ui, vue_nodes, screenshot)
    page, area = ui.page, painter.area
    spark = page.locator(".lycoris-spark")
    # The rows show in small what their rules do, and which are not understood.
    expect(spark.nth(0)).to_have_class(re.compile("spark-none"))
    expect(spark.nth(2)).to_have_class(re.compile("wrong"))
    expect(spark.nth(2)).to_have_attribute("title", re.compile("this is no rule\n\nline 1, column 1"))
    shape = "document.querySelectorAll('.lycoris-spark i')[1].style.clipPath.split(',').length"
    page.wait_for_function(f"{shape} === 44")
    painter.see("rows")

    done = page.get_by_role("button", name="Done")
    spark.nth(0).click()
    before = done.bounding_box()
    page.get_by_text("Blocks of base.safetensors").wait_for()
    rows, panel = (page.locator(place).bounding_box() for place in (".lycoris-rows", ".lycoris-blocks"))
    assert rows and panel and panel["x"] >= rows["x"] + rows["width"]
    # It measures what the file changes where, and colours the bars by it.
    page.get_by_label("Presets").locator("option", has_text="OUTALL").first.wait_for(state="attached")
    expect(page.locator(".lycoris-block-legend")).not_to_contain_text("measured")
    # What comes meanwhile moves nothing away from the pointer.
    assert before and done.bounding_box() == before
    page.wait_for_function(
        "['in.3', 'in.0'].map(bar => parseFloat(document.querySelector(`[data-bar='${bar}']`)"
        ".style.getPropertyValue('--share'))).every((share, at) => at ? share < 10 : share > 50)"
    )
    painter.see("open")
    painter.drag(("in.1", 0.5))
    painter.wait("in.1 = 0.5")
    painter.drag(("in.2", 0.25), ("out.1", 0.25))
    painter.wait("in.1 = 0.5\nin.2-3 mid out.0-1 = 0.25")
    # A finer movement counts from where it is.
    page.keyboard.down("Shift")
    painter.drag(("in.1", 0.5), ("in.1", 0.75))
    page.keyboard.up("Shift")
    painter.wait("in.1 = 0.55\nin.2-3 mid out.0-1 = 0.25")
    painter.drag(("mid", 0.4), button="right")
    painter.wait("in.1 = 0.55\nin.2-3 out.0-1 = 0.25\nmid = 0")
    page.locator("[data-bar='in.3']").dblclick()
    painter.wait("in.1 = 0.55\nin.2 out.0-1 = 0.25\nmid = 0")
    painter.drag(("clip_l.0", 0.75), ("clip_l.11", 0.75))
    painter.drag(("attn", 0.5))
    text = "in.1 = 0.55\nin.2 out.0-1 = 0.25\nmid = 0\nclip_l.0-11 = 0.75\nattn = *0.5"
    painter.wait(text)
    painter.see("painted")
    # Keys do all of it.
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowUp"):
        page.keyboard.press(key)
    painter.wait(f"{text}\nmlp = *0.91")
    page.keyboard.press("End")
    painter.wait(text)
    page.locator("[data-bar='in.0'] input").focus()
    page.keyboard.press("Home")
    painter.wait("in.0 mid = 0\nin.1 = 0.55\nin.2 out.0-1 = 0.25\nclip_l.0-11 = 0.75\nattn = *0.5")
    page.keyboard.press("Control+z")
    painter.wait(text)
    painter.close()
    assert painter.rules() == text

    # The bars follow the text, which is checked while it is typed.
    painter.open()
    painter.wait(text)
    painter.shows(in_1="0.55", mid="0", attn="0.5", in_0="1")
    area.fill("out = 0.2\n/attn2/ = 0.4")
    painter.shows(out_1="0.247", in_0="1")
    expect(page.locator("[data-bar='out.1']")).to_have_class(re.compile("mixed"))
    expect(page.locator(".lycoris-blocks-text")).to_contain_text("Some lines weigh single layers")
    painter.see("mixed")
    painter.drag(("mid", 0.5))
    painter.wait("out = 0.2\n/attn2/ = 0.4\nmid = 0.5")
    painter.shows(mid="0.5")
    page.get_by_label("Presets").select_option("OUTALL")
    painter.wait("OUTALL")
    painter.shows(mid="0", out_3="1")
    area.fill("in.1 = 0.5\nin.2")
    expect(painter.problem).to_contain_text("line 2")
    painter.see("wrong")
    # A draft stays in the row, which says that it is not understood.
    painter.close()
    assert painter.rules() == "in.1 = 0.5\nin.2"
    expect(spark.nth(0)).to_have_class(re.compile("wrong"))
    painter.open()
    painter.wait("in.1 = 0.5\nin.2")
    area.fill("mid = 0.5")
    # Escape leaves the row as it was.
    page.keyboard.press("Escape")
    expect(page.locator(".lycoris-blocks")).to_have_count(0)
    assert painter.rules() == "in.1 = 0.5\nin.2"
    painter.open()
    page.get_by_role("button", name="All 1").click()
    page.get_by_role("button", name="Done").click()
    expect(page.locator(".lycoris-blocks")).to_have_count(0)
    assert painter.rules() is None
    # From the menu, with a finger, and without a model.
    page.evaluate("app.graph.remove(loader)")
    page.locator(".lycoris-row .lycoris-file").nth(1).click(button="right")
    page.locator(".lycoris-menu").get_by_role("button", name="Block weights…").click()
    page.get_by_text("No model is connected: blocks of base.safetensors").wait_for()
    x, y = painter.place("in.0", 0.5)
    page.evaluate(
        """([x, y]) => {
            const bar = document.elementFromPoint(x, y)
            const press = (type) => bar.dispatchEvent(new PointerEvent(type, {clientX: x, clientY: y,
                pointerId: 1, pointerType: 'touch', bubbles: true, cancelable: true}))
            HTMLElement.prototype.setPointerCapture = () => {}
            press('pointerdown'); press('pointermove'); press('pointerup')
        }""",
        [x, y],
    )
    painter.wait("in.0-3 = 0.5\nmid = 0")
    painter.see("touch")
    page.keyboard.press("Escape")
    assert painter.rules(1) == "in.1-3 = 0.5\nmid = 0"
    assert not ui.errors
