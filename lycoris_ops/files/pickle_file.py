"""Adapter files that torch saved as pickles (.pt, .pth, .ckpt, .bin).

torch's own reader makes the tensors, with `weights_only`. Three looks at the file come before it, since a
reader that runs no code can still be made to take any amount of time and memory: at the archive's list of
members, at the names in its pickle, and at how much the pickle's instructions make.
Source of the layout: `torch/serialization.py` of torch 2.13, PKWARE's APPNOTE for zip archives, and the
documentation of Python's `pickletools`.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from ..errors import FileFormatError
from .bounds import MAX_MADE, MAX_MEMBERS, MAX_NESTED, MAX_PICKLE, MAX_SHARING, MAX_STEPS
from .cache import TensorCache
from .dtypes import DTYPE_NAMES, dtype_name
from .json_text import collector_paused
from .tensor_file import (
    DiskFile,
    Fingerprint,
    TensorInfo,
    check_names,
    check_no_answer,
    open_file,
    stated_shape,
)

ZIP, END, LOCATOR = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07"
"""The first bytes of an archive, of its last record, and of what stands before that in a large archive."""
NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\.(_utils\._rebuild_(tensor_v[23]|tensor|parameter|parameter_with_state)"
    r"|_tensor\._rebuild_from_type_v2|Tensor|nn\.parameter\.Parameter|Size|device"
    r"|serialization\._get_layout|(storage\.)?[A-Z]\w*Storage|(b?float|u?int|complex|bool)\w*)"
)
"""What a pickle of plain tensors names."""
TAKEN = {
    instruction.name: (True, kinds.index("mark")) if "mark" in kinds else (False, len(kinds))
    for instruction in pickletools.opcodes
    for kinds in [[kind.name for kind in instruction.stack_before]]
}
"""Whether an instruction takes all values from the last mark on, and how many below or without it."""
GROW = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"})
"""The instructions that change a value where it is."""
LAYOUT = "a bare pickle, as torch wrote them before 1.6"


class _NotPlain(Exception):  # noqa: N818 - what was found, and no fault of the program
    """What was found in place of an archive of plain tensors."""


@dataclass(frozen=True)
class PickleFile(DiskFile):
    """A file of plain tensors that torch saved. It has no metadata."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    @collector_paused()
    def open(cls, path: str | os.PathLike[str]) -> PickleFile:
        """Check a file, and read what it says of its tensors.

        Raises FileFormatError, with the key where there is one, where the file holds anything but plain
        tensors, and where torch is older than 2.6, whose reader a file could make run code (CVE-2025-32434).
        """
        fingerprint = Fingerprint.of(path)
        if torch.__version__ < "2.6":
            raise FileFormatError(
                "torch before 2.6 reads such files in a way that lets them run code",
                file=fingerprint.path,
                got=f"torch {torch.__version__}",
                expected="torch 2.6 or newer",
                hint="Convert the file to .safetensors, or update torch",
            )
        with open_file(fingerprint.path) as file:
            check_no_answer(file, fingerprint.path)
            start = file.read(9)
            try:
                sizes = _check_archive(file, fingerprint.size, start)
            except _NotPlain as error:
                raise _not_plain(fingerprint.path, str(error), start) from error
        table = _table(fingerprint.path)
        tensors = {name: _described(name, entry, fingerprint.path) for name, entry in table.items()}
        _check_storages(table, sizes, fingerprint)
        return cls(fingerprint, tensors)

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        # All at once: torch goes through the whole pickle for a single tensor.
        whole = super().read(list(self.tensors), cache, keep=keep)
        return {name: whole[name] for name in names}

    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        self.check_unchanged()
        table = _table(self.path)
        # Copies, so that no mapping of the file stays open.
        return {
            name: table[name].detach().clone(memory_format=torch.contiguous_format).as_subclass(Tensor)
            for name in names
        }


def _check_archive(file: BinaryIO, size: int, start: bytes) -> frozenset[int]:
    """Check an archive and its pickle; returns the sizes in bytes of its storages.

    Raises _NotPlain where members are compressed, are more or larger than bounds and the file allow, or where
    the pickle is more than plain tensors.
    """
    if start[:4] != ZIP:
        raise _NotPlain(LAYOUT if start[:1] == b"\x80" else "no zip archive")
    if _list_size(file, size) > 256 * MAX_MEMBERS:
        raise _NotPlain("an archive with too many members")
    try:
        archive = zipfile.ZipFile(file)
        members = {member.filename: member for member in archive.infolist()}
        _check_members(archive, members, size)
        # All members are in one folder, whose name is any.
        root = next(iter(members), "").partition("/")[0]
        pickle = members.get(f"{root}/data.pkl")
        if pickle is None:
            raise _NotPlain("an archive without data.pkl")
        if pickle.file_size > MAX_PICKLE:
            raise _NotPlain(f"a data.pkl of {pickle.file_size} bytes, where at most {MAX_PICKLE} are read")
        _check_pickle(archive.read(pickle))
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, EOFError, NotImplementedError) as error:
        raise _NotPlain(f"damaged data ({error})") from error
    return frozenset(member.file_size for name, member in members.items() if name.startswith(f"{root}/data/"))


def _list_size(file: BinaryIO, size: int) -> int:
    """Bytes of an archive's list of members, as its end says it: in 64 bits if there is a record of these."""
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if tail[-22:-18] != END:
        raise _NotPlain("an archive that is cut off or damaged")
    if tail[-42:-38] == LOCATOR:
        return int.from_bytes(tail[40:48], "little")
    return int.from_bytes(tail[-10:-6], "little")


