"""Reading and writing the safetensors container tensor by tensor.

The `safetensors` package maps the whole file into memory and writes a whole dictionary at once. Here the
header is read first, each tensor is read later into memory of its own, and a checkpoint is written as a
stream. No mapping is used, because one that is kept open locks the file on Windows and turns a truncated file
into a crash.
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
"""The header's key of the metadata; every other key is a tensor's name."""
MAX_HEADER = 100_000_000
"""The largest header that the format allows, in bytes."""


@dataclass(frozen=True)
class SafetensorsFile(DiskFile):
    """A safetensors file: its header is read and checked when it is opened, a tensor when it is asked for."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    """Position in the file of the first byte of tensor data, which the offsets of `tensors` count from."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Read and check the header of a file.

        Raises FileFormatError, with the file, the key and the fault, where the header does not describe a
        valid file.
        """
        fingerprint = Fingerprint.of(path)
        with open_file(fingerprint.path) as file:
            size, header = _read_header(file, fingerprint)
        metadata = header.pop(METADATA, {})
        if not isinstance(metadata, dict):
            raise _damaged(fingerprint, "its metadata is not a table", METADATA)
        texts = {str(key): str(value) for key, value in cast("dict[Any, Any]", metadata).items()}
        # The length that stands before the header takes 8 bytes.
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
        """The file, open for reading at no particular position.

        Raises FileFormatError where it changed since its header was read.
        """
        self.check_unchanged()
        with open_file(self.path) as file:
            yield file

    def read_one(self, file: BinaryIO, name: str) -> Tensor:
        """One tensor, read from the open file (see `data`) into new memory.

        Raises FileFormatError where torch has no such dtype, or where the file ends too early.
        """
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
        # Unbuffered, since each tensor is read in one piece, straight into its own memory.
        return cast("BinaryIO", Path(path).open("rb", buffering=0))
    except OSError as error:
        raise FileFormatError("the file cannot be read", file=path, got=str(error.strerror)) from error


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file: the header's length and the header.

    The header is padded with spaces, so that the tensor data after it begin at a multiple of 8 bytes.
    """
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
    """The bytes of a contiguous tensor, as a view of its memory."""
    # As uint8, since numpy has neither bfloat16 nor float8.
    return memoryview(cast("Any", tensor.reshape(-1).view(torch.uint8).numpy()))


def read_exactly(file: BinaryIO, view: memoryview, path: str) -> None:
    """Fill `view` from the file. Raises FileFormatError where the file ends before `view` is full."""
    done = 0
    # An unbuffered file may give fewer bytes than asked for.
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
    # Before it is read: the length in a damaged file can ask for any amount of memory.
    if size > min(MAX_HEADER, fingerprint.size - 8):
        raise _damaged(
            fingerprint,
            "its header does not fit into the file",
            got=f"a header of {size} bytes in a file of {fingerprint.size}",
            expected=f"at most {min(MAX_HEADER, fingerprint.size - 8)} bytes",
        )
    try:
        header: Any = json.loads(file.read(size), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # the latter for brackets in brackets without end
        raise _damaged(fingerprint, "its header is not valid JSON", got=str(error)) from error
    except KeyError as error:
        raise _damaged(fingerprint, "its header names a tensor twice", key=str(error.args[0])) from error
    if not isinstance(header, dict):
        raise _damaged(fingerprint, "its header is not a table of tensors")
    return size, cast("dict[str, Any]", header)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary. Raises KeyError for a key given twice, which `json` would allow."""
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    # A slower loop, to name the key: only damaged headers come here.
    table.clear()
    for key, value in pairs:
        if key in table:
            raise KeyError(key)
        table[key] = value
    return table


def _tensors(header: dict[str, Any], fingerprint: Fingerprint, available: int) -> dict[str, TensorInfo]:
    """The tensors in the order of their data, which must fill `available` bytes without gap or overlap."""
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
    # A file that was cut off has less, and bytes that belong to no tensor make it more.
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
    # By type, since isinstance takes JSON's true and false for integers.
    wrong = type(start) is not int or type(end) is not int or not isinstance(dtype, str)
    for number in shape:
        if type(number) is not int or number < 0:
            wrong = True
    if wrong or start < 0:
        raise _damaged(fingerprint, "a header entry holds values of the wrong types", key=name)
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
