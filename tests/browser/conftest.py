"""The real front end in Chromium, on a real server with the pack and the random models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Response

PACK = "lycoris-nodes"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    # A new user's defaults: they follow the version of the first start.
    "Comfy.InstalledVersion": version("comfyui_frontend_package"),
    # Otherwise the templates dialog covers the canvas at the first start.
    "Comfy.TutorialCompleted": True,
    # For screenshots of a whole graph: text at any zoom, and nothing in front of the canvas.
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Minimap.Visible": False,
}
NOISE = (
    # Files that the page asks for and that a new user, or an older host, does not have.
    "/user.css",
    "/favicon.ico",
    "/api/userdata",
    # The front end's own default workflow and node registry; the host's content security policy,
    # on because of --disable-api-nodes, blocks both.
    "https://huggingface.co/Comfy-Org/",
    "https://api.comfy.org/",
    # The front end's own start, with and without any pack.
    "ComfyApp graph accessed before initialization",
    # The help of a node is looked for in the user's language first.
    "/en.md",
)
EVENTS = ("execution_cached", "execution_success", "execution_error", "execution_interrupted")


@dataclass
class Ui:
    """A page with the front end, ready for input, and what went wrong on it so far."""

    page: Page
    server: Server
    errors: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", self._answered)
        self.page.goto(self.server.url)
        # The default workflow comes last.
        self.page.wait_for_function(
            "window.app?.vueAppReady && app.graph.nodes.length", polling=100, timeout=120_000
        )
        self.page.evaluate(
            """names => {
                window.heard = []
                for (const name of names)
                    app.api.addEventListener(name, ({detail}) => heard.push({name, detail}))
            }""",
            EVENTS,
        )

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def serialized(self) -> dict[str, Any]:
        """The workflow as it would be saved."""
        return json.loads(self.page.evaluate("JSON.stringify(app.graph.serialize())"))

    def prompt(self) -> dict[str, Any]:
        """The prompt as the front end would send it."""
        prompt = self.page.evaluate("app.graphToPrompt().then(both => JSON.stringify(both.output))")
        return json.loads(prompt)

    def click(self, x: float, y: float) -> None:
        """Click on the canvas once nothing covers it and it has been drawn.

        To the front end, nodes are where they were last drawn.
        """
        self.page.wait_for_function(
            "([x, y]) => document.elementFromPoint(x, y)?.id === 'graph-canvas'", arg=[x, y]
        )
        self.page.evaluate(
            """() => {
                app.canvas.setDirty(true, true)
                return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
            }"""
        )
        self.page.mouse.click(x, y)

    def command(self, name: str) -> None:
        self.page.evaluate("name => void app.extensionManager.command.execute(name)", name)

    def set(self, node: str, widget: str, value: Any, index: int = 0) -> None:
        """Change a widget of the `index`-th node of a type."""
        self.page.evaluate(
            """([type, name, value, index]) => {
                const node = app.graph.nodes.filter(node => node.type === type)[index]
                node.widgets.find(widget => widget.name === name).value = value
            }""",
            [node, widget, value, index],
        )

    def press_run(self) -> None:
        self.page.get_by_test_id("queue-button").click()

    def run(self) -> dict[str, Any]:
        """Press Run, and wait for the end.

        Returns the last event, with the ids of the nodes that were not run again under `cached`.
        """
        self.page.evaluate("heard.length = 0")
        self.press_run()
        self.page.wait_for_function(
            "heard.some(({name}) => name !== 'execution_cached')", timeout=120_000, polling=100
        )
        heard = self.page.evaluate("heard")
        cached = [node for event in heard if event["name"] == EVENTS[0] for node in event["detail"]["nodes"]]
        return {**heard[-1], "cached": cached}

    def report(self, node: str) -> str:
        """The text that a node of this type shows, once it does."""
        found = "app.graph.nodes.find(node => node.type === %r)?.widgets.find(w => w.name === 'report')"
        self.page.wait_for_function(found % node + "?.value")
        return self.page.evaluate(found % node + ".element.value")

    def _heard(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url')})"
        if message.type == "error" and not any(noise in text for noise in NOISE):
            self.errors.append(text)

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and PACK in response.url and not response.url.endswith("/en.md"):
            self.errors.append(f"{response.status} {response.url}")


@pytest.fixture(scope="session")
def base() -> Path:
    """A host's base directory with the models, and no trace of an earlier run."""
    folder = ROOT / ".cache" / facts().host / "browser-tests"
    for part in ("output", "user"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return install(base_directory(folder, ROOT))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = facts()
    if found.chromium is None:
        pytest.skip(f"no Chromium could be had: {found.no_chromium}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found.chromium, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def server(browser: Browser, base: Path) -> Iterator[Server]:
    """A server that starts after the browser, so that it is not started where there is no browser."""
    with Server(facts().comfyui, base) as running:
        yield running


@pytest.fixture
def ui(browser: Browser, server: Server, base: Path) -> Iterator[Ui]:
    """A page that knows nothing of the pages before it."""
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    context.set_default_timeout(15_000)
    opened = Ui(context.new_page(), server)
    opened.open()
    yield opened
    context.close()


@pytest.fixture
def screenshot(ui: Ui) -> Callable[[str], None]:
    """Writes what the page shows to `.cache/screenshots/<name>.png`."""

    def take(name: str) -> None:
        ui.page.screenshot(path=ROOT / ".cache" / "screenshots" / f"{name}.png")

    return take
