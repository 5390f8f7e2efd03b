"""Reads a written file back, and compares it with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..algorithms import Layer
from ..errors import LayerError, LycorisError, WriteError
from ..files.cache import TensorCache
from ..files.memory_file import MemoryFile
from ..files.safetensors_file import SafetensorsFile, raw_bytes
from ..files.tensor_file import Fingerprint, open_file, read_exactly
from ..layers.same import difference
from ..messages import phrase
from ..reading.load import read_adapter

NAMED = 3
"""How many missing or unexpected layers the error names."""


def check_written(
    paths: Sequence[Path],
    header: bytes,
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, Layer],
    loose: Sequence[str],
    out: Path,
) -> None:
    """Raise WriteError unless the file written holds exactly these layers, and the `loose` keys too.

    The file must be the `header` and the bytes of the `tensors`, and a reader that is given what the file's
    header says, with the tensors in memory, must find the layers. `paths` are the file and, if it has one,
    its configuration. They may still have temporary names: `out` is the file's final name, for the error.
    """
    try:
        _check_bytes(paths[0], header, tensors)
        file = SafetensorsFile.at(Fingerprint.unstamped(paths[0]))
        config = next(map(Fingerprint.unstamped, paths[1:]), None)
        held = MemoryFile.of(file.path, {key: tensors[key] for key in file.tensors}, file.metadata)
        for key, info in held.tensors.items():
            if info[:2] != file.tensors[key][:2]:
                raise LayerError("E-written-tensor-form-differs", key=key, got=str(file.tensors[key]))
        adapter = read_adapter(held, config, TensorCache(0))
        if set(adapter.info) != set(layers) or not set(loose) <= set(adapter.file.tensors):
            strange = sorted(set(adapter.info).symmetric_difference(layers))
            raise LayerError(
                "E-written-layers-differ", got=", ".join(strange[:NAMED]) or phrase("R-other-keys")
            )
        for name, layer in layers.items():
            if wrong := difference(layer, adapter.layer(name, keep=False)):
                raise LayerError("E-written-layer-differs", name=name, wrong=wrong)
    except LycorisError as error:
        raise WriteError(
            "E-written-file-differs", file=str(out), key=error.key, fault=error.problem, got=error.got
        ) from error


def _check_bytes(path: Path, header: bytes, tensors: Mapping[str, Tensor]) -> None:
    """Raise LayerError unless a file is this header and then the bytes of these tensors, in this order."""
    with open_file(str(path)) as file:
        if file.read(len(header)) != header:
            raise LayerError("E-written-header-differs")
        for key, tensor in tensors.items():
            stored, meant = bytearray(tensor.nbytes), cast("Any", raw_bytes(tensor))
            read_exactly(file, memoryview(stored), str(path))
            # A bytearray is compared as it lies in memory, a memoryview value by value.
            if stored != meant:
                raise LayerError("E-written-values-differ", key=key)
        if file.read(1):
            raise LayerError("E-written-tensors-differ")
