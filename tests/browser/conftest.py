"""The real front end in Chromium, on a real server with the pack and the random models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory
from tests.harness.page import Ui, chromium, page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def base() -> Path:
    """A host's base directory with the models, and no trace of an earlier run; each process has its own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    folder = ROOT / ".cache" / facts().host / f"browser-tests-{worker}"
    for part in ("output", "user"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return install(base_directory(folder, ROOT))


# For a file and not for the session: playwright's event loop runs in this thread until its end, and
# another, such as the host's own, could not run in the tests that follow.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = facts()
    if found.chromium is None:
        pytest.skip(f"no Chromium could be had: {found.no_chromium}")
    with chromium(found.chromium) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(browser: Browser, base: Path) -> Iterator[Server]:
    """A server that starts after the browser, so that it is not started where there is no browser."""
    with Server(facts().comfyui, base) as running:
        yield running


@pytest.fixture
def ui(browser: Browser, server: Server, base: Path) -> Iterator[Ui]:
    """A page that knows nothing of the pages before it."""
    with page(browser, server, base) as opened:
        yield opened


@pytest.fixture
def screenshot(ui: Ui) -> Callable[[str], None]:
    """Writes what the page shows to `.cache/screenshots/<name>.png`."""

    def take(name: str) -> None:
        ui.page.screenshot(path=ROOT / ".cache" / "screenshots" / f"{name}.png")

    return take
