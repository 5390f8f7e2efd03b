"""The UNet of SD1.5, SD2 and SDXL: its own layout beside the names of diffusers.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`. Levels and blocks are counted from the paths themselves,
so that any number of them works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ...algebra import Shape
from .notation import Layout, Meaning, Table, names_of, same, under

ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CLASSES = {
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
}
"""What diffusers calls the same where it embeds a class, as in SD 2.1 unCLIP."""
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TRANSFORMER = same("norm", "proj_in", "proj_out", "transformer_blocks.**")
MIDDLE = {
    **under("mid_block.resnets.0", "middle_block.0", RESNET),
    **under("mid_block.attentions.0", "middle_block.1", TRANSFORMER),
    **under("mid_block.resnets.1", "middle_block.2", RESNET),
}


def table(shapes: Mapping[str, Shape]) -> Table:
    """With each of our numbered blocks as a resnet, transformer or resampler of a level of theirs."""
    places = {place for path in shapes if (place := ".".join(path.split(".")[:3]))}
    return {
        **ENDS,
        **MIDDLE,
        **dict(_levels(places, "input_blocks", "down_blocks", "op", "downsamplers.0.conv", first=1)),
        **dict(_levels(places, "output_blocks", "up_blocks", "conv", "upsamplers.0.conv", first=0)),
    }


def _levels(
    places: Iterable[str], ours: str, theirs: str, resampler: str, resampled: str, *, first: int
) -> Iterator[tuple[str, Meaning]]:
    """The blocks of one side, `first` and later. A resampler is the last layer of its level."""
    layers: dict[int, dict[str, set[str]]] = {}
    for place in places:
        root, *numbers = place.split(".")
        if root == ours and int(numbers[0]) >= first:
            layers.setdefault(int(numbers[0]), {})
    yield from ()
