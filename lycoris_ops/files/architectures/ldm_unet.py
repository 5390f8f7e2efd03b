"""The UNet of SD1.5, SD2 and SDXL: its own layout beside the names of diffusers.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`. Levels and blocks are counted from the paths themselves,
so that any number of them works.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ...algebra import Shape
from .base import Places, whole
from .patterns import followed

FIXED = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
CLASSES = {
    "label_emb.0.0": "class_embedding.linear_1",
    "label_emb.0.2": "class_embedding.linear_2",
}
"""What diffusers calls the same where it embeds a class, as in SD 2.1 unCLIP."""
MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    known = set(shapes)
    # Not by the middle: a distilled model (KOALA 700M) has none.
    if not {"input_blocks.0.0", "input_blocks.1.0.in_layers.2"} <= known:
        return {}
    names = {
        **_places(known, "input_blocks", "down_blocks", "op", "downsamplers.0.conv", first=1),
        **_places(known, "output_blocks", "up_blocks", "conv", "upsamplers.0.conv", first=0),
        **{f"middle_block.{ours}": f"mid_block.{theirs}" for ours, theirs in MIDDLE.items()},
    }
    found: dict[str, str] = {}
    for path in shapes:
        if path in FIXED:
            found[FIXED[path]] = path
        elif path in names:
            found[names[path]] = path
        elif match := re.match(r"((?:input|output)_blocks\.\d+\.\d+|middle_block\.\d+)\.(.+)$", path):
            place, rest = match.groups()
            if place in names:
                found[f"{names[place]}.{RESNET.get(rest, rest)}"] = path
    return whole(found)


def aliases(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """What follows from diffusers' names, and its other names of one layer."""
    names = diffusers(shapes)
    classes = {CLASSES[path]: path for path in shapes if path in CLASSES} if names else {}
    return {**followed(shapes, names), **whole(classes)}


def _places(
    known: set[str], ours: str, theirs: str, resampler: str, resampled: str, *, first: int
) -> dict[str, str]:
    """Each numbered place to diffusers' name. A resampler is the last layer of its level."""
    names: dict[str, str] = {}
    level, resnet = 0, 0
    for block, parts in _blocks(known, ours, first):
        resamples = False
        for part in parts:
            place = f"{ours}.{block}.{part}"
            if f"{place}.{resampler}" in known:
                names[f"{place}.{resampler}"] = f"{theirs}.{level}.{resampled}"
                resamples = True
            elif f"{place}.in_layers.2" in known:
                names[place] = f"{theirs}.{level}.resnets.{resnet}"
            else:
                names[place] = f"{theirs}.{level}.attentions.{resnet}"
        level, resnet = (level + 1, 0) if resamples else (level, resnet + 1)
    return names


def _blocks(known: set[str], ours: str, first: int) -> Iterator[tuple[int, list[int]]]:
    parts: dict[int, set[int]] = {}
    for path in known:
        if match := re.match(rf"{ours}\.(\d+)\.(\d+)\.", path):
            parts.setdefault(int(match[1]), set()).add(int(match[2]))
    for block in sorted(parts):
        if block >= first:
            yield block, sorted(parts[block])
