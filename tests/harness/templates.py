"""The templates in `workflows/`, and what the tests, the demo and the thumbnails choose in them.

A template names no adapter, and a checkpoint that users may not have. Its sizes and steps are those of a real
picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .facts import ROOT
from .workflow import with_values

FOLDER = ROOT / "workflows"
TEMPLATES = tuple(sorted(file.stem for file in FOLDER.glob("*.json")))
BLEND = "01 Blend LoRA and LyCORIS files"
EXPORT = "08 Merge LoRA and LyCORIS files into a checkpoint"
CONVERT = "07 Convert LoRA and LyCORIS files"
EXTRACT = "06 Shrink and extract LoRA and LyCORIS files"
TRAIN = "10 Train a LoRA or LyCORIS file"
WRITING = {EXPORT: "LycorisSaveCheckpoint", CONVERT: "LycorisSaveAdapter"}
"""Templates that are there to write a file, with the node that does. In others such nodes are muted."""

PICTURES = "my_style"
"""The folder of pictures that TRAIN names."""

Values = Mapping[str, Mapping[str, Any]]
"""Type of node -> input -> value."""

FILES = (("lora.safetensors", 0.8), ("loha.safetensors", 0.5), ("lokr.safetensors", 0.6))
"""Adapters of `assets` with strengths."""
ONE_FILE = {CONVERT: FILES[:1], EXTRACT: FILES[2:]}
"""Those for templates that can save no more than one."""

SMALL: Values = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "EmptySD3LatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 1},
    "LycorisDataset": {"resolution": 96, "held_out": 1},
    "LycorisTrain": {"steps": 4, "learning_rate": 2e-3, "rank": 2},
}
"""Sizes with which a template takes seconds on a CPU."""


def template(name: str) -> dict[str, Any]:
    """A template, as the front end saves it."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def rows(*strengths: tuple[str, float]) -> str:
    """The text of rows of files."""
    found = [{"file": file, "strength_model": strength} for file, strength in strengths]
    return json.dumps({"version": 1, "rows": found})


def chosen(name: str) -> Values:
    """The files of `assets` that a user of a template has to choose."""
    return {
        "CheckpointLoaderSimple": {"ckpt_name": "base.safetensors"},
        "LycorisSaveCheckpoint": {"base": "checkpoints/base.safetensors"},
        "LycorisAdapterRows": {"rows": rows(*ONE_FILE.get(name, FILES))},
    }


def ready(name: str, object_info: dict[str, Any], *values: Values) -> dict[str, Any]:
    """A template with the files chosen, and other values."""
    graph = template(name)
    for each in (chosen(name), *values):
        graph = with_values(graph, object_info, each)
    return graph


def draw_pictures(folder: Path) -> None:
    """Two small pictures of different shapes, with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour, size in (("red", "crimson", (96, 96)), ("blue", "navy", (128, 96))):
        picture = Image.new("RGB", size, "beige")
        ImageDraw.Draw(picture).ellipse([16, 16, size[0] - 16, size[1] - 16], fill=colour)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} disc", encoding="utf-8")
