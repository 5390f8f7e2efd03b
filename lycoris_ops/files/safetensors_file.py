"""Reading and writing the safetensors container tensor by tensor.

The `safetensors` package maps the whole file into memory and writes a whole dictionary at once. Here the
header is read first and each tensor later, into its own memory; a checkpoint is written as a stream. Nothing
is mapped: an open mapping locks the file on Windows, and crashes if the file is truncated. Source of the
layout: the format description of the safetensors project (8 bytes little-endian header length, JSON header,
tensor data).
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

from ..errors import FileFormatError, WriteError
from ..messages import Phrase
from .bounds import MAX_JSON, MAX_METADATA
from .dtypes import DTYPES, ITEM_BITS
from .json_text import collector_paused, parse_json
from .tensor_file import (
    OFFSETS,
    SAFETENSORS,
    DiskFile,
    Fingerprint,
    TensorInfo,
    check_names,
    check_no_answer,
    is_text,
    open_file,
    read_exactly,
    stated_shape,
)

METADATA = "__metadata__"
"""The metadata's key in the header; every other key is a tensor's name."""


@dataclass(frozen=True)
class SafetensorsFile(DiskFile):
    """A safetensors file. Its header is read and checked on opening, each tensor on request."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    """Where tensor data begin in the file. The offsets of `tensors` count from there."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Read and check the header of a file.

        Raises FileFormatError, with the file, the key and the fault, where the header does not describe a
        valid file.
        """
        return cls.at(Fingerprint.of(path))

    @classmethod
    @collector_paused()
    def at(cls, fingerprint: Fingerprint) -> SafetensorsFile:
        """Read and check the header of the file with this fingerprint. Raises FileFormatError as `open`
        does."""
        with open_file(fingerprint.path) as file:
            check_no_answer(file, fingerprint.path)
            size, header = _read_header(file, fingerprint)
        texts = _metadata(header.pop(METADATA, {}), fingerprint)
        check_names(header.keys(), fingerprint.path)
        # The header's length comes first, in 8 bytes.
        data_start = 8 + size
        tensors = _tensors(header, fingerprint, fingerprint.size - data_start)
        return cls(fingerprint, tensors, texts, data_start)

    @classmethod
    def of_model(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Open a file of a model. Raises FileFormatError also for a file of another format."""
        ending = Path(path).suffix
        if ending.lower() not in SAFETENSORS:
            if not ending:
                # It may be a folder that does not exist.
                Fingerprint.of(path)
            raise FileFormatError(
                "E-file-not-streamable",
                file=str(path),
                got=ending or Phrase("R-no-ending"),
                expected=" or ".join(SAFETENSORS),
            )
        return cls.open(path)

    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        with self.data() as file:
            return {name: self.read_one(file, name) for name in names}

    @contextmanager
    def data(self) -> Generator[BinaryIO]:
        """The file, open for reading. Raises FileFormatError if it changed since its header was read."""
        self.check_unchanged()
        with open_file(self.path) as file:
            yield file

    def read_one(self, file: BinaryIO, name: str) -> Tensor:
        """Read one tensor from the open file (see `data`) into new memory. Raises FileFormatError for a dtype
        that torch lacks, or if the file ends too early.
        """
        info = self.tensors[name]
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise FileFormatError(
                "E-tensor-dtype-unknown-to-torch",
                file=self.path,
                key=name,
                got=info.dtype,
                expected=", ".join(DTYPES),
            )
        raw = torch.empty(info.end - info.start, dtype=torch.uint8)
        file.seek(self.data_start + info.start)
        read_exactly(file, raw_bytes(raw), self.path)
        return raw.view(dtype).reshape(info.shape)


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The start of a file: the header's length and the header.

    Spaces pad the header, so that the tensor data begin at a multiple of 8 bytes. Raises WriteError for a
    name or metadata that UTF-8 cannot encode.
    """
    table: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, info in tensors.items():
        table[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    try:
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise WriteError(
            "E-metadata-not-text", got=error.object[max(0, error.start - 20) : error.end + 20]
        ) from None
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor: a view of its memory, or of a copy if it is on another device."""
    flat = tensor.reshape(-1).cpu()
    # A tensor of one value counts as contiguous with any stride, but only stride 1 can be viewed as bytes.
    # As uint8, since numpy has neither bfloat16 nor float8.
    return memoryview(cast("Any", flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy()))


