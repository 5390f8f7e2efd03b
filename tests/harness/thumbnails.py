"""Draws the thumbnails of the templates: `python -m tests.harness.thumbnails [NAME ...]`, in the environment.

Each template is run in the real front end with the models of `assets`. The picture has the whole graph above,
and below it the node that says most of the result.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image

from tests.bench.quality.tasks.pictures import DATA

from .assets import install
from .facts import ROOT, facts
from .launch import Server, base_directory
from .page import Ui, chromium, page
from .templates import FOLDER, PICTURES, SMALL, TEMPLATES, TRAIN, Values, ready

SIDE = 600
"""Pixels of a thumbnail."""
GRAPH = 220
"""How high the graph is in it."""
MARGIN = 14
"""Around the graph and the node, in the units of the canvas."""
SHOWN = {
    "01": "LycorisAdapterRows",
    "02": "LycorisBlockInfo",
    "03": "LycorisSchedule",
    "04": "LycorisInspect",
    "05": "LycorisMergeAdapters",
    "06": "LycorisResizeAdapter",
    "07": "LycorisSaveAdapter",
    "08": "LycorisSaveCheckpoint",
    "09": "LycorisApplyStack",
    "10": "LycorisTrain",
}
"""The node in the picture of each template, by its number."""
LONGER: Values = {"LycorisDataset": {"held_out": 2}, "LycorisTrain": {"steps": 24, "rank": 4}}
"""Enough steps for a curve."""


def put_photographs(folder: Path) -> None:
    """The pictures that come with scikit-image, small."""
    folder.mkdir(parents=True, exist_ok=True)
    for found in DATA.files:
        picture = Image.open(DATA.file(found)).convert("RGB")
        picture.thumbnail((160, 160))
        picture.save(folder / f"{Path(found).stem}.png")
        (folder / f"{Path(found).stem}.txt").write_text(Path(found).stem, encoding="utf-8")


def draw(ui: Ui, name: str) -> None:
    """Run a template and write its thumbnail.

    Raises RuntimeError where the run fails, or leaves one node over another.
    """
    ui.load_template(ready(name, ui.server.object_info(), SMALL, LONGER if name == TRAIN else {}))
    end = ui.run(timeout=900)
    if end["name"] != "execution_success":
        raise RuntimeError(f"{name}: {end}")
    # Pictures arrive and reports are laid out, and the note that the run has ended goes away.
    ui.page.wait_for_timeout(4000)
    if over := ui.overlaps(vue_nodes=False):
        raise RuntimeError(f"{name}: nodes are over each other after the run: {over}")
    # The picture is for everyone, and no folder of one machine belongs in it.
    ui.page.evaluate(
        """base => {
            const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
            while (texts.nextNode()) {
                const text = texts.currentNode
                if (text.data.includes(base)) text.data = text.data.replaceAll(base, '/ComfyUI')
            }
        }""",
        str(ui.server.base),
    )
    whole, node = (taken(ui, of, high) for of, high in ((None, GRAPH), (SHOWN[name[:2]], SIDE - GRAPH)))
    picture = Image.new("RGB", (SIDE, SIDE))
    picture.paste(whole, (0, 0))
    picture.paste(node, (0, GRAPH))
    picture.save(FOLDER / f"{name}.jpg", quality=85, optimize=True)
    print(f"{name}.jpg", flush=True)


def taken(ui: Ui, of: str | None, high: int) -> Image.Image:
    """What the canvas shows of the node of a type, or of all nodes, in SIDE by `high` pixels.

    Of a tall node it is the lower part, where its result is.
    """
    box = ui.page.evaluate(
        """([type, side, high, margin]) => {
            const boxes = app.graph.nodes.filter(node => !type || node.type === type)
                .map(node => node.getBounding())
            const left = Math.min(...boxes.map(box => box[0])), top = Math.min(...boxes.map(box => box[1]))
            const width = Math.max(...boxes.map(box => box[0] + box[2])) - left
            const height = Math.max(...boxes.map(box => box[1] + box[3])) - top
            const whole = type ? 1.6 : high / (height + 2 * margin)
            const scale = Math.min(side / (width + 2 * margin), whole, 1.6)
            // Where the cut is on the canvas, and how far in it the nodes begin.
            const [x, y] = [300, 100]
            const across = (side - width * scale) / 2
            const room = high - height * scale
            const down = room < 0 ? room - margin * scale : room / 2
            const offset = [(x + across) / scale - left, (y + down) / scale - top]
            Object.assign(app.canvas.ds, {scale, offset})
            app.canvas.setDirty(true, true)
            const canvas = app.canvas.canvas.getBoundingClientRect()
            return {x: canvas.left + x, y: canvas.top + y, width: side, height: high}
        }""",
        [of, SIDE, high, MARGIN],
    )
    ui.page.wait_for_timeout(1000)
    return Image.open(io.BytesIO(ui.page.screenshot(clip=box))).convert("RGB")


def main(names: list[str]) -> int:
    found = facts()
    if found.chromium is None:
        print(f"No Chromium could be had: {found.no_chromium}", file=sys.stderr)
        return 1
    base = install(base_directory(ROOT / ".cache" / "thumbnails", ROOT))
    shutil.rmtree(base / "output", ignore_errors=True)
    put_photographs(base / "input" / PICTURES)
    with chromium(found.chromium) as browser, Server(found.comfyui, base) as server:
        for name in names or TEMPLATES:
            with page(browser, server, base) as ui:
                draw(ui, name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
