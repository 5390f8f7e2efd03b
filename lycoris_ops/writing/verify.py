"""Reads a written file back, and compares it with the layers that it should hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..algorithms import Layer
from ..errors import LayerError, LycorisError, WriteError
from ..files.cache import TensorCache
from ..files.safetensors_file import SafetensorsFile
from ..files.tensor_file import Fingerprint
from ..layers.same import difference
from ..reading.load import read_adapter

NAMED = 3
"""How many of the layers that are missing, or that should not be there, the error names."""


def check_written(
    paths: Sequence[Path], layers: Mapping[str, Layer], loose: Sequence[str], out: Path
) -> None:
    """Raise WriteError unless the file written holds exactly these layers, and the `loose` keys too.

    `paths` has the file and the PEFT configuration that belongs to it, if there is one. They may have any
    names. `out` is the name that the file gets when it is right; the error names it.
    """
    try:
        file, config = paths[0], next(map(Fingerprint.of, paths[1:]), None)
        # A cache of its own that keeps nothing: the layers are each read once.
        found = read_adapter(SafetensorsFile.open(file), config, TensorCache(0))
        if set(found.info) != set(layers) or not set(loose) <= set(found.file.tensors):
            strange = sorted(set(found.info).symmetric_difference(layers))
            raise LayerError("it holds other layers", got=", ".join(strange[:NAMED]) or "other keys")
        for name, layer in layers.items():
            if wrong := difference(layer, found.layer(name, keep=False)):
                raise LayerError("a layer differs from its source", got=f"{name}: {wrong}")
    except LycorisError as error:
        raise WriteError(
            f"the file that was written is not what it should be: {error.problem}; please report this",
            file=str(out),
            key=error.key,
            got=error.got,
            hint="Nothing was left behind, and an earlier file of that name is untouched",
        ) from error
