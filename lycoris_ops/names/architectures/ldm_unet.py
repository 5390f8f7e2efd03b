"""The UNet of SD1.5, SD2 and SDXL: maps diffusers' names to the original layout.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`. Levels and blocks are counted from the paths themselves,
so that any number of them works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...maths.shapes import Shape
from .notation import SEQUENCE, Layout, Meaning, Table, same, under
from .record import Architecture, Family, Vector

ENDS = {
    "conv_in": "input_blocks.0.0",
    **under("time_embedding", "time_embed", SEQUENCE),
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ADDED = under("add_embedding", "label_emb.0", SEQUENCE)
"""SDXL's embedding of the pooled text and the sizes."""
CLASSES = under("class_embedding", "label_emb.0", SEQUENCE)
"""The same layers in SD 2.1 unCLIP, where they embed an image. diffusers calls it a class."""
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PLACE = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(\w+)")
TRANSFORMER = same("norm", "proj_in", "proj_out", "transformer_blocks.**")
# Distilled models leave out the transformer in the middle, or the whole middle.
MIDDLE = {
    **under("mid_block.resnets.0", "middle_block.0", RESNET),
    **under("mid_block.attentions.0", "middle_block.1", TRANSFORMER),
    **under("mid_block.resnets.1", "middle_block.2", RESNET),
}


def table(shapes: Mapping[str, Shape]) -> Table:
    """The table for one UNet.

    Each layer in a numbered block of the model is a resnet, a transformer or a resampler in a level of
    diffusers' model. The names of the layers below it show which.
    """
    layers: dict[str, dict[int, dict[int, set[str]]]] = {"input_blocks": {}, "output_blocks": {}}
    for path in shapes:
        if match := PLACE.match(path):
            side, block, layer, child = match.groups()
            layers[side].setdefault(int(block), {}).setdefault(int(layer), set()).add(child)
    return {
        **ENDS,
        # SDXL and its relatives have no transformers in the first level; SD 2.1 unCLIP has some.
        **(CLASSES if "input_blocks.1.1.proj_in" in shapes else ADDED),
        **MIDDLE,
        **_side(layers["input_blocks"], "input_blocks", "down_blocks", "op", "downsamplers.0.conv"),
        **_side(layers["output_blocks"], "output_blocks", "up_blocks", "conv", "upsamplers.0.conv"),
    }


def _side(
    blocks: Mapping[int, Mapping[int, set[str]]], ours: str, theirs: str, resampler: str, resampled: str
) -> Table:
    """The names on the way down or up. A resampler is the last layer of its level.

    ours, theirs: the list of blocks in the model and in diffusers. resampler, resampled: the layer of a
    resampler in the model and in diffusers.
    """
    names: dict[str, Meaning] = {}
    level, number = 0, 0
    for block, layers in sorted(blocks.items()):
        resamples = False
        for layer, children in sorted(layers.items()):
            path = f"{ours}.{block}.{layer}"
            if resampler in children:
                names[f"{theirs}.{level}.{resampled}"] = f"{path}.{resampler}"
                resamples = True
            elif "in_layers" in children:
                names |= under(f"{theirs}.{level}.resnets.{number}", path, RESNET)
            else:
                names |= under(f"{theirs}.{level}.attentions.{number}", path, TRANSFORMER)
        level, number = (level + 1, 0) if resamples else (level, number + 1)
    return names


MARKS = ("input_blocks.0.0", "input_blocks.1.0.in_layers.2")
WITH_VECTOR = (*MARKS, "label_emb.0.0")
"""The marks of a UNet with a vector embedding besides the prompt, as in SDXL."""
PLACES = ("input_blocks.*.*", "middle_block.*", "output_blocks.*.*")
LIKE = r"(input|output|middle|down|up|mid)_blocks?_.*(attn|resnets|in_layers|proj_in)"
CROSS = r"(?!.*motion)(input|output|middle|down|up|mid)_blocks?_.*attn2_to_[kv]$"

