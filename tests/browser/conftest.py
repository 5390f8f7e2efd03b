"""The real front end in Chromium, on a real server with the pack and with models of random weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.assets import install, parts
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory
from tests.harness.page import OWN, Ui, chromium, page
from tests.harness.templates import draw_pictures

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGES = ROOT / ".cache" / "front-ends"
"""The front ends that the set-up has fetched, each in the folder of its version."""
FRONT_ENDS = (OWN, *sorted({folder.name for folder in PAGES.glob("[0-9]*")} - {OWN}))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave front ends other than the host's to `make test-fronts`, with two exceptions.

    A test marked `every_front_end` also runs on the newest front end. One marked `newest_front_end` runs only
    there. With `(name=value)` a mark counts only for cases with this value.
    """
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}

        def marked(name: str, item: pytest.Item = item, values: dict[str, Any] = values) -> bool:
            marker = item.get_closest_marker(name)
            return marker is not None and marker.kwargs.items() <= values.items()

        front_end = values.get("front_end", OWN)
        newest = front_end == FRONT_ENDS[-1]
        own = front_end == OWN and not marked("newest_front_end")
        if not (own or (newest and (marked("every_front_end") or marked("newest_front_end")))):
            item.add_marker("fronts")


# A browser for each file, not for the session: while it is open, playwright's event loop runs in this thread,
# and no other loop could run in the tests that follow, such as the host's own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = facts()
    if found.chromium is None:
        pytest.skip(f"no Chromium is available: {found.no_chromium}")
    with chromium(found.chromium) as opened:
        yield opened


@pytest.fixture(scope="module", params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[str], Server]]:
    """Gives the server of a front end, and starts it when it is first wanted.

    Each server has a base directory with the models and the pictures of templates, without outputs or user
    data of an earlier run. Test processes share no server.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    home = ROOT / ".cache" / facts().host / f"browser-tests-{worker}"
    with ExitStack() as running:

        @cache
        def started(front_end: str) -> Server:
            folder = home / front_end
            for part in ("output", "user"):
                shutil.rmtree(folder / part, ignore_errors=True)
            base = install(base_directory(folder, ROOT), parts())
            draw_pictures(base / "input")
            other = () if front_end == OWN else ("--front-end-root", str(PAGES / front_end))
            return running.enter_context(Server(facts().comfyui, base, *other))

        yield started


@pytest.fixture(scope="module")
def server(browser: Browser, serve: Callable[[str], Server], front_end: str) -> Server:
    """The server. It asks for the browser first, so that it does not start where there is none."""
    return serve(front_end)


@pytest.fixture
def base(server: Server) -> Path:
    return server.base


@pytest.fixture
def loras(base: Path) -> Iterator[Path]:
    """The host's folder of LoRAs. What a test adds to it is removed."""
    folder = base / "models" / "loras"
    before = {*folder.iterdir()}
    yield folder
    for path in {*folder.iterdir()} - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def ui(browser: Browser, server: Server, base: Path, front_end: str) -> Iterator[Ui]:
    """A page that knows nothing of the pages before it."""
    with page(browser, server, base, front_end) as opened:
        yield opened


@pytest.fixture
def screenshot(ui: Ui) -> Callable[[str], None]:
    """Writes what the page shows to `.cache/screenshots/<front end>/<name>.png`."""

    def take(name: str) -> None:
        ui.page.screenshot(path=ROOT / ".cache" / "screenshots" / ui.front_end / f"{name}.png")

    return take
