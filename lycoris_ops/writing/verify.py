"""Reads a written file back, and compares it with its source."""

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
"""How many missing or unexpected layers the error names."""


def check_written(
    paths: Sequence[Path], layers: Mapping[str, Layer], loose: Sequence[str], out: Path
) -> None:
    """Raise WriteError unless the file written holds exactly these layers, and the `loose` keys too.

    `paths` are the file and, for PEFT, its configuration. They may still have temporary names: `out` is the
    file's final name, for the error.
    """
    try:
        file, config = paths[0], next(map(Fingerprint.of, paths[1:]), None)
        # Without a cache: each layer is read once.
        found = read_adapter(SafetensorsFile.open(file), config, TensorCache(0))
        if set(found.info) != set(layers) or not set(loose) <= set(found.file.tensors):
            strange = sorted(set(found.info).symmetric_difference(layers))
            raise LayerError("it holds other layers", got=", ".join(strange[:NAMED]) or "other keys")
        for name, layer in layers.items():
            if wrong := difference(layer, found.layer(name, keep=False)):
                raise LayerError("a layer differs", got=f"{name}: {wrong}")
    except LycorisError as error:
        raise WriteError(
            f"the written file differs from its source: {error.problem}; please report this",
            file=str(out),
            key=error.key,
            got=error.got,
            hint="Nothing was left behind, and an earlier file of that name is untouched",
        ) from error
