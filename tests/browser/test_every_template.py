"""Every template is opened, looked at and run in both renderers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from tests.harness.templates import EXTRACT, SLOW, SMALL, TEMPLATES, TRAIN, ready, template

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser

READABLE = 8 / 14
"""The front end leaves out the words of nodes, which are 14 pixels high at zoom 1, where they are below 8."""


@pytest.mark.newest_front_end(vue_nodes=True)
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_the_templates_open_in_order(ui: Ui, vue_nodes: bool, screenshot: Callable[[str], None]) -> None:
    """On a small screen all of a template is seen at first, in words that can be read.

    No node is over another.
    """
    ui.render_with_vue(vue_nodes)
    ui.page.set_viewport_size({"width": 1280, "height": 720})
    for name in TEMPLATES:
        ui.load_template(template(name))
        ui.drawn(vue_nodes)
        assert ui.page.evaluate("app.canvas.ds.scale") > READABLE, name
        assert ui.overlaps(vue_nodes) == [], name
        screenshot(f"{name}-{'vue' if vue_nodes else 'canvas'}")
        # What the user has to choose is said of nodes that load a model, and of no others.
        wrong = "app.graph.nodes.filter(node => node.has_errors && !node.properties.models)"
        assert ui.page.evaluate(f"{wrong}.map(node => node.type)") == [], name
        # Its first part needs no model, and a warning would hide the errors of that part.
        if name == EXTRACT:
            assert not ui.page.evaluate("app.graph.nodes.some(node => node.has_errors)")
    assert ui.errors == []


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([name for name in TEMPLATES if name not in SLOW], id="all"),
        pytest.param(SLOW, id="slow", marks=pytest.mark.fronts),
    ],
)
def test_every_template_runs(ui: Ui, names: Sequence[str]) -> None:
    info = ui.server.object_info()
    for name in names:
        # One after the other, so that the second time the host has all but the picture already.
        for vue_nodes in (False, True):
            ui.render_with_vue(vue_nodes)
            ui.load_template(ready(name, info, SMALL, {"KSampler": {"seed": int(vue_nodes)}}))
            ui.drawn(vue_nodes)
            end = ui.run(timeout=600)
            assert end["name"] == "execution_success", f"{name}: {end}"
            assert ui.errors == [], name
            if name == TRAIN and not vue_nodes:
                # The host puts pictures below the report, after it got its room.
                report = ui.page.locator(".lycoris-report").filter(has_text="sides in steps of")
                assert report.evaluate("report => report.scrollHeight <= report.clientHeight")
