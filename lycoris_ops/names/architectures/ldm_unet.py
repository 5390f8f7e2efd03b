"""The UNet of SD1.5, SD2 and SDXL: its own layout beside the names of diffusers.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`. Levels and blocks are counted from the paths themselves,
so that any number of them works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...maths.shapes import Shape
from .notation import Layout, Meaning, Table, names_of, same, under

ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ADDED = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""The embedding of the vector beside the prompt in SDXL."""
CLASSES = {
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
}
"""The same layers in SD 2.1 unCLIP, where diffusers calls the vector a class."""
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
# Distilled models leave out the transformer in the middle, or all of it.
MIDDLE = {
    **under("mid_block.resnets.0", "middle_block.0", RESNET),
    **under("mid_block.attentions.0", "middle_block.1", TRANSFORMER),
    **under("mid_block.resnets.1", "middle_block.2", RESNET),
}


def table(shapes: Mapping[str, Shape]) -> Table:
    """The table for one UNet.

    Each layer in a numbered block of the model is a resnet, a transformer or a resampler in a level of
    diffusers' model. Which one it is shows in the names of the layers below it.
    """
    layers: dict[str, dict[int, dict[int, set[str]]]] = {"input_blocks": {}, "output_blocks": {}}
    for path in shapes:
        if match := PLACE.match(path):
            side, block, layer, child = match.groups()
            layers[side].setdefault(int(block), {}).setdefault(int(layer), set()).add(child)
    return {
        **ENDS,
        # SDXL and its relatives have no transformers in the first level; SD 2.1 unCLIP has.
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
    found: dict[str, Meaning] = {}
    level, number = 0, 0
    for block, layers in sorted(blocks.items()):
        resamples = False
        for layer, children in sorted(layers.items()):
            place = f"{ours}.{block}.{layer}"
            if resampler in children:
                found[f"{theirs}.{level}.{resampled}"] = f"{place}.{resampler}"
                resamples = True
            elif "in_layers" in children:
                found |= under(f"{theirs}.{level}.resnets.{number}", place, RESNET)
            else:
                found |= under(f"{theirs}.{level}.attentions.{number}", place, TRANSFORMER)
        level, number = (level + 1, 0) if resamples else (level, number + 1)
    return found


diffusers, aliases = names_of(
    # In diffusers SVD has other names: its class has the layers for time beside those for space. The host's
    # own map gives SVD the names of the other UNets, so they are entered as other names.
    Layout(
        ("input_blocks.0.0", "input_blocks.1.0.time_stack.in_layers.2"),
        others=lambda shapes: {**table(shapes), **ADDED},
    ),
    Layout(("input_blocks.0.0", "input_blocks.1.0.in_layers.2"), table, {**ADDED, **CLASSES}),
)

BLOCKS = ("input_blocks.*.*", "middle_block.*", "output_blocks.*.*")
aside = {
    **{
        f"{block}{end}": "modulation" for block in BLOCKS for end in (".emb_layers", ".time_stack.emb_layers")
    },
    # SVD.
    **{f"{block}.time_pos_embed": "embedders of the numbers of frames" for block in BLOCKS},
}
