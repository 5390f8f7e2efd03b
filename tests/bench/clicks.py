"""Clicks that five files take in this pack's rows and in rgthree's Power Lora Loader.

    python tests/harness/environment.py --browser -- python -m tests.bench.clicks FOLDER_OF_RGTHREE_COMFY

Both nodes stand on one page of the real front end, and the page itself counts the presses of the mouse.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory
from tests.harness.page import Ui, chromium, page

FILES = ("loha", "loha_tucker", "lokr", "lora", "lora_tucker")
THEIRS = "Power Lora Loader (rgthree)"


def add_ours(ui: Ui, file: str) -> None:
    ui.page.get_by_role("button", name="+ Add LoRA / LyCORIS").click()
    ui.page.locator(".lycoris-picker").get_by_title(file, exact=True).click()


def add_theirs(ui: Ui, file: str) -> None:
    x, y = ui.page.evaluate(
        """type => {
            const node = app.graph.nodes.find(node => node.type === type)
            const button = node.widgets.find(widget => widget.name.includes('Add Lora'))
            const {left, top} = app.canvas.canvas.getBoundingClientRect()
            const middle = [node.pos[0] + node.size[0] / 2, node.pos[1] + button.last_y + 10]
            const [x, y] = app.canvas.ds.convertOffsetToCanvas(middle)
            return [left + x, top + y]
        }""",
        THEIRS,
    )
    ui.click(x, y)
    ui.page.locator(".litecontextmenu .litemenu-entry").get_by_text(file, exact=True).click()


def counted(ui: Ui, node: str, add: Callable[[Ui, str], None], held: str) -> int:
    """The presses that five files take in a new node of this type; `held` gives the files in `widgets`."""
    ui.page.evaluate(
        """async type => {
            // A graph that is only cleared gives new nodes the values of the old ones.
            await app.extensionManager.command.execute('Comfy.NewBlankWorkflow')
            const node = LiteGraph.createNode(type)
            node.pos = [0, 0]
            app.graph.add(node)
            Object.assign(app.canvas.ds, {scale: 1, offset: [400, 200]})
            app.canvas.setDirty(true, true)
            window.presses = 0
        }""",
        node,
    )
    for number, name in enumerate(FILES, start=1):
        add(ui, f"{name}.safetensors")
        ui.page.wait_for_function(f"(widgets => {held}.length === {number})(app.graph.nodes[0].widgets)")
    return ui.page.evaluate("presses")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or not (Path(arguments[0]) / "pyproject.toml").is_file():
        sys.exit("usage: python -m tests.bench.clicks FOLDER_OF_RGTHREE_COMFY (a copy of its repository)")
    known = facts()
    if known.chromium is None:
        sys.exit(f"no Chromium could be had: {known.no_chromium}")
    base = base_directory(ROOT / ".cache" / known.host / "clicks", Path(arguments[0]), "rgthree-comfy")
    install(base_directory(base, ROOT))
    with (
        chromium(known.chromium) as browser,
        Server(known.comfyui, base) as server,
        page(browser, server, base) as ui,
    ):
        ui.page.evaluate("addEventListener('pointerdown', event => window.presses += event.isTrusted, true)")
        found = counted(ui, THEIRS, add_theirs, "widgets.filter(widget => widget.name.startsWith('lora_'))")
        print(f"rgthree: {found} clicks for {len(FILES)} files")
        for renderer in (False, True):
            ui.render_with_vue(renderer)
            held = "JSON.parse(widgets.find(widget => widget.name === 'rows').value || '{\"rows\": []}').rows"
            found = counted(ui, "LycorisAdapterRows", add_ours, held)
            print(f"here ({'Vue nodes' if renderer else 'canvas'}): {found} clicks for {len(FILES)} files")


if __name__ == "__main__":
    main(sys.argv[1:])
