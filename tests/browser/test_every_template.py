"""Every template is opened and run in both renderers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.templates import PICTURES, SMALL, TEMPLATES, draw_pictures, ready

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_every_template_runs(ui: Ui, base: Path, vue_nodes: bool) -> None:
    draw_pictures(base / "input" / PICTURES)
    info = ui.server.object_info()
    ui.render_with_vue(vue_nodes)
    # Other values for the other renderer, or the host would have every result already.
    other = {"KSampler": {"seed": int(vue_nodes)}, "LycorisTrain": {"steps": 4 + vue_nodes}}
    for name in TEMPLATES:
        ui.load_template(ready(name, info, SMALL, other))
        ui.drawn(vue_nodes)
        end = ui.run(timeout=600)
        assert end["name"] == "execution_success", f"{name}: {end}"
        assert ui.errors == [], name
