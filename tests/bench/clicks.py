"""Clicks, drags and key presses of twelve everyday tasks: ComfyUI's own nodes, rgthree's, and this pack's.

    python -m tests.bench.clicks [--rgthree FOLDER] [--only TASK ...] [--side SIDE ...]

runs in the environment of the tests, in the real front end. FOLDER is a copy of rgthree-comfy's repository.

A click counts 1, with the right button and with a modifier held too; a double click 2; a drag 1, and it
ends at once where it should; a typed text 1, of any length; any other key 1. Every task begins with a
workflow that runs, nothing selected and nothing open, and ends with a check of the prompt that is sent
or of what the page shows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets, install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory
from tests.harness.page import Ui, chromium, page

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    Place = Locator | tuple[float, float]

FIVE = ("loha", "loha_tucker", "lokr", "lora", "lora_tucker")
HIDDEN, BROKEN = "sumi", "page"
"""A file whose trigger words are not in its name, and one that is a page of HTML."""
TRIGGER = "ink wash"
STEP = 80
"""How far a drag of ours goes for a strength of 1, in pixels."""
CHANGED = (0.7, 0.5, 1.2)
BLOCK = "input_blocks.1."
Rows = list[tuple[str, float]]
STEPS = 90
LONG = 180_000
"""Milliseconds that a step of a training may take to come."""
TRAINING: tuple[dict[str, Any], list[list[str]]] = (
    {
        "base": {
            "type": "CheckpointLoaderSimple",
            "pos": [0, 0],
            "values": {"ckpt_name": "base.safetensors"},
        },
        "data": {
            "type": "LycorisDataset",
            "pos": [0, 200],
            "values": {"folder": "clicks", "resolution": "64"},
        },
        "train": {"type": "LycorisTrain", "pos": [500, 0], "values": {"steps": STEPS}},
    },
    [
        *(["base", kind, "data", kind] for kind in ("model", "clip", "vae")),
        ["base", "MODEL", "train", "model"],
        ["data", "latents", "train", "latents"],
        ["data", "positive", "train", "positive"],
    ],
)
"""A training, as nodes and links."""
BUILD = """([nodes, links]) => {
    const made = Object.fromEntries(Object.entries(nodes).map(([key, given]) => {
        const {type, pos, values = {}, loras = []} = given
        const node = LiteGraph.createNode(type)
        node.pos = pos
        app.graph.add(node)
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value
        for (const {lora, strength} of loras) Object.assign(node.addNewLoraWidget(lora).value, {strength})
        if (loras.length) node.size[1] = node.computeSize()[1]
        return [key, node]
    }))
    const slot = (slots, name) => slots.findIndex(one => one.name.toLowerCase() === name.toLowerCase())
    for (const [from, output, to, input] of links)
        made[from].connect(slot(made[from].outputs, output), made[to], slot(made[to].inputs, input))
    Object.assign(app.canvas.ds, {scale: 1, offset: [150, 150]})
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
}"""


class NotPossible(Exception):  # noqa: N818 - a result, not an error
    """Why a task cannot be done."""


class Hand:
    """The mouse and the keyboard, and how often they were used."""

    def __init__(self, ui: Ui) -> None:
        self.ui, self.page, self.count = ui, ui.page, 0

    def click(self, place: Place, *, right: bool = False, control: bool = False) -> None:
        self.count += 1
        self._press(place, right=right, control=control)

    def double_click(self, place: Place) -> None:
        self.count += 2
        self._press(place, clicks=2)

    def drag(self, start: Place, end: tuple[float, float]) -> None:
        self.count += 1
        x, y = self.middle(start)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        # Whole pixels, where it is short.
        self.page.mouse.move(*end, steps=min(100, max(8, round(abs(end[0] - x)))))
        self.page.mouse.up()

    def type(self, text: str) -> None:
        self.count += 1
        self.page.keyboard.type(text)

    def key(self, name: str) -> None:
        self.count += 1
        self.page.keyboard.press(name)

    def run(self) -> None:
        """Press Run, and wait for the end, which costs nothing."""
        self.count += 1
        self.ui.run()

    def send(self, *, blocked: bool = True) -> None:
        """Press Run, and wait until the prompt is sent; where it is blocked, the host never gets it."""
        self.count += 1
        if blocked:
            self.page.route("**/api/prompt", lambda route: route.abort(), times=1)
        with self.page.expect_request("**/api/prompt"):
            self.ui.press_run()

    def _press(self, place: Place, *, right: bool = False, control: bool = False, clicks: int = 1) -> None:
        options: dict[str, Any] = {"button": "right" if right else "left", "click_count": clicks}
        if isinstance(place, tuple):
            if control:
                self.page.keyboard.down("Control")
            self.page.mouse.click(*place, **options)
            if control:
                self.page.keyboard.up("Control")
        else:
            place.click(**options, modifiers=["Control"] if control else [])
        # A second click at the same place would be a double click.
        self.page.wait_for_timeout(350)

    def middle(self, place: Place) -> tuple[float, float]:
        if isinstance(place, tuple):
            return place
        box = place.bounding_box()
        assert box, place
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


class Side:
    """A way to use adapters, on a page. Its tasks are the methods that `TASKS` names."""

    name: ClassVar[str]
    loader: ClassVar[str]
    vue_nodes: ClassVar[bool] = False

    def __init__(self, ui: Ui, base: Path) -> None:
        self.ui, self.page, self.base = ui, ui.page, base

    def start(self, rows: Rows) -> None:
        """A new workflow with these adapters."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.page.evaluate("app.graph.clear()")
        nodes, links = self.graph(rows)
        self.page.evaluate(BUILD, [nodes, links])
        self.ui.drawn(self.vue_nodes)

    def graph(self, rows: Rows) -> tuple[dict[str, Any], list[list[str]]]:
        nodes = {
            "checkpoint": {
                "type": "CheckpointLoaderSimple",
                "pos": [0, 0],
                "values": {"ckpt_name": "base.safetensors"},
            },
            "text": {"type": "CLIPTextEncode", "pos": [1000, 0], "values": {"text": "a tree"}},
            "latent": {"type": "EmptyLatentImage", "pos": [1000, 300], "values": {"width": 64, "height": 64}},
            "sampler": {
                "type": "KSampler",
                "pos": [1450, 0],
                "values": {"steps": 1, "seed": random.randrange(10**9)},
            },
            "decode": {"type": "VAEDecode", "pos": [1450, 420]},
            "save": {"type": "SaveImage", "pos": [1450, 520]},
        }
        links = [
            ["text", "CONDITIONING", "sampler", "positive"],
            ["text", "CONDITIONING", "sampler", "negative"],
            ["latent", "LATENT", "sampler", "latent_image"],
            ["sampler", "LATENT", "decode", "samples"],
            ["checkpoint", "VAE", "decode", "vae"],
            ["decode", "IMAGE", "save", "images"],
        ]
        more, source = self.loaders(rows, links)
        return {**nodes, **more}, [
            *links,
            [source, "MODEL", "sampler", "model"],
            [source, "CLIP", "text", "clip"],
        ]

    def loaders(self, rows: Rows, links: list[list[str]]) -> tuple[dict[str, Any], str]:
        """The nodes that load adapters, with their links, and which of them has the results."""
        raise NotImplementedError

    # Places on the canvas.

    def place(self, kind: str, point: str, index: int = 0) -> tuple[float, float]:
        """The place in the window of a point of the `index`-th node of a type."""
        x, y = self.page.evaluate(
            f"""async ([type, index]) => {{
                // A node has its places once it is drawn. One that is pressed comes to the end of the list.
                app.canvas.setDirty(true, true)
                await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
                const of = app.graph.nodes.filter(node => node.type === type)
                const node = of.sort((one, other) => one.id - other.id)[index]
                const widget = name => node.widgets.find(widget => widget.name === name)
                const slot = (slots, name) => slots.findIndex(one => one.name.toLowerCase() === name)
                const {{left, top}} = app.canvas.canvas.getBoundingClientRect()
                const [x, y] = app.canvas.ds.convertOffsetToCanvas({point})
                return [left + x, top + y]
            }}""",
            [kind, index],
        )
        return round(x), round(y)

    def output(self, kind: str, name: str, index: int = 0) -> tuple[float, float]:
        return self.place(kind, f"node.getConnectionPos(false, slot(node.outputs, '{name}'))", index)

    def input(self, kind: str, name: str, index: int = 0) -> tuple[float, float]:
        return self.place(kind, f"node.getConnectionPos(true, slot(node.inputs, '{name}'))", index)

    def widget(self, kind: str, name: str, index: int = 0) -> tuple[float, float]:
        middle = f"[node.pos[0] + node.size[0] / 2, node.pos[1] + widget('{name}').last_y + 10]"
        return self.place(kind, middle, index)

    def title(self, kind: str, index: int = 0) -> tuple[float, float]:
        return self.place(kind, "[node.pos[0] + 60, node.pos[1] - 15]", index)

    def free(self, index: int) -> tuple[float, float]:
        """A free place for the `index`-th new node."""
        column, line = divmod(index, 3)
        return self.place("CheckpointLoaderSimple", f"[{420 + 300 * column}, {250 + 190 * line}]")

    def new_node(self, start: Place, words: str, title: str, at: tuple[float, float], hand: Hand) -> None:
        """Drag a link from an output to a free place, and choose a node in the search that opens."""
        hand.drag(start, at)
        if words:
            self.page.get_by_placeholder("Add a node...").wait_for()
            hand.type(words)
        nodes = self.page.evaluate("app.graph.nodes.length")
        hand.click(self.page.get_by_role("dialog").get_by_text(title, exact=True).first)
        # It follows the mouse until the next press.
        self.page.wait_for_function(f"app.graph.nodes.length > {nodes}")
        self.page.mouse.move(*at, steps=4)
        self.page.wait_for_timeout(300)
        hand.click(at)

    def open_earlier(self, hand: Hand) -> None:
        """Open the workflow of the earlier picture in a tab of its own."""
        hand.key("a")
        hand.click(self.page.locator("img[src*='ComfyUI_00001_.png']").first, right=True)
        hand.click(self.page.get_by_text("Open as workflow in new tab"))
        # The list of pictures covers the workflow.
        hand.key("a")
        self.page.wait_for_function("app.graph.nodes.some(node => /lora|lycoris/i.test(node.type))")
        self.ui.drawn(self.vue_nodes)

    def paste_here(self, hand: Hand) -> None:
        """Copy what is selected, and paste it into the workflow at hand."""
        hand.key("Control+c")
        hand.click(self.page.locator(".workflow-tabs").get_by_text("Unsaved Workflow").last)
        self.ui.drawn(self.vue_nodes)
        self.page.mouse.move(*self.free(0))
        hand.key("Control+v")
        self.ui.drawn(self.vue_nodes)

    # What is checked.

    def used(self) -> Rows:
        """The adapters that the prompt applies, in their order, with the strengths of the model."""
        prompt = self.ui.prompt()
        (sampler,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
        return self.applied(prompt, sampler["inputs"]["model"][0])

    def applied(self, prompt: dict[str, Any], key: str) -> Rows:
        node = prompt[key]
        inputs = node["inputs"]
        match node["class_type"]:
            case "CheckpointLoaderSimple":
                return []
            case "LoraLoader":
                if "clip" not in inputs or inputs["clip"][0] != inputs["model"][0]:
                    return []
                before = self.applied(prompt, inputs["model"][0])
                strength, clip = (round(inputs[f"strength_{kind}"], 2) for kind in ("model", "clip"))
                return [*before, (_stem(inputs["lora_name"]), strength if strength == clip else math.nan)]
            case "Power Lora Loader (rgthree)":
                rows = [value for name, value in inputs.items() if name.startswith("lora_")]
                return [(_stem(row["lora"]), round(row["strength"], 2)) for row in rows if row["on"]]
            case "LycorisApplyStack":
                rows = json.loads(prompt[inputs["stack"][0]]["inputs"]["rows"])["rows"]
                return [
                    (_stem(row["file"]), row.get("strength_model", 1)) for row in rows if row.get("on", True)
                ]
            case _:
                return []


def _stem(file: str) -> str:
    return file.removesuffix(".safetensors")


def _name(stem: str) -> str:
    return f"{stem}.safetensors"


class Core(Side):
    """A chain of Load LoRA nodes, and what else ComfyUI has itself."""

    name = "ComfyUI"
    loader = "LoraLoader"
    pasted: ClassVar[tuple[int, int]] = (0, 2)
    """The first and the last node of those that are pasted."""

    def loaders(self, rows: Rows, links: list[list[str]]) -> tuple[dict[str, Any], str]:
        nodes, source = dict[str, Any](), "checkpoint"
        # Without an adapter there is no node.
        for index, (file, strength) in enumerate(rows):
            values = {"lora_name": _name(file), "strength_model": strength, "strength_clip": strength}
            nodes[f"lora{index}"] = {"type": self.loader, "pos": [400, 170 * index], "values": values}
            links += [[source, kind, f"lora{index}", kind] for kind in ("MODEL", "CLIP")]
            source = f"lora{index}"
        return nodes, source

    def choose(self, index: int, file: str, hand: Hand) -> None:
        hand.click(self.widget(self.loader, "lora_name", index))
        hand.click(self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(_name(file), exact=True))

    def move(self, strength: float, index: int, hand: Hand) -> None:
        for name in ("strength_model", "strength_clip"):
            x, y = self.widget(self.loader, name, index)
            hand.drag((x, y), (x + round(100 * (strength - 1)), y))

    def link(self, kind: str, start: tuple[str, int], end: tuple[str, str, int], hand: Hand) -> None:
        hand.drag(self.output(start[0], kind, start[1]), self.input(*end))

    def to_end(self, start: tuple[str, int], hand: Hand) -> None:
        self.link("model", start, ("KSampler", "model", 0), hand)
        self.link("clip", start, ("CLIPTextEncode", "clip", 0), hand)

    def add_five(self, hand: Hand) -> None:
        before: tuple[str, int] = ("CheckpointLoaderSimple", 0)
        for index, file in enumerate(FIVE):
            self.new_node(
                self.output(before[0], "model", before[1]),
                "",
                "Load LoRA (Model and CLIP)",
                self.free(index),
                hand,
            )
            self.link("clip", before, (self.loader, "clip", index), hand)
            if index:
                self.choose(index, file, hand)
            before = (self.loader, index)
        self.to_end(before, hand)

    def change_three(self, hand: Hand) -> None:
        for index, strength in enumerate(CHANGED):
            self.move(strength, index, hand)

    def switch_off(self, hand: Hand) -> None:
        hand.click(self.title(self.loader, 1))
        hand.key("Control+b")

    def reorder(self, hand: Hand) -> None:
        last = (self.loader, 2)
        for kind in ("model", "clip"):
            self.link(kind, ("CheckpointLoaderSimple", 0), (self.loader, kind, 2), hand)
            self.link(kind, last, (self.loader, kind, 0), hand)
        self.to_end((self.loader, 1), hand)

    def look_up(self, hand: Hand) -> Locator:
        """Find a file by its trigger word in the library of models."""
        hand.key("m")
        # The library knows the words of files that it has shown.
        hand.click(self.page.get_by_text("loras", exact=True).first)
        self.page.get_by_text("Sumi", exact=True).wait_for()
        hand.click(self.page.get_by_placeholder("Search Models..."))
        hand.type(TRIGGER)
        found = self.page.get_by_text("Sumi", exact=True)
        self.page.wait_for_timeout(1000)
        assert found.count() == 1 and not self.page.get_by_text("lokr_tucker", exact=True).count()
        return found

    def find(self, hand: Hand) -> None:
        hand.click(self.look_up(hand))
        hand.click(self.free(2))
        for kind in ("model", "clip"):
            self.link(kind, (self.loader, 0), (self.loader, kind, 1), hand)
        self.to_end((self.loader, 1), hand)

    def half_block(self, hand: Hand) -> None:
        """A merge of the model with and without the adapter, half and half in one block."""
        merge = "ModelMergeSD1"
        self.new_node(self.output(self.loader, "model"), merge, merge, self.free(0), hand)
        self.link("model", ("CheckpointLoaderSimple", 0), (merge, "model2", 0), hand)
        self.link("model", (merge, 0), ("KSampler", "model", 0), hand)
        x, y = self.widget(merge, BLOCK)
        hand.drag((x, y), (x - 50, y))

    def swap(self, hand: Hand) -> None:
        self.choose(1, FIVE[4], hand)

    def read_why(self, hand: Hand) -> None:
        hand.run()
        hand.click(self.page.get_by_text("View details", exact=True))
        self.page.get_by_text("header too large").first.wait_for()
        failed = self.page.evaluate("Number(heard.at(-1).detail.node_id)")
        widgets = f"app.graph.getNodeById({failed}).widgets.map(({{value}}) => value)"
        if _name(BROKEN) not in self.page.evaluate(widgets):
            raise NotPossible("the message names no file, and the node has several")

    def repeat(self, hand: Hand) -> None:
        self.open_earlier(hand)
        self.copy(hand)
        self.paste_here(hand)
        first, last = self.pasted
        for kind in ("model", "clip"):
            self.link(kind, ("CheckpointLoaderSimple", 0), (self.loader, kind, first), hand)
        self.to_end((self.loader, last), hand)

    def copy(self, hand: Hand) -> None:
        """Select the nodes of all adapters."""
        start = self.place(self.loader, "[node.pos[0] - 20, node.pos[1] - 60]")
        end = self.place(self.loader, "[node.pos[0] + node.size[0] + 20, node.pos[1] + node.size[1] + 20]", 2)
        self.page.keyboard.down("Control")
        hand.drag(start, end)
        self.page.keyboard.up("Control")

    def compare(self, hand: Hand) -> None:
        hand.run()
        self.move(0.5, 0, hand)
        hand.run()
        hand.key("a")

    def go_on(self, hand: Hand) -> None:
        raise NotPossible("a training that is stopped keeps nothing")

    def smaller(self, hand: Hand) -> None:
        """The difference of the model with and without the adapter, extracted anew."""
        subtract, save = "ModelMergeSubtract", "LoraSave"
        self.new_node(self.output(self.loader, "model"), subtract, subtract, self.free(0), hand)
        self.link("model", ("CheckpointLoaderSimple", 0), (subtract, "model2", 0), hand)
        self.new_node(self.output(subtract, "model"), save, "Extract and Save Lora", self.free(2), hand)
        hand.send()


class Rgthree(Core):
    """Power Lora Loader, and ComfyUI's own nodes beside it. It is made for the canvas."""

    name = "rgthree"
    loader = "Power Lora Loader (rgthree)"
    pasted = (1, 1)

    def loaders(self, rows: Rows, links: list[list[str]]) -> tuple[dict[str, Any], str]:
        links += [["checkpoint", kind, "loader", kind] for kind in ("MODEL", "CLIP")]
        loras = [{"lora": _name(file), "strength": strength} for file, strength in rows]
        return {"loader": {"type": self.loader, "pos": [400, 0], "loras": loras}}, "loader"

    def part(self, index: int, area: str) -> tuple[float, float]:
        """The middle of a part of a row."""
        row = f"node.widgets.filter(widget => widget.name.startsWith('lora_'))[{index}]"
        bounds = f"{row}.hitAreas.{area}.bounds"
        return self.place(
            self.loader,
            f"[node.pos[0] + {bounds}[0] + {bounds}.at(-1) / 2, node.pos[1] + {row}.last_y + 10]",
        )

    def pick(self, file: str, hand: Hand) -> None:
        hand.click(self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(_name(file), exact=True))

    def add(self, file: str, hand: Hand) -> None:
        hand.click(self.widget(self.loader, "➕ Add Lora"))
        self.pick(file, hand)

    def choose(self, index: int, file: str, hand: Hand) -> None:
        hand.click(self.part(index, "lora"))
        self.pick(file, hand)

    def move(self, strength: float, index: int, hand: Hand) -> None:
        x, y = self.part(index, "strengthAny")
        hand.drag((x, y), (x + round(20 * (strength - 1)), y))

    def add_five(self, hand: Hand) -> None:
        for file in FIVE:
            self.add(file, hand)

    def switch_off(self, hand: Hand) -> None:
        hand.click(self.part(1, "toggle"))

    def reorder(self, hand: Hand) -> None:
        for index in (2, 1):
            hand.click(self.part(index, "lora"), right=True)
            hand.click(self.page.locator(".litecontextmenu .litemenu-entry").get_by_text("Move Up"))

    def copy(self, hand: Hand) -> None:
        hand.click(self.title(self.loader))

    def find(self, hand: Hand) -> None:
        self.look_up(hand)
        self.add(HIDDEN, hand)


class Ours(Side):
    """This pack's rows, on the canvas."""

    name = "ours, canvas"
    loader = "LycorisAdapterRows"

    def loaders(self, rows: Rows, links: list[list[str]]) -> tuple[dict[str, Any], str]:
        text = json.dumps(
            {"rows": [{"file": _name(file), "strength_model": strength} for file, strength in rows]}
        )
        links += [
            ["checkpoint", "MODEL", "apply", "model"],
            ["checkpoint", "CLIP", "apply", "clip"],
            ["rows", "stack", "apply", "stack"],
        ]
        return {
            "rows": {"type": self.loader, "pos": [0, 250], "values": {"rows": text}},
            "apply": {"type": "LycorisApplyStack", "pos": [550, 0]},
        }, "apply"

    def free(self, index: int) -> tuple[float, float]:
        return self.place(self.loader, f"[700, {350 + 190 * index}]")

    def line(self, index: int) -> Locator:
        return self.page.locator(".lycoris-row").nth(index)

    def add_five(self, hand: Hand) -> None:
        hand.click(self.page.get_by_role("button", name="+ Add LoRA / LyCORIS"))
        for file in FIVE:
            hand.click(
                self.page.locator(".lycoris-picker").get_by_title(_name(file), exact=True), control=True
            )

    def switch_off(self, hand: Hand) -> None:
        hand.click(self.line(1).get_by_role("checkbox"))

    def reorder(self, hand: Hand) -> None:
        end = self.line(0).bounding_box()
        assert end
        hand.drag(self.line(2).locator(".lycoris-handle"), (end["x"] + 30, end["y"] + end["height"] / 2))

    def change_three(self, hand: Hand) -> None:
        for index, strength in enumerate(CHANGED):
            field = self.line(index).get_by_label("strength of the model")
            x, y = hand.middle(field)
            hand.drag(field, (x + round(STEP * (strength - 1)), y))

    def find(self, hand: Hand) -> None:
        hand.click(self.page.get_by_role("button", name="+ Add LoRA / LyCORIS"))
        hand.type(TRIGGER)
        self.page.wait_for_timeout(1000)
        hand.key("Enter")

    def half_block(self, hand: Hand) -> None:
        hand.click(self.line(0).locator(".lycoris-spark"))
        track = self.page.locator("[data-bar='in.1'] .lycoris-block-track")
        track.wait_for()
        self.page.wait_for_timeout(1000)
        x, y = hand.middle(track)
        box = track.bounding_box()
        assert box
        # A bar goes from 0 to 1.5.
        hand.drag((x, y - box["height"] / 6), (x, y + box["height"] / 6))
        hand.click(self.page.get_by_role("button", name="Done"))

    def repeat(self, hand: Hand) -> None:
        hand.click(self.page.get_by_title("More", exact=True))
        hand.click(self.page.get_by_role("button", name="Sets of rows…"))
        hand.click(self.page.locator(".lycoris-sets button").first)

    def read_why(self, hand: Hand) -> None:
        hand.send(blocked=False)
        self.page.get_by_text(f"{BROKEN}.safetensors: this is a web page").first.wait_for()

    def go_on(self, hand: Hand) -> None:
        folder = self.base / "input" / "clicks"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("crimson", "navy"):
            Image.new("RGB", (64, 64), name).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(f"{name}", encoding="utf-8")
        self.page.evaluate("app.graph.clear()")
        self.page.evaluate(BUILD, list(TRAINING))
        self.ui.drawn(self.vue_nodes)
        self.ui.press_run()
        told = self.page.locator(".lycoris-training .words")
        told.get_by_text(re.compile(rf"^Step [3-9] of {STEPS}")).wait_for(timeout=LONG)
        hand.click(self.page.get_by_role("button", name="Cancel current run"))
        self.page.locator(".lycoris-training[data-stage=stopped]").wait_for(timeout=LONG)
        hand.click(self.page.get_by_role("button", name="Continue"))
        told.get_by_text(re.compile(rf"^Step ([4-9]|[1-9][0-9]) of {STEPS}")).wait_for(timeout=LONG)
        self.page.evaluate("void app.api.interrupt()")

    def compare(self, hand: Hand) -> None:
        hand.run()
        field = self.line(0).get_by_label("strength of the model")
        x, y = hand.middle(field)
        hand.drag(field, (x - round(STEP / 2), y))
        hand.run()
        hand.key("a")

    def smaller(self, hand: Hand) -> None:
        self.new_node(self.output(self.loader, "stack"), "", "Resize / Convert LoRA", self.free(0), hand)
        resize = self.output("LycorisResizeAdapter", "stack")
        self.new_node(resize, "", "Save LoRA / LyCORIS", self.free(2), hand)
        hand.send()

    def swap(self, hand: Hand) -> None:
        hand.click(self.line(1).locator(".lycoris-file"))
        hand.click(self.page.locator(".lycoris-picker").get_by_title(_name(FIVE[4]), exact=True))


class OursInVue(Ours):
    """This pack's rows where Vue draws the nodes."""

    name = "ours, Vue"
    vue_nodes = True


SIDES: tuple[type[Side], ...] = (Core, Rgthree, Ours, OursInVue)


@dataclass(frozen=True)
class Task:
    """What is to be done, with the adapters that are there before it."""

    words: str
    start: Rows
    check: Callable[[Side], bool]
    before: Rows | None = None
    """The adapters of a picture that was made earlier."""


THREE: Rows = [("loha", 1.0), ("lokr", 1.0), ("lora", 1.0)]
EARLIER: Rows = [(file, strength) for (file, _), strength in zip(THREE, CHANGED, strict=True)]


def _uses(*rows: tuple[str, float]) -> Callable[[Side], bool]:
    return lambda side: side.used() == list(rows)


def _half(side: Side) -> bool:
    prompt = side.ui.prompt()
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
    source = prompt[sampler["inputs"]["model"][0]]
    if source["class_type"] == "ModelMergeSD1":
        return {value for value in source["inputs"].values() if value == 0.5} == {0.5}
    (row,) = json.loads(prompt[source["inputs"]["stack"][0]]["inputs"]["rows"])["rows"]
    return row["rules"].replace(" ", "").endswith("=0.5")


def _two_pictures(side: Side) -> bool:
    """Whether the list of results shows the pictures of both runs."""
    pictures = sorted((side.base / "output").glob("*.png"))
    strengths = [side.applied(prompt, _sampled(prompt)) for prompt in map(_prompt_of, pictures)]
    shown = [side.page.locator(f"img[src*='{picture.name}']").count() for picture in pictures]
    return strengths == [[("loha", 1.0)], [("loha", 0.5)]] and all(shown)


def _prompt_of(picture: Path) -> dict[str, Any]:
    return json.loads(Image.open(picture).info["prompt"])


def _sampled(prompt: dict[str, Any]) -> str:
    (sampler,) = (node for node in prompt.values() if node["class_type"] == "KSampler")
    return sampler["inputs"]["model"][0]


def _smaller(side: Side) -> bool:
    """Whether a file is written of the adapter alone, in a size that was asked for."""
    prompt = side.ui.prompt()
    (save,) = (
        node["inputs"] for node in prompt.values() if node["class_type"] in {"LoraSave", "LycorisSaveAdapter"}
    )
    source = prompt[save["model_diff" if "model_diff" in save else "stack"][0]]
    if source["class_type"] == "ModelMergeSubtract":
        first, second = (side.applied(prompt, source["inputs"][f"model{number}"][0]) for number in (1, 2))
        return (first, second) == (THREE[2:], []) and save["rank"] < 16
    return source["class_type"] == "LycorisResizeAdapter"


TASKS = {
    "add_five": Task("add five files", [], _uses(*((file, 1.0) for file in FIVE))),
    "change_three": Task(
        "change three strengths",
        THREE,
        _uses(*EARLIER),
    ),
    "switch_off": Task("switch one off", THREE, _uses(THREE[0], THREE[2])),
    "reorder": Task("put the last of three first", THREE, _uses(THREE[2], THREE[0], THREE[1])),
    "find": Task("find a file by its trigger word", THREE[:1], _uses(THREE[0], (HIDDEN, 1.0))),
    "half_block": Task("set one block to half", THREE[:1], _half),
    "swap": Task("swap a file", THREE, _uses(THREE[0], (FIVE[4], 1.0), THREE[2])),
    "read_why": Task("read why it failed", [THREE[0], (BROKEN, 1.0)], lambda _: True),
    "repeat": Task("repeat last week's set", [], _uses(*EARLIER), EARLIER),
    "compare": Task("compare two strengths", THREE[:1], _two_pictures),
    "go_on": Task("stop a training and go on", [], lambda _: True),
    "smaller": Task("make a smaller file", THREE[2:], _smaller),
}


def counted(side: Side, name: str) -> tuple[int | None, str]:
    """How much a task takes on a side, and why it cannot be done."""
    task, hand = TASKS[name], Hand(side.ui)
    if not hasattr(side, name):
        return None, "not written"
    for old in (side.base / "output").rglob("*.*"):
        old.unlink()
    if task.before:
        side.start(task.before)
        side.ui.run()
    side.start(task.start)
    try:
        getattr(side, name)(hand)
    except NotPossible as why:
        return None, str(why)
    for _ in range(50):
        if task.check(side):
            return hand.count, ""
        side.page.wait_for_timeout(100)
    raise AssertionError(f"{side.name}: {task.words}: {side.used()}")


def _files(base: Path) -> None:
    """The adapters beside those of the tests."""
    folder = base / "models" / "loras"
    tensors = load_file(assets() / "loras" / "lora.safetensors")
    told = {"modelspec.trigger_phrase": TRIGGER, "modelspec.title": "Sumi"}
    save_file(tensors, folder / _name(HIDDEN), told)
    (folder / _name(BROKEN)).write_text("<!DOCTYPE html>\n<p>Please sign in</p>\n" * 20, encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clicks", description="Count clicks.")
    parser.add_argument("--rgthree", type=Path, help="a copy of rgthree-comfy's repository")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--side", nargs="+", choices=[side.name for side in SIDES], metavar="SIDE")
    options = parser.parse_args(arguments)
    known = facts()
    if known.chromium is None:
        sys.exit(f"no Chromium could be had: {known.no_chromium}")
    base = base_directory(ROOT / ".cache" / known.host / "clicks", ROOT)
    theirs = base / "custom_nodes" / "rgthree-comfy"
    theirs.unlink(missing_ok=True)
    if options.rgthree:
        theirs.symlink_to(options.rgthree.resolve(), target_is_directory=True)
    for part in ("output", "user"):
        shutil.rmtree(base / part, ignore_errors=True)
        (base / part).mkdir()
    _files(install(base))
    sides = [
        side
        for side in SIDES
        if (side is not Rgthree or options.rgthree) and side.name in (options.side or side.name)
    ]
    found: dict[str, dict[str, tuple[int | None, str]]] = {name: {} for name in options.only}
    with chromium(known.chromium) as browser, Server(known.comfyui, base) as server:
        for side in sides:
            for name in options.only:
                # A page that knows nothing of the task before.
                with page(browser, server, base) as ui:
                    ui.render_with_vue(side.vue_nodes)
                    found[name][side.name] = counted(side(ui, base), name)
                count, why = found[name][side.name]
                print(f"{side.name}: {TASKS[name].words}: {why if count is None else count}", flush=True)
    print("\n".join(_table(found, [side.name for side in sides])))


def _table(found: dict[str, dict[str, tuple[int | None, str]]], sides: list[str]) -> Iterator[str]:
    yield f"| task | {' | '.join(sides)} |"
    yield f"|---|{'---|' * len(sides)}"
    notes = list[str]()
    for name, counts in found.items():
        cells = list[str]()
        for side in sides:
            count, why = counts[side]
            cells.append("not possible" if count is None else str(count))
            notes += [f"{side}, {TASKS[name].words}: {why}."] if why else []
        yield f"| {TASKS[name].words} | {' | '.join(cells)} |"
    yield from ["", *notes]


if __name__ == "__main__":
    main(sys.argv[1:])
