"""Adapter files that torch saved as pickles: plain tensors alone are read, and nothing in the file is run.

torch writes two layouts. Since torch 1.6 it is a zip archive without compression, in which `data.pkl` says
which tensors there are, and every storage, the piece of data that one or several tensors lie in, is a member
`data/<key>`. Before, it was several pickles, the fourth of which says which tensors there are, followed by
the storages. In both, the bytes of a storage lie in the file as they are, so each tensor can be read alone.

torch's own reader is not used. A file could make it run code before torch 2.6 (CVE-2025-32434) and corrupt
memory before 2.10 (CVE-2026-24747), and can make it take any amount of memory in every release.
Source of the layouts: `torch/serialization.py` of torch 2.13, and PKWARE's APPNOTE for zip archives.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..maths.shapes import Shape
from .bounds import MAX_PICKLE, MAX_SHARING, MAX_TENSORS
from .dtypes import DTYPE_NAMES, DTYPES, ITEM_BITS, dtype_name
from .json_text import collector_paused
from .tensor_file import DiskFile, Fingerprint, TensorInfo, check_names, open_file, read_exactly, stated_shape
from .unpickle import Other, PickleError, Stated, Table, unpickle

_BY_NAME = {dtype_name(dtype): dtype for dtype in DTYPES.values()}
"""torch's names of the dtypes that can be read."""

ZIP = b"PK\x03\x04"
"""The first bytes of a zip archive with a member."""
END, END64, LOCATOR, ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
"""The first bytes of an archive's last record, of that of a large archive, of what tells its place, and of a
member's entry in the list of members."""
MAX_MEMBERS = MAX_TENSORS + 100
"""Members of an archive: a storage for each tensor, and a few more."""
MAX_LIST = 256 * MAX_MEMBERS
"""Bytes of the list of members. A member takes about 80."""
LARGE = 0xFFFFFFFF
"""Stands for a number that a member's entry has in 64 bits elsewhere."""

MAGIC = 0x1950A86A20F9469CFC6C
"""The value of the first pickle of a file in the old layout."""


class Span(NamedTuple):
    """A place in the file."""

    start: int
    size: int


class Place(NamedTuple):
    """Where a tensor lies in the file, and in which order."""

    start: int
    """The first element's place, in bytes from the start of the file."""
    elements: int
    """Elements from the first to the last one, with those between that belong to no tensor or to others."""
    stride: tuple[int, ...]


@dataclass(frozen=True)
class PickleFile(DiskFile):
    """A .pt, .pth, .ckpt or .bin file of plain tensors. It has no metadata."""

    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    @collector_paused()
    def open(cls, path: str | os.PathLike[str]) -> PickleFile:
        """Read and check what a file says of its tensors.

        Raises FileFormatError, with the key where there is one, where the file holds anything but plain
        tensors whose bytes are in it.
        """
        fingerprint = Fingerprint.of(path)
        with open_file(fingerprint.path) as file:
            try:
                layout = _archive if _bytes(file, len(ZIP), 0) == ZIP else _old
                value, storages = layout(file, fingerprint)
                entries = _table(value, fingerprint.path)
            except (PickleError, struct.error) as error:
                raise _refused(fingerprint, file, str(error)) from error
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, Place] = {}
        for name, entry in entries.items():
            try:
                tensors[name], places[name] = _placed(entry, storages)
            except PickleError as error:
                raise FileFormatError(
                    "an entry is not a plain tensor whose data is in the file",
                    file=fingerprint.path,
                    key=name,
                    got=str(error),
                    expected="a tensor of " + ", ".join(_BY_NAME),
                ) from error
        _check_sharing(tensors, places, fingerprint)
        return cls(fingerprint, tensors, places)

    def read_one(self, file: BinaryIO, name: str) -> Tensor:
        info, place = self.tensors[name], self.places[name]
        dtype = DTYPES[info.dtype]
        raw = torch.empty(place.elements * dtype.itemsize, dtype=torch.uint8)
        file.seek(place.start)
        read_exactly(file, memoryview(cast("Any", raw.numpy())), self.path)
        return raw.view(dtype).as_strided(info.shape, place.stride).contiguous()


def _bytes(file: BinaryIO, count: int, start: int) -> bytes:
    """Up to `count` bytes of an open file, from `start` on."""
    file.seek(start)
    found = file.read(count)
    # An unbuffered file may give fewer bytes than asked for.
    while len(found) < count and (more := file.read(count - len(found))):
        found += more
    return found


