"""Read the keys and shapes of a model from one or several files."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import MatchError
from ..files.model_file import ModelFile
from ..maths.shapes import Shape
from .targets import Targets, host_name


def read_shapes(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Shape]:
    """The keys and shapes of a model in one or several files. Only the headers are read.

    Each is a safetensors file, the index of several, or the folder of either. A file of one component of a
    model often has keys without a prefix. With several files, such keys get the host's prefix of their
    component.

    Raises MatchError where two files hold the same layer, FileFormatError for a file of another kind.
    """
    if len(paths) == 1:
        return _read(paths[0])
    together: dict[str, Shape] = {}
    for path in paths:
        shapes = _read(path)
        prefix = _prefix(Targets(shapes))
        for key, shape in shapes.items():
            name = key if key.startswith(prefix) else f"{prefix}{key}"
            if name in together:
                raise MatchError("E-model-files-overlap", file=str(path), key=key)
            together[name] = shape
    return together


def _read(path: str | os.PathLike[str]) -> dict[str, Shape]:
    return {key: info.shape for key, info in ModelFile.open(path).tensors.items()}


def _prefix(targets: Targets) -> str:
    """The host's prefix for the component of a model that a file holds; "" for several components or an
    unknown one."""
    if len(targets.components) > 1:
        return ""
    if None in targets.components:
        return host_name("", "unet")
    return host_name("", "te", *targets.encoders) if len(targets.encoders) == 1 else ""
