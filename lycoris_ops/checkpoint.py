"""Merging a stack into a checkpoint file, tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .algebra import Shape, is_finite
from .errors import FileFormatError, LycorisError, WriteError
from .files.safetensors_file import ITEM_BITS, SafetensorsFile, encode_header, raw_bytes, read_exactly
from .files.tensor_file import DTYPE_NAMES, DTYPES, SAFETENSORS, TensorInfo
from .files.writing import FLOATS, metadata_of, written
from .kernels import patch_
from .resolve import Match, Resolution, resolve
from .stack import Entry, Stack

COPY_BYTES = 4 << 20

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; what it raises ends the merge and removes what was written."""


@dataclass(frozen=True)
class MergeResult:
    """What was written."""

    path: str
    size: int
    merged: int
    """Weights that were changed."""
    copied: int
    """Tensors that were not."""
    resolution: Resolution


def merge_checkpoint(
    base_path: str | os.PathLike[str],
    stack: Stack,
    out_path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    strict: bool = False,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Write the base checkpoint with the stack merged into it: W + sum of strength * delta.

    The base is streamed: at most one of its tensors is in memory at a time, and adapter layers are
    read as they are needed. With `dtype` None every tensor keeps its dtype, merged weights are one
    rounding away from the exact sum, and all others are copied byte by byte; a float dtype converts
    every float tensor of the file. The base's metadata is kept, `metadata` is added, and the recipe
    is recorded. The file appears under its name only when it is complete.

    Raises MatchError where the stack does not fit (see `Resolution.check`), FileFormatError for a
    base that is damaged or quantised, WriteError where the file cannot be written.
    """
    base = SafetensorsFile.open(_safetensors(base_path))
    shapes = {key: info.shape for key, info in base.tensors.items()}
    resolution = resolve(stack, shapes, absent_because="the file does not hold it")
    resolution.check(strict=strict)
    pairs = resolution.pairs()
    tensors = _outputs(base, pairs, dtype)
    added = metadata_of(base.metadata, metadata or {}, _recipe(base, stack), "base_recipe")
    report = progress or _silent
    header = encode_header(tensors, added)
    size = len(header) + sum(info.end - info.start for info in tensors.values())
    with written(Path(out_path), size) as out, base.data() as data:
        out.write(header)
        for name, pieces in _runs(base, tensors, pairs):
            if name is None:
                _copy(data, out, base, *pieces, lambda done: report(done, size))
            else:
                info = tensors[name]
                out.write(raw_bytes(_merged(base, data, name, pairs.get(name, []), DTYPES[info.dtype])))
            report(out.tell(), size)
    return MergeResult(str(out_path), size, len(pairs), len(tensors) - len(pairs), resolution)


def _safetensors(path: str | os.PathLike[str]) -> Path:
    if Path(path).suffix.lower() not in SAFETENSORS:
        raise FileFormatError(
            "only a safetensors checkpoint can be streamed",
            file=str(path),
            got=Path(path).suffix or "no ending",
            expected=".safetensors",
            hint="Load it and save it with the host's own checkpoint saver first",
        )
    return Path(path)


def _outputs(
    base: SafetensorsFile, pairs: Mapping[str, list[tuple[Entry, Match]]], dtype: torch.dtype | None
) -> dict[str, TensorInfo]:
    """The header of the file to write: the base's, with dtypes and offsets as they will be."""
    if dtype is not None and DTYPE_NAMES.get(dtype) not in FLOATS:
        raise LycorisError(
            "a checkpoint cannot be written in this dtype", got=str(dtype), expected=", ".join(FLOATS)
        )
    for key in pairs:
        if base.tensors[key].dtype not in FLOATS:
            raise FileFormatError(
                "a weight that an adapter changes is quantised",
                file=base.fingerprint.path,
                key=key,
                got=base.tensors[key].dtype,
                expected=", ".join(FLOATS),
                hint="Merge into the file it was quantised from",
            )
    outputs: dict[str, TensorInfo] = {}
    position = 0
    for name, info in base.tensors.items():
        written = DTYPE_NAMES[dtype] if dtype and info.dtype in FLOATS else info.dtype
        shape = _enlarged(info.shape, pairs.get(name, []))
        size = (
            math.prod(shape) * ITEM_BITS[written] // 8
            if shape != info.shape
            else (info.end - info.start) * ITEM_BITS[written] // ITEM_BITS[info.dtype]
        )
        outputs[name] = TensorInfo(written, shape, position, position + size)
        position += size
    return outputs


def _enlarged(shape: Shape, pairs: list[tuple[Entry, Match]]) -> Shape:
    """The shape of a weight after the layers that enlarge it have met it."""
    for entry, match in pairs:
        info = entry.adapter.info[match.layer]
        if info.enlarges and match.parameter == "weight":
            shape = tuple(max(old, new or 0) for old, new in zip(shape, info.shape, strict=True))
    return shape


def _runs(
    base: SafetensorsFile, tensors: Mapping[str, TensorInfo], pairs: Mapping[str, object]
) -> Iterator[tuple[str | None, tuple[int, int]]]:
    """What to write in order: a name to merge or convert, or (None, byte range) to copy as it is."""
    start: int | None = None
    for name, info in base.tensors.items():
        untouched = name not in pairs and tensors[name].dtype == info.dtype
        if untouched and start is None:
            start = info.start
        if not untouched:
            if start is not None:
                yield None, (start, info.start)
                start = None
            yield name, (info.start, info.end)
    if start is not None:
        yield None, (start, max(info.end for info in base.tensors.values()))


def _copy(
    data: BinaryIO,
    out: BinaryIO,
    base: SafetensorsFile,
    start: int,
    end: int,
    report: Callable[[int], None],
) -> None:
    data.seek(base.data_start + start)
    buffer = memoryview(bytearray(min(COPY_BYTES, end - start)))
    left = end - start
    while left:
        part = buffer[: min(len(buffer), left)]
        read_exactly(data, part, base.fingerprint.path)
        out.write(part)
        left -= len(part)
        report(out.tell())


def _merged(
    base: SafetensorsFile,
    data: BinaryIO,
    name: str,
    pairs: list[tuple[Entry, Match]],
    dtype: torch.dtype,
) -> Tensor:
    weight = base.read_one(data, name)
    if weight.dtype != dtype and weight.dtype != torch.float64:
        weight = weight.to(torch.float32)
    weight = patch_(
        weight, [(match.read(entry.adapter, keep=False), match.strength) for entry, match in pairs]
    )
    merged = weight.to(dtype)
    # What the base holds beside the merged weights is its own affair: some masks are infinite.
    if not is_finite(merged) and (pairs or is_finite(weight)):
        raise WriteError(
            "a merged weight does not fit the dtype it is written in",
            file=base.fingerprint.path,
            key=name,
            got="NaN or infinity",
            expected=f"finite values in {dtype}",
            hint="Write the file in bfloat16 or float32, or lower the strengths",
        )
    return merged


def _silent(done: int, total: int) -> None:
    """No progress is wanted."""


def _recipe(base: SafetensorsFile, stack: Stack) -> dict[str, object]:
    adapters = [
        {
            "file": entry.adapter.name,
            "strength": entry.strength,
            "strength_clip": entry.strength_of("te"),
            "rules": str(entry.rules) if entry.rules else "",
        }
        for entry in stack
    ]
    return {"base": Path(base.fingerprint.path).name, "adapters": adapters}