def _archive(file: BinaryIO, fingerprint: Fingerprint) -> tuple[Any, dict[str, Span]]:
    """The value of the pickle of an archive, and its storages by their keys."""
    members = _members(file, fingerprint.size)
    # All members are in one folder, whose name is any.
    root = next(iter(members), "").partition("/")[0]
    pickle = members.get(f"{root}/data.pkl")
    if pickle is None:
        raise PickleError("an archive without data.pkl")
    if pickle.size > MAX_PICKLE:
        raise PickleError(f"a data.pkl of {pickle.size} bytes, where at most {MAX_PICKLE} are read")
    order = members.get(f"{root}/byteorder", Span(0, 0))
    if order.size and _bytes(file, min(order.size, 10), _data(file, order)) != b"little":
        raise PickleError("numbers whose bytes are in another order than little-endian")
    read = unpickle(_bytes(file, pickle.size, _data(file, pickle)))
    storages: dict[str, Span] = {}
    for key in read.storages:
        member = members.get(f"{root}/data/{key}")
        if member is not None:
            storages[key] = Span(_data(file, member), member.size)
    return read.value, storages


def _members(file: BinaryIO, size: int) -> dict[str, Span]:
    """The members of a zip archive: the place of each one's own header, and the size of its data.

    Raises PickleError where a member is compressed, or where members do not fit into the file.
    """
    tail_start = max(0, size - 42)
    tail = _bytes(file, 42, tail_start)
    if len(tail) < 42 or tail[20:24] != END:
        raise PickleError("an archive that is cut off or damaged")
    count, length, start = struct.unpack("<HII", tail[30:40])
    if tail[:4] == LOCATOR:
        (end,) = struct.unpack("<Q", tail[8:16])
        record = _bytes(file, 56, min(end, size))
        if record[:4] != END64:
            raise PickleError("an archive that is damaged")
        count, length, start = struct.unpack("<QQQ", record[32:56])
    if count > MAX_MEMBERS or length > MAX_LIST or start + length > size:
        raise PickleError(f"an archive that says it has {count} members in {length} bytes at {start}")
    entries = _bytes(file, length, start)
    members: dict[str, Span] = {}
    at = total = 0
    for _ in range(count):
        fields = struct.unpack_from("<4s4xHH8xIIHHH8xI", entries, at)
        mark, flags, method, packed, unpacked, name_size, extra_size, comment_size, header = fields
        name = entries[at + 46 : at + 46 + name_size].decode("utf-8", "replace")
        extra = entries[at + 46 + name_size : at + 46 + name_size + extra_size]
        at += 46 + name_size + extra_size + comment_size
        packed, unpacked, header = _wide(extra, unpacked, packed, header)
        if mark != ENTRY or name in members:
            raise PickleError("an archive that is damaged")
        # torch stores the members as they are. Compressed ones could expand to any size.
        if method or flags & 1 or packed != unpacked:
            raise PickleError(f"an archive with a compressed member {name}, {unpacked} bytes in {packed}")
        total += unpacked
        if total > size or header + 30 + unpacked > start:
            raise PickleError(f"an archive of {size} bytes whose member {name} has {unpacked} bytes")
        members[name] = Span(header, unpacked)
    return members


def _wide(extra: bytes, unpacked: int, packed: int, header: int) -> tuple[int, int, int]:
    """The sizes and the place of a member, given those of 32 bits, and the fields with those of 64 bits."""
    numbers = [unpacked, packed, header]
    if LARGE in numbers:
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            if kind == 1:
                # Only those that did not fit, in this order.
                wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
                numbers = [next(wide, LARGE) if number == LARGE else number for number in numbers]
                break
            at += 4 + length
    return numbers[1], numbers[0], numbers[2]


def _data(file: BinaryIO, member: Span) -> int:
    """Where the data of a member begin: after its own header, which has a name and fields of any length."""
    header = _bytes(file, 30, member.start)
    if header[:4] != ZIP:
        raise PickleError("an archive that is damaged")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.start + 30 + name + extra


def _old(file: BinaryIO, fingerprint: Fingerprint) -> tuple[Any, dict[str, Span]]:
    """The value of the fourth pickle of a file in the old layout, and its storages by their keys."""
    data = _bytes(file, MAX_PICKLE, 0)
    magic = unpickle(data)
    if magic.value != MAGIC:
        raise PickleError("a pickle that torch did not write")
    version = unpickle(data, magic.end)
    system = unpickle(data, version.end)
    read = unpickle(data, system.end)
    keys = unpickle(data, read.end)
    if type(system.value) is not Table or type(keys.value) is not list:
        raise PickleError("damaged data")
    if not any(key == "little_endian" and value is True for key, value in system.value.all()):
        raise PickleError("numbers whose bytes are in another order than little-endian")
    # The storages lie one after the other, each with the number of its elements before it, in 8 bytes.
    at = keys.end
    storages: dict[str, Span] = {}
    for key in cast("list[Any]", keys.value):
        storage = read.storages.get(key) if type(key) is str else None
        if storage is None or key in storages:
            raise PickleError("damaged data")
        size = int.from_bytes(_bytes(file, 8, at), "little") * _item_size(storage.dtype)
        at += 8
        if at + size > fingerprint.size:
            raise PickleError(f"a storage of {size} bytes where the file has {fingerprint.size - at} left")
        storages[key] = Span(at, size)
        at += size
    return read.value, storages


