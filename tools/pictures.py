"""Takes the pictures of the templates and of the nodes: `python -m tools.pictures [NAME ...]`.

Each template is run in the real front end with the models of `assets`. Its picture has the whole graph
above, and below it the node that says most of the result. The help pages show the nodes as they are after
these runs, or alone where they are in no template. A picture of a node holds the names of its inputs and
outputs, by which a test knows that it is of the node as it is now.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tests.harness.assets import install, parts
from tests.harness.facts import NODES, ROOT, facts
from tests.harness.launch import Server, base_directory
from tests.harness.packages import DATA
from tests.harness.page import Ui, building, chromium, page
from tests.harness.templates import (
    BLEND,
    EXAMPLE,
    FOLDER,
    JUDGE,
    SLIDER,
    SMALL,
    TEMPLATES,
    TRAIN,
    Values,
    put,
    ready,
)

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
    "11": "SaveImage",
    "12": "LycorisMask",
    "13": "LycorisDataset",
    "14": "LycorisDataset",
    "15": "LycorisSlider",
    "16": "LycorisJudge",
}
"""The node in the picture of each template, by its number."""
AFTER = {
    **{node: number for number, node in SHOWN.items() if number not in ("09", "11")},
    "LycorisApplyStack": "01",
    "LycorisWeightBlocks": "02",
    "LycorisExtractAdapter": "06",
    "LycorisDataset": "10",
    "LycorisStrengthGrid": "11",
    "LycorisLabelGrid": "11",
    "LycorisCombineStacks": "12",
}
"""The template after whose run a node's picture for its help page is taken. The other nodes stand alone."""
HELP = ROOT / "lycoris_nodes" / "web" / "docs" / "pictures"
PAGES = ROOT / "docs" / "pictures"
WEBP = {"quality": 82, "method": 6}
TALLEST, WIDEST = 900, 640
"""The most pixels of the picture of a node."""
DESCRIPTION = 0x010E
"""The field of EXIF with the names of the inputs and outputs."""
LONGER: Mapping[str, Values] = {
    TRAIN: {"LycorisDataset": {"held_out": 2}, "LycorisTrain": {"steps": 24, "rank": 4}},
    SLIDER: {"LycorisSlider": {"steps": 8}},
    JUDGE: {"LycorisTrain": {"steps": 8}, "LycorisJudge": {"times": 4}},
}
"""Enough steps for a curve."""


def put_photographs(folder: Path) -> None:
    """The pictures that come with scikit-image, small, in the folders that templates name.

    folder: the host's for inputs. In pairs the pictures are grey before.
    """
    for found in DATA.files:
        picture = Image.open(DATA.file(found)).convert("RGB")
        picture.thumbnail((160, 160))
        name = Path(found).stem
        put(folder, name, name, picture, picture.convert("L"))
    picture.convert("L").save(folder / EXAMPLE)


def draw(ui: Ui, name: str) -> None:
    """Run a template and write its thumbnail.

    Raises RuntimeError where the run fails, or leaves one node over another.
    """
    ui.load_template(ready(name, ui.server.object_info(), SMALL, LONGER.get(name, {})))
    end = ui.run(timeout=900)
    if end["name"] != "execution_success":
        raise RuntimeError(f"{name}: {end}")
    ui.page.wait_for_function("app.graph.nodes.every(({type, imgs}) => type !== 'SaveImage' || imgs?.length)")
    # Reports are laid out, and the note that the run has ended goes away.
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
    for node, number in AFTER.items():
        if name.startswith(number):
            take_node(ui, node)
    if name == BLEND:
        seen(ui, "LycorisAdapterRows", "LycorisApplyStack").save(PAGES / "blend.webp", **WEBP)


def names(definition: dict[str, Any]) -> list[str]:
    """The inputs and outputs of a node, from what the host tells the page of it."""
    inputs = [name for group in ("required", "optional") for name in definition["input"].get(group, {})]
    return [*inputs, *definition["output_name"]]


def names_in(node: str) -> list[str]:
    """The inputs and outputs that a node had when its picture was taken."""
    return json.loads(Image.open(HELP / f"{node}.webp").getexif()[DESCRIPTION])


def take_node(ui: Ui, node: str) -> None:
    """Write the picture of the node of a type for its help page."""
    exif = Image.Exif()
    exif[DESCRIPTION] = json.dumps(names(ui.server.object_info()[node]))
    HELP.mkdir(exist_ok=True)
    seen(ui, node).save(HELP / f"{node}.webp", exif=exif, **WEBP)
    print(f"{node}.webp", flush=True)


def seen(ui: Ui, *types: str) -> Image.Image:
    """What the canvas shows from the first to the last of the nodes of these types."""
    box = ui.page.evaluate(
        """([types, widest, tallest, margin]) => {
            const boxes = types.map(type => app.graph.nodes.find(node => node.type === type).getBounding())
            const left = Math.min(...boxes.map(box => box[0])), top = Math.min(...boxes.map(box => box[1]))
            const width = Math.max(...boxes.map(box => box[0] + box[2])) - left + 2 * margin
            const height = Math.max(...boxes.map(box => box[1] + box[3])) - top + 2 * margin
            const scale = Math.min(widest / width, tallest / height, 1.25)
            const [x, y] = [300, 100]
            Object.assign(app.canvas.ds, {
                scale, offset: [x / scale - left + margin, y / scale - top + margin],
            })
            app.canvas.deselectAll()
            app.canvas.setDirty(true, true)
            const canvas = app.canvas.canvas.getBoundingClientRect()
            const [wide, high] = [width, height].map(side => Math.ceil(side * scale))
            return {x: canvas.left + x, y: canvas.top + y, width: wide, height: high}
        }""",
        [types, WIDEST * len(types), TALLEST, MARGIN],
    )
    ui.page.wait_for_timeout(1000)
    return Image.open(io.BytesIO(ui.page.screenshot(clip=box))).convert("RGB")


def stand_alone(ui: Ui, node: str) -> None:
    """Take the picture of a node that is in no template."""
    ui.page.evaluate(building("type", "make(type, 0, 0)"), node)
    ui.page.wait_for_timeout(500)
    take_node(ui, node)


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


def main(chosen: list[str]) -> int:
    found = facts()
    if found.chromium is None:
        print(f"No Chromium is available: {found.no_chromium}", file=sys.stderr)
        return 1
    base = install(base_directory(ROOT / ".cache" / "pictures", ROOT), parts())
    shutil.rmtree(base / "output", ignore_errors=True)
    put_photographs(base / "input")
    with chromium(found.chromium) as browser, Server(found.comfyui, base) as server:
        for name in TEMPLATES:
            if name in (chosen or TEMPLATES):
                with page(browser, server, base) as ui:
                    draw(ui, name)
        with page(browser, server, base) as ui:
            for node in NODES:
                if node not in AFTER and node in (chosen or NODES):
                    stand_alone(ui, node)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