def _read_header(file: BinaryIO, fingerprint: Fingerprint) -> tuple[int, dict[str, Any]]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _damaged(fingerprint, "E-safetensors-too-short", count=len(prefix))
    size = int.from_bytes(prefix, "little")
    # Checked before reading: the length in a damaged file can ask for any amount of memory.
    most = min(MAX_JSON, fingerprint.size - 8)
    if size > most:
        raise _damaged(
            fingerprint,
            "E-safetensors-header-misfits" if most < MAX_JSON else "E-safetensors-header-too-long",
            size=size,
            file_size=fingerprint.size,
            most=most,
        )
    try:
        header: Any = parse_json(file.read(size), unique=True)
    except ValueError as error:
        raise _damaged(fingerprint, "E-safetensors-header-not-json", got=str(error)) from error
    if not isinstance(header, dict):
        raise _damaged(fingerprint, "E-safetensors-header-not-a-table")
    return size, cast("dict[str, Any]", header)


def _metadata(table: Any, fingerprint: Fingerprint) -> dict[str, str]:
    """The metadata of a header. The format allows only texts; other values are converted to text."""
    if table is None:
        # MLX writes this if it has no metadata.
        return {}
    if not isinstance(table, dict):
        raise _damaged(fingerprint, "E-safetensors-metadata-not-a-table", METADATA)
    entries = cast("dict[str, Any]", table)
    if len(entries) > MAX_METADATA:
        raise _damaged(
            fingerprint,
            "E-safetensors-metadata-too-long",
            METADATA,
            got=len(entries),
            most=MAX_METADATA,
        )
    texts: dict[str, str] = {}
    for key, value in entries.items():
        try:
            text = value if isinstance(value, str) else str(value)
        except RecursionError:
            raise _damaged(fingerprint, "E-safetensors-metadata-too-deep", key) from None
        if not is_text(key) or not is_text(text):
            raise _damaged(
                fingerprint,
                "E-safetensors-metadata-not-text",
                key,
            )
        texts[key] = text
    return texts


def _tensors(header: dict[str, Any], fingerprint: Fingerprint, available: int) -> dict[str, TensorInfo]:
    """The tensors in the order of their data, which must fill `available` bytes without gap or overlap."""
    tensors = {name: _info(name, entry, fingerprint) for name, entry in header.items()}
    ordered = sorted(tensors.items(), key=lambda item: item[1][OFFSETS])
    position = 0
    for name, info in ordered:
        if info.start != position:
            raise _damaged(
                fingerprint,
                "E-safetensors-offsets-overlap",
                key=name,
                start=info.start,
                position=position,
            )
        position = info.end
    # A truncated file has fewer bytes. Bytes that belong to no tensor make it longer.
    if position != available:
        last = ordered[-1][0] if ordered else None
        raise _damaged(
            fingerprint,
            "E-safetensors-cut-off" if available < position else "E-safetensors-too-long",
            key=last,
            available=available,
            position=position,
        )
    return dict(ordered)


def _info(name: str, entry: Any, fingerprint: Fingerprint) -> TensorInfo:
    try:
        dtype, sizes, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        shape = stated_shape(sizes)
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(fingerprint, "E-safetensors-entry-incomplete", key=name) from error
    # Compare types: for isinstance, JSON's true and false are integers.
    wrong = type(start) is not int or type(end) is not int or type(dtype) is not str
    if wrong or shape is None or start < 0:
        raise _damaged(fingerprint, "E-safetensors-entry-unusable", key=name)
    if dtype not in ITEM_BITS:
        raise _damaged(
            fingerprint, "E-safetensors-dtype-unknown", key=name, got=dtype, expected=", ".join(ITEM_BITS)
        )
    size = (math.prod(shape) * ITEM_BITS[dtype] + 7) // 8
    if end - start != size:
        raise _damaged(
            fingerprint,
            "E-safetensors-offsets-misfit-shape",
            key=name,
            bytes=end - start,
            size=size,
            dtype=dtype,
            shape=str(list(shape)),
        )
    return TensorInfo(dtype, shape, start, end)


def _damaged(fingerprint: Fingerprint, code: str, key: str | None = None, **values: Any) -> FileFormatError:
    return FileFormatError(code, file=fingerprint.path, key=key, **values)