KEPT = {
    # LBW's presets of 17 numbers (`scripts/lora_block_weight.py`) by block name, so that they fit any UNet.
    "INS": "in.1 in.2 in.4",
    "IND": "in.5 in.7 in.8",
    "INALL": "in.1 in.2 in.4 in.5 in.7 in.8",
    "MIDD": "in.5 in.7 in.8 mid out.3-6",
    "OUTD": "out.3-6",
    "OUTS": "out.7-11",
    "OUTALL": "out.3-11",
    # The Inspire Pack's, for LoRA on SDXL.
    "SDXL-INALL": "in.4 in.5 in.7 in.8",
    "SDXL-MIDALL": "mid",
    "SDXL-OUTALL": "out.0-5",
}
"""The blocks that a preset keeps."""
# The Inspire Pack's presets (`resources/lbw-preset.txt`) with numbers other than 0 and 1.
RULES = {
    "MIDD0.2": "in.8 = 0.2\nmid out.3 = 0.4\nout.4 = 0.2",
    "MIDD0.8": "in.7 = 0.5\nin.8 mid = 0.8\nout.3 = 0.4",
    "MOUT": "in.8 mid out.3-8 = 1\nout.9 = 0.5",
}


def _vector(title: str, inputs: Iterable[int], outputs: Iterable[int], count: int) -> Vector:
    blocks = [("te",), *((f"in.{n}",) for n in inputs), ("mid",), *((f"out.{n}",) for n in outputs)]
    return Vector(title, tuple(blocks), {"in": count, "out": count})


ARCHITECTURE = Architecture(
    layouts=(
        # diffusers has other names for SVD, with layers for time beside the layers for space. But files may
        # use the names of the other UNets, as the host's own map does, so these are read too.
        Layout(
            (*WITH_VECTOR, "input_blocks.1.0.time_stack.in_layers.2"),
            others=lambda shapes: {**table(shapes), **ADDED},
            component="unet",
        ),
        Layout(WITH_VECTOR, table, {**ADDED, **CLASSES}, component="unet"),
        Layout(MARKS, table, component="unet", kohya_has_diffusers=True),
    ),
    aside={
        **dict.fromkeys((f"{path}.emb_layers" for path in PLACES), "modulation"),
        **dict.fromkeys((f"{path}.time_stack.emb_layers" for path in PLACES), "modulation"),
        # SVD.
        **dict.fromkeys((f"{path}.time_pos_embed" for path in PLACES), "embedders of frame numbers"),
    },
    tokens={
        **dict.fromkeys(("emb_layers", "time_stack", "time_pos_embed", "time_mixer"), "text"),
        **dict.fromkeys((f"transformer_blocks.*.attn2.to_{letter}" for letter in "kv"), "for places"),
        **dict.fromkeys((*PLACES, "out"), "level"),
    },
    lists={"input_blocks": "in", "middle_block": "mid", "output_blocks": "out"},
    families=(
        Family("SD 1.5", r"stable-diffusion-v1|^sd_?v?1", like=LIKE, width=(CROSS, 768)),
        Family("SD 2", r"stable-diffusion-v2|^sd_?v?2", like=LIKE, width=(CROSS, 1024)),
        Family("SDXL", r"stable-diffusion-xl|sdxl", like=LIKE, width=(CROSS, 2048)),
        Family("the SDXL refiner", r"stable-diffusion-xl.*refiner", like=LIKE, width=(CROSS, 1280)),
    ),
    presets={
        **{name: f"in mid out = 0\n{blocks} = 1" for name, blocks in KEPT.items()},
        **{name: f"in mid out = 0\n{lines}" for name, lines in RULES.items()},
    },
    vectors=(
        _vector("LyCORIS on SD1 and SD2", range(12), range(12), 12),
        _vector("LoRA on SD1 and SD2", (1, 2, 4, 5, 7, 8), range(3, 12), 12),
        _vector("LoRA on SDXL", (4, 5, 7, 8), range(6), 9),
        _vector("LyCORIS on SDXL", range(9), range(9), 9),
    ),
)
