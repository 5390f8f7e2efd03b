"""Block weights that are painted in the row, and the model whose blocks they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

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
        const {file, family, blocks, suits} = await modelOf(rows)
        const said = [['SD 1.5'], ['SDXL'], []].map(families => suits({families, family: families[0] ?? ''}))
        return {file, family, blocks: blocks.length, said}
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
        "blocks": 25,
        "said": [None, "made for SDXL; this model is SD 1.5", None],
    }
    unknown = {"file": "", "family": "", "blocks": 0, "said": [None, None, None]}
    assert model(WORKFLOW) == unknown
    assert model("link(loader, 0, apply, 'model'); link(rows, 0, apply, 'stack')") == known
    assert model("apply.mode = 2") == unknown
    around = """
        apply.mode = 0
        const [combine, schedule, reroute, shift, patch] = ['LycorisCombineStacks', 'LycorisSchedule', 'Reroute',
            'ModelSamplingDiscrete', 'LoraLoaderModelOnly'].map(type => make(type))
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
        window.stop = followModel(rows, ({{file}}) => followed.push(file))
    }}"""
    page.evaluate(follow)
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
    page.evaluate("loader => app.extensionManager.workflow.activeWorkflow?.changeTracker?.checkState?.()")
    assert page.evaluate("followed") == [CHECKPOINT]
    assert not ui.errors
