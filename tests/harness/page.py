"""The real front end in Chromium: a page that is ready for input, and what a user does on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .launch import PACK, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Response

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OWN = version("comfyui_frontend_package")
"""The front end that the host requires."""
SETTINGS = {
    # Otherwise the templates dialog covers the canvas at the first start.
    "Comfy.TutorialCompleted": True,
    # Likewise a dialog of older front ends, on the model of a template.
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    # Front ends run here on other hosts than their own.
    "Comfy.VersionCompatibility.DisableWarnings": True,
    # For screenshots of a whole graph: text at any zoom, and nothing in front of the canvas.
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
NOISE = (
    # Files that the page asks for and that a new user, or an older host, does not have.
    "/user.css",
    "/favicon.ico",
    "/api/userdata",
    # The models that a workflow misses, and the front end's own node registry; the host's content security
    # policy, on because of --disable-api-nodes, blocks both.
    "https://huggingface.co/",
    "https://api.comfy.org/",
    # The front end's own start, with and without any pack.
    "ComfyApp graph accessed before initialization",
    # The help of a node is looked for in the user's language first.
    "/en.md",
)
EVENTS = ("execution_cached", "execution_success", "execution_error", "execution_interrupted")


BUILDING = """
    app.graph.clear()
    const make = (type, x, y, values = {}) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        app.graph.add(node)
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value
        return node
    }
    const join = (from, output, to, input) =>
        from.connect(output, to, to.inputs.findIndex(({name}) => name.split(".").at(-1) === input))
"""


def building(argument: str, body: str) -> str:
    """A function for `Page.evaluate` that makes a new graph, where `body` calls `make` and `join`."""
    return f"{argument} => {{{BUILDING}{body}}}"


@dataclass
class Ui:
    """A page with the front end, ready for input, and what went wrong on it so far."""

    page: Page
    server: Server
    front_end: str
    errors: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", self._answered)
        self.page.goto(self.server.url)
        self._wait_until_ready()

    def reload(self) -> None:
        """Press F5: the page opens anew, with the workflow that was on it."""
        nodes: int = self.page.evaluate("app.graph.nodes.length")
        self.page.reload()
        self._wait_until_ready(nodes)

    def _wait_until_ready(self, nodes: int = 1) -> None:
        """Wait for extensions, and for a workflow with at least so many nodes."""
        # On a slow machine the workflow can come before the last nodes are known. Extensions are set up after
        # them, and ours gives links their colours then.
        colour = "getPropertyValue('--color-datatype-LYCORIS_STACK')"
        self.page.wait_for_function(
            f"window.app?.vueAppReady && app.graph.nodes.length >= {nodes}"
            " && app.extensionManager.workflow.activeWorkflow"
            f" && getComputedStyle(document.documentElement).{colour}",
            polling=100,
            timeout=120_000,
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

    def load_template(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as the template browser does: in full view."""
        self.page.evaluate(
            "workflow => app.loadGraphData(workflow, true, true, 'template', {openSource: 'template'})",
            workflow,
        )

    def render_with_vue(self, on: bool) -> None:
        """Choose one of the front end's two ways to draw nodes."""
        self.page.evaluate("on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", on)

    def drawn(self, vue_nodes: bool) -> None:
        """Wait until each node is where it stays."""
        if vue_nodes:
            self.page.wait_for_function(
                "app.graph.nodes.every(({id}) => document.querySelector(`[data-node-id='${id}']`))"
            )
        # Vue measures its nodes in the frames that follow.
        self.page.wait_for_timeout(500)

    def types(self) -> set[str]:
        """The types of the nodes of the graph."""
        return set(self.page.evaluate("app.graph.nodes.map(node => node.type)"))

    def overlaps(self, vue_nodes: bool) -> list[list[str]]:
        """The types of each two nodes of which one is over the other, as they are drawn."""
        return self.page.evaluate(
            """vue => {
                const boxes = app.graph.nodes.map(node => {
                    const [x, y, width, height] = node.getBounding()
                    const {left, top, right, bottom} = vue
                        ? document.querySelector(`[data-node-id='${node.id}']`).getBoundingClientRect()
                        : {left: x, top: y, right: x + width, bottom: y + height}
                    return {type: node.type, left, top, right, bottom}
                })
                const over = (one, other) =>
                    one.left < other.right && other.left < one.right
                    && one.top < other.bottom && other.top < one.bottom
                return boxes.flatMap((one, place) => boxes.slice(place + 1)
                    .filter(other => over(one, other)).map(other => [one.type, other.type]))
            }""",
            vue_nodes,
        )

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

    def look(self, x: int, y: int) -> None:
        """Show the graph at zoom 1, with its origin at this place of the canvas."""
        self.page.evaluate(
            "offset => { Object.assign(app.canvas.ds, {scale: 1, offset}); app.canvas.setDirty(true, true) }",
            [x, y],
        )

    def set(self, node: str, widget: str, value: Any) -> None:
        """Change a widget of the first node of a type."""
        self.page.evaluate(
            """([type, name, value]) => {
                const node = app.graph.nodes.find(node => node.type === type)
                node.widgets.find(widget => widget.name === name).value = value
            }""",
            [node, widget, value],
        )

    def press_run(self) -> None:
        self.page.get_by_test_id("queue-button").click()

    def run(self, timeout: float = 120) -> dict[str, Any]:
        """Press Run, and wait for the end; at most `timeout` seconds.

        Returns the last event, with the ids of the nodes that were not run again under `cached`.
        """
        self.page.evaluate("heard.length = 0")
        self.press_run()
        self.page.wait_for_function(
            "heard.some(({name}) => name !== 'execution_cached')", timeout=1000 * timeout, polling=100
        )
        heard = self.page.evaluate("heard")
        cached = [node for event in heard if event["name"] == EVENTS[0] for node in event["detail"]["nodes"]]
        return {**heard[-1], "cached": cached}

    def report(self, node: str) -> str:
        """The whole report that a node of this type shows, once it does, with what is folded."""
        owner = f"app.graph.nodes.find(node => node.type === '{node}')"
        found = f"{owner}?.widgets.find(widget => widget.name === 'report')?.element"
        self.page.wait_for_function(f"!['waiting', undefined].includes({found}?.dataset.state)")
        parts = f"[...{found}.querySelectorAll('pre')].map(part => part.textContent)"
        return self.page.evaluate(f"{parts}.filter(Boolean).join('\\n')")

    def _heard(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url')})"
        if message.type == "error" and not any(noise in text for noise in NOISE):
            self.errors.append(text)

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and PACK in response.url and not response.url.endswith("/en.md"):
            self.errors.append(f"{response.status} {response.url}")


@contextmanager
def chromium(executable: Path) -> Iterator[Browser]:
    """The browser. Playwright's event loop runs in this thread until it is closed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()


@contextmanager
def page(browser: Browser, server: Server, base: Path, front_end: str = OWN) -> Iterator[Ui]:
    """The front end, of this version, on a page that knows nothing of the pages before it."""
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(exist_ok=True)
    # A new user's defaults: they follow the version of the first start.
    chosen = {**SETTINGS, "Comfy.InstalledVersion": front_end}
    settings.write_text(json.dumps(chosen), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    # Far longer than a click takes, for machines with other work.
    context.set_default_timeout(60_000)
    opened = Ui(context.new_page(), server, front_end)
    opened.open()
    yield opened
    context.close()
