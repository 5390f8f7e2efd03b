"""A model's family and blocks, from the headers of its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import MatchError
from ..messages import either
from ..names.blocks import Blocks
from ..names.families import Families
from ..names.model_files import read_shapes
from ..names.targets import Targets
from ..stack.resolve import families_of_model
from ..stack.survey import blocks_of


@dataclass(frozen=True)
class AboutModel:
    """What the keys and shapes of a model say about it."""

    families: Families
    """The families that it may belong to, to compare with an adapter's; () for none known."""
    family: str
    """The families in words; "" for none known."""
    blocks: Blocks


def about_model(paths: Sequence[str | os.PathLike[str]]) -> AboutModel:
    """What the files of a model say about it: the diffusion model or checkpoint, then text encoders.

    Only the headers are read. A file is left out if an earlier one holds one of its text encoders or layers.
    Raises FileFormatError for a file that is not safetensors.
    """
    taken = list(paths[:1])
    shapes = read_shapes(taken)
    for path in paths[1:]:
        # Two files may name the layers of one encoder differently.
        if Targets(shapes).encoders.isdisjoint(Targets(read_shapes([path])).encoders):
            with suppress(MatchError):
                shapes = read_shapes([*taken, path])
                taken.append(path)
    blocks = blocks_of(shapes)
    families = families_of_model(blocks.targets)
    return AboutModel(families, either(families), blocks)