def _check_members(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], size: int) -> None:
    found = archive.infolist()
    if len(found) > MAX_MEMBERS or len(members) < len(found):
        raise _NotPlain(f"an archive of {len(found)} members, {len(members)} of them of different names")
    total = 0
    for member in found:
        # torch stores the members as they are. Compressed ones could expand to any size.
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _NotPlain(f"an archive with a compressed member {member.filename}")
        total += member.file_size
        if total > size or member.header_offset + member.file_size > size:
            raise _NotPlain(
                f"an archive of {size} bytes whose member {member.filename} has {member.file_size} bytes"
            )


def _check_pickle(data: bytes) -> None:
    """Raise _NotPlain for a pickle that names more than tensors have, or makes far more than it has bytes.

    Two numbers stand for each value: how many values it holds, and how deep they lie. They are what makes a
    small file dangerous: a tuple that holds the one before it twice, forty times over, takes a few bytes in
    the file, and forever as the key of a table.
    """
    stack: list[list[int]] = []
    marks: list[int] = []
    memo: dict[Any, list[int]] = {}
    made = 0
    for step, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        name = instruction.name
        if step == MAX_STEPS:
            raise _NotPlain(f"a pickle of more than {MAX_STEPS} instructions")
        if name == "GLOBAL" and not NAMES.fullmatch(found := str(argument).replace(" ", ".")):
            raise _NotPlain(f"the name {found}, which is no part of a plain tensor")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif not instruction.stack_before:
            stack += [[1, 1] for _ in instruction.stack_after]
        else:
            marked, below = TAKEN[name]
            first = (marks.pop() if marked else len(stack)) - below
            if first < 0:
                raise _NotPlain("damaged data")
            taken = stack[first:]
            del stack[first:]
            size = 1 + sum(held[0] for held in taken)
            depth = 1 + max((held[1] for held in taken), default=0)
            # Lists and tables are changed where they are, and may be held by others already.
            value = taken[0] if name in GROW and taken else [0, 0]
            made += size - value[0]
            value[:] = size, depth
            stack += [value for _ in instruction.stack_after]
            if made > MAX_MADE or depth > MAX_NESTED:
                raise _NotPlain("tables or tuples within each other, more than a file of tensors has")


def _table(path: str) -> dict[str, Any]:
    """The entries of a file by name. A trainer's checkpoint has its table of them under `state_dict`."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise _not_plain(path, f"what torch cannot read ({type(error).__name__}: {why})") from error
    inner: Any = cast("dict[Any, Any]", value).get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(inner, dict):
        raise FileFormatError(
            "the file holds no table of tensors",
            file=path,
            got=type(cast("object", inner)).__name__,
            expected="a table",
        )
    table = cast("dict[Any, Any]", inner)
    for name in table:
        if type(name) is not str:
            raise FileFormatError(
                "an entry has no name", file=path, got=type(name).__name__, expected="a text as the name"
            )
    check_names(table.keys(), path)
    return table


def _described(name: str, entry: Any, path: str) -> TensorInfo:
    """A tensor's description. Raises FileFormatError where it is not plain."""
    plain = type(entry) in (Tensor, nn.Parameter) and entry.layout == torch.strided
    if not plain or entry.dtype not in DTYPE_NAMES or stated_shape(tuple(entry.shape)) is None:
        raise FileFormatError(
            "an entry is not a plain tensor",
            file=path,
            key=name,
            got=f"a tensor of dtype {dtype_name(entry.dtype)}"
            if isinstance(entry, Tensor)
            else type(entry).__name__,
            expected="a tensor of " + ", ".join(map(dtype_name, DTYPE_NAMES)),
        )
    return TensorInfo.of(entry)


def _check_storages(table: Mapping[str, Tensor], sizes: frozenset[int], fingerprint: Fingerprint) -> None:
    """Raise FileFormatError where storages are not those of the archive, or tensors share too much of them.

    torch takes the size of a storage from the pickle, and its start from the archive.
    """
    for name, tensor in table.items():
        size = tensor.untyped_storage().nbytes()
        if size and size not in sizes:
            raise FileFormatError(
                "the data of a tensor are not of the size that the file says",
                file=fingerprint.path,
                key=name,
                got=f"{size} bytes",
                expected="the size of one of the archive's members",
                hint="The file is damaged: download or save it again",
            )
    total = sum(tensor.numel() * tensor.element_size() for tensor in table.values())
    if total > MAX_SHARING * fingerprint.size:
        raise FileFormatError(
            "the tensors of the file lie on top of each other",
            file=fingerprint.path,
            got=f"{total} bytes of tensors in a file of {fingerprint.size}",
            expected=f"at most {MAX_SHARING} times as many bytes as the file has",
        )


def _not_plain(path: str, found: str, start: bytes = b"") -> FileFormatError:
    # A file of the other container begins with 8 bytes of its header's length, then the header's brace.
    hint = "It is damaged, or it would run code when loaded: ask for a .safetensors file"
    if start[8:] == b"{":
        hint = "It is a safetensors file: rename it so that it ends in .safetensors"
    elif found == LAYOUT:
        hint = "If torch.load(path, weights_only=True) reads it, save it again as .safetensors"
    return FileFormatError(
        "not a pickle of plain tensors",
        file=path,
        got=found,
        expected="a table of tensors saved by torch, with nothing else in it",
        hint=hint,
    )
