"""Reading and writing the safetensors container tensor by tensor.

The `safetensors` package maps the whole file and writes a whole dictionary at once. Here the header
is read first and tensors later into memory of their own (a mapping kept open locks the file on
Windows and turns a truncated file into a crash), and a checkpoint is written as a stream.
Source of the layout: the format description of the safetensors project (8 bytes little-endian
header length, JSON header, tensor data).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ..errors import FileFormatError
from .cache import TensorCache
from .dtypes import DTYPES, ITEM_BITS
from .tensor_file import OFFSETS, DiskFile, Fingerprint, TensorInfo

METADATA = "__metadata__"
MAX_HEADER = 100_000_000
"""The format's own bound on the header, in bytes."""


@dataclass(frozen=True)
class SafetensorsFile(DiskFile):
    """A safetensors file: its checked header, and its tensors on demand."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Read and check the header. Raises FileFormatError naming the file, the key and the fault."""
        fingerprint = Fingerprint.of(path)
        with open_file(fingerprint.path) as file:
            size, header = _read_header(file, fingerprint)
        metadata = header.pop(METADATA, {})
        if not isinstance(metadata, dict):
            raise _damaged(fingerprint, "its metadata is not a table", METADATA)
        texts = {str(key): str(value) for key, value in cast("dict[Any, Any]", metadata).items()}
        data_start = 8 + size
        tensors = _tensors(header, fingerprint, fingerprint.size - data_start)
        return cls(fingerprint, tensors, texts, data_start)

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The named tensors. Raises FileFormatError where the file changed since it was opened."""
        return cache.fetch((self.fingerprint, tuple(names)), lambda: self._read(names), keep=keep)

    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        with self.data() as file:
            return {name: self.read_one(file, name) for name in names}

    @contextmanager
    def data(self) -> Generator[BinaryIO]:
        """The open file, positioned anywhere, after a check that it is still the one that was opened."""
        self.check_unchanged()
        with open_file(self.path) as file:
            yield file

    def read_one(self, file: BinaryIO, name: str) -> Tensor:
        info = self.tensors[name]
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise FileFormatError(
                "a tensor has a dtype that cannot be computed with",
                file=self.path,
                key=name,
                got=info.dtype,
                expected=", ".join(DTYPES),
            )
        raw = torch.empty(info.end - info.start, dtype=torch.uint8)
        file.seek(self.data_start + info.start)
        read_exactly(file, raw_bytes(raw), self.path)
        return raw.view(dtype).reshape(info.shape)


def open_file(path: str) -> BinaryIO:
    """Open for reading. Raises FileFormatError where the system refuses."""
    try:
        return cast("BinaryIO", Path(path).open("rb", buffering=0))
    except OSError as error:
        raise FileFormatError("the file cannot be read", file=path, got=str(error.strerror)) from error


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The header with its length, padded so that the data that follows is aligned to 8 bytes."""
    table: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, info in tensors.items():
        table[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, shared with it."""
    return memoryview(cast("Any", tensor.reshape(-1).view(torch.uint8).numpy()))


def read_exactly(file: BinaryIO, view: memoryview, path: str) -> None:
    """Fill `view` from the file, or raise FileFormatError where the file ends before."""
    done = 0
    while done < len(view):
        try:
            count = cast("Any", file).readinto(view[done:])
        except OSError as error:
            raise FileFormatError("the file cannot be read", file=path, got=str(error.strerror)) from error
        if not count:
            raise FileFormatError(
                "the file ends in the middle of a tensor",
                file=path,
                got=f"{done} bytes",
                expected=f"{len(view)} bytes",
                hint="The file is incomplete: download or save it again",
            )
        done += count


def _read_header(file: BinaryIO, fingerprint: Fingerprint) -> tuple[int, dict[str, Any]]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _damaged(fingerprint, "it is too short to be a safetensors file", got=f"{len(prefix)} bytes")
    size = int.from_bytes(prefix, "little")
    if size > min(MAX_HEADER, fingerprint.size - 8):
        raise _damaged(
            fingerprint,
            "its header does not fit into the file",
            got=f"a header of {size} bytes in a file of {fingerprint.size}",
            expected=f"at most {min(MAX_HEADER, fingerprint.size - 8)} bytes",
        )
    try:
        header: Any = json.loads(file.read(size), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(fingerprint, "its header is not valid JSON", got=str(error)) from error
    except KeyError as error:
        raise _damaged(fingerprint, "its header names a tensor twice", key=str(error.args[0])) from error
    if not isinstance(header, dict):
        raise _damaged(fingerprint, "its header is not a table of tensors")
    return size, cast("dict[str, Any]", header)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    table.clear()
    for key, value in pairs:
        if key in table:
            raise KeyError(key)
        table[key] = value
    return table


def _tensors(header: dict[str, Any], fingerprint: Fingerprint, available: int) -> dict[str, TensorInfo]:
    tensors = {name: _info(name, entry, fingerprint) for name, entry in header.items()}
    ordered = sorted(tensors.items(), key=lambda item: item[1][OFFSETS])
    position = 0
    for name, info in ordered:
        if info.start != position:
            raise _damaged(
                fingerprint,
                "the offsets of its tensors overlap or leave gaps",
                key=name,
                got=f"data from byte {info.start}",
                expected=f"data from byte {position}",
            )
        position = info.end
    if position != available:
        last = ordered[-1][0] if ordered else None
        raise _damaged(
            fingerprint,
            "its header and its size disagree",
            key=last,
            got=f"{available} bytes of data",
            expected=f"{position} bytes",
        )
    return dict(ordered)


def _info(name: str, entry: Any, fingerprint: Fingerprint) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(fingerprint, "a header entry lacks dtype, shape or offsets", key=name) from error
    wrong = type(start) is not int or type(end) is not int or not isinstance(dtype, str)
    for number in shape:
        if type(number) is not int or number < 0:
            wrong = True
    if wrong or start < 0:
        raise _damaged(fingerprint, "a header entry is not of the right types", key=name)
    if dtype not in ITEM_BITS:
        raise _damaged(
            fingerprint, "a tensor has an unknown dtype", key=name, got=dtype, expected=", ".join(ITEM_BITS)
        )
    size = (math.prod(shape) * ITEM_BITS[dtype] + 7) // 8
    if end - start != size:
        raise _damaged(
            fingerprint,
            "the offsets of a tensor do not match its shape",
            key=name,
            got=f"{end - start} bytes",
            expected=f"{size} bytes for {dtype} {list(shape)}",
        )
    return TensorInfo(dtype, shape, start, end)


def _damaged(
    fingerprint: Fingerprint,
    problem: str,
    key: str | None = None,
    got: str | None = None,
    expected: str | None = None,
) -> FileFormatError:
    return FileFormatError(
        problem,
        file=fingerprint.path,
        key=key,
        got=got,
        expected=expected,
        hint="The file is damaged or is no safetensors file: download or save it again",
    )
