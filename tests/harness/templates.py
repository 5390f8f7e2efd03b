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
from .workflow import ACTIVE, with_values

FOLDER = ROOT / "workflows"
TEMPLATES = tuple(sorted(file.stem for file in FOLDER.glob("*.json")))
BLEND = "01 Blend LoRA and LyCORIS files"
EXPORT = "08 Bake LoRA and LyCORIS files into a checkpoint"
CONVERT = "07 Convert LoRA and LyCORIS files"
EXTRACT = "06 Shrink and extract LoRA and LyCORIS files"
TRAIN = "10 Train a LoRA or LyCORIS file"
EDIT = "13 Train edits into a LoRA or LyCORIS file"
CLIPS = "14 Train clips into a LoRA or LyCORIS file"
SLIDER = "15 Train a slider as a LoRA or LyCORIS file"
JUDGE = "16 Judge LoRA or LyCORIS checkpoints"
SLOW = (EXTRACT, SLIDER, JUDGE)
"""Templates of many passes of the model or of a long fit, which `make test` does not run."""
WRITING = {EXPORT: "LycorisSaveCheckpoint", CONVERT: "LycorisSaveAdapter"}
"""Templates that are there to write a file, with the node that does. In others such nodes are muted."""

PICTURES, PAIRS, FILMS = "my_style", "my_edits", "my_clips"
"""The folders that TRAIN and JUDGE, EDIT and CLIPS name."""
EXAMPLE = "example.png"
"""The picture that EDIT names, which comes with the host."""

Values = Mapping[str, Mapping[str, Any]]
"""Type of node -> input -> value."""

FILES = (("lora.safetensors", 0.8), ("loha.safetensors", 0.5), ("lokr.safetensors", 0.6))
"""Adapters of `assets` with strengths."""
ONE_FILE = {CONVERT: FILES[1:2], EXTRACT: FILES[2:]}
"""Those for templates that can save no more than one."""
PARTS = {EDIT: ("flux2", "flux2_vae"), CLIPS: ("wan", "wan_vae")}
"""The model and the VAE of `assets.PARTS` for templates that load them."""

SMALL: Values = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "EmptySD3LatentImage": {"width": 64, "height": 64},
    "EmptyHunyuanLatentVideo": {"width": 64, "height": 64, "length": 5},
    "ImageScaleToTotalPixels": {"megapixels": 0.01},
    "KSampler": {"steps": 1},
    "LycorisDataset": {"resolution": 96, "held_out": 1, "frames": 5},
    "LycorisTrain": {"steps": 4, "learning_rate": 2e-3, "rank": 2, "output.checkpoint_every": 2},
    "LycorisSlider": {"steps": 2, "learning_rate": 2e-3, "pictures": 1},
    "LycorisJudge": {"times": 1},
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
    model, vae = PARTS.get(name, ("", ""))
    return {
        "UNETLoader": {"unet_name": f"{model}.safetensors"},
        "CLIPLoader": {"clip_name": "clip_l.safetensors"},
        "VAELoader": {"vae_name": f"{vae}.safetensors"},
        "CheckpointLoaderSimple": {"ckpt_name": "base.safetensors"},
        "LycorisSaveCheckpoint": {"base": "checkpoints/base.safetensors"},
        "LycorisAdapterRows": {"rows": rows(*ONE_FILE.get(name, FILES))},
    }


def ready(name: str, object_info: dict[str, Any], *values: Values) -> dict[str, Any]:
    """A template with the files chosen, and other values. Only nodes that write files stay muted."""
    graph = template(name)
    for each in (chosen(name), *values):
        graph = with_values(graph, object_info, each)
    for node in graph["nodes"]:
        if node["type"] not in WRITING.values():
            node["mode"] = ACTIVE
    return graph


def draw_pictures(folder: Path) -> None:
    """Two small pictures of different shapes, with their captions, in the folders that templates name.

    folder: the host's for inputs.
    """
    for name, colour, size in (("red", "crimson", (96, 96)), ("blue", "navy", (128, 96))):
        put(folder, name, f"a {name} disc", _disc(colour, size), _disc("grey", size))
    _disc("grey", (96, 96)).save(folder / EXAMPLE)


def put(folder: Path, name: str, caption: str, picture: Image.Image, before: Image.Image) -> None:
    """A picture with its caption in PICTURES, with `before` as its reference in PAIRS, and a pan over it
    in FILMS."""
    for kind in (PICTURES, PAIRS, FILMS):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{name}.txt").write_text(caption, encoding="utf-8")
    for kind in (PICTURES, PAIRS):
        picture.save(folder / kind / f"{name}.png")
    before.save(folder / PAIRS / f"{name}_control.png")
    width, height = picture.size
    side = min(width, height) - 8
    frames = [picture.crop((place, place, place + side, place + side)) for place in range(8)]
    # At 16 frames a second, in hundredths of a second.
    frames[0].save(folder / FILMS / f"{name}.gif", save_all=True, append_images=frames[1:], duration=60)


def _disc(colour: str, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, "beige")
    ImageDraw.Draw(picture).ellipse([16, 16, size[0] - 16, size[1] - 16], fill=colour)
    return picture