def _item_size(dtype: str) -> int:
    """Bytes of an element of a dtype with torch's name. Raises PickleError where torch has no such dtype."""
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise PickleError(f"a storage of dtype {dtype}")
    return found.itemsize


def _table(value: Any, path: str) -> dict[str, Any]:
    """The entries of a file by name. A trainer's checkpoint has its table of them under `state_dict`."""
    outer = value.all() if isinstance(value, Table) else []
    inner = next((entry for name, entry in outer if name == "state_dict"), value)
    if not isinstance(inner, Table):
        raise FileFormatError(
            "the file holds no table of tensors", file=path, got=_in_words(inner), expected="a table"
        )
    table: dict[str, Any] = {}
    for name, entry in inner.all():
        if type(name) is not str:
            raise FileFormatError(
                "an entry has no name", file=path, got=_in_words(name), expected="a text as the name"
            )
        if name in table:
            raise FileFormatError("the file names a tensor twice", file=path, key=name)
        table[name] = entry
    check_names(table.keys(), path)
    return table


def _in_words(value: Any) -> str:
    if isinstance(value, Other):
        return value.what
    name = type(cast("object", value)).__name__
    known = {"Stated": "a tensor", "Table": "a table", "list": "a list", "tuple": "a tuple", "str": "a text"}
    return known.get(name, name)


def _placed(entry: Any, storages: Mapping[str, Span]) -> tuple[TensorInfo, Place]:
    """A tensor's description and place. Raises PickleError where it is not plain, or not in the file."""
    if not isinstance(entry, Stated):
        raise PickleError(_in_words(entry))
    dtype, storage = _BY_NAME.get(entry.dtype), entry.storage
    if dtype is None:
        raise PickleError(f"a tensor of dtype {entry.dtype}")
    shape, stride = _sizes(entry.size), _sizes(entry.stride)
    if shape is None or stride is None or len(shape) != len(stride) or type(entry.offset) is not int:
        raise PickleError("a tensor whose sizes or strides are no tuples of whole numbers from 0")
    span = storages.get(storage.key, Span(0, -1))
    stated = storage.numel * _item_size(storage.dtype)
    if span.size != stated:
        found = f"{span.size} bytes" if span.size >= 0 else "none"
        raise PickleError(f"a storage that should have {stated} bytes, of which the file has {found}")
    numel, elements = math.prod(shape), 0
    if numel:
        elements = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    room = span.size // dtype.itemsize
    if entry.offset < 0 or entry.offset + elements > room or numel > room:
        raise PickleError(
            f"a tensor {list(shape)} with strides {list(stride)} from {entry.offset} on, "
            f"in a storage of {room} elements"
        )
    start = span.start + entry.offset * dtype.itemsize
    return TensorInfo(DTYPE_NAMES[dtype], shape), Place(start, elements, stride)


def _sizes(stated: Any) -> Shape | None:
    return stated_shape(cast("tuple[Any, ...]", stated)) if type(stated) is tuple else None


def _check_sharing(
    tensors: Mapping[str, TensorInfo], places: Mapping[str, Place], fingerprint: Fingerprint
) -> None:
    """Raise FileFormatError where tensors share so much that they take far more memory than the file."""
    total = sum(
        max(place.elements, math.prod(tensors[name].shape)) * ITEM_BITS[tensors[name].dtype] // 8
        for name, place in places.items()
    )
    if total > MAX_SHARING * fingerprint.size:
        raise FileFormatError(
            "the tensors of the file lie on top of each other",
            file=fingerprint.path,
            got=f"{total} bytes of tensors in a file of {fingerprint.size}",
            expected=f"at most {MAX_SHARING} times as many bytes as the file has",
        )


def _refused(fingerprint: Fingerprint, file: BinaryIO, found: str) -> FileFormatError:
    # A file of the other container begins with 8 bytes of its header's length, then the header's brace.
    renamed = _bytes(file, 9, 0)[8:] == b"{"
    return FileFormatError(
        "not a pickle of plain tensors",
        file=fingerprint.path,
        got=found,
        expected="a table of tensors saved by torch, with nothing else in it",
        hint="It is a safetensors file: rename it so that it ends in .safetensors"
        if renamed
        else "It is damaged, or it would run code when loaded: ask for a .safetensors file",
    )
