"""Every template is opened and run in both renderers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from tests.harness.templates import SLOW, SMALL, TEMPLATES, TRAIN, ready

if TYPE_CHECKING:
    from tests.harness.page import Ui

pytestmark = pytest.mark.browser


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
