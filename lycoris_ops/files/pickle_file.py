"""Adapter files that torch saved as pickles (.pt, .pth, .ckpt, .bin).

torch's own reader makes the tensors, with `weights_only`. It runs no code, but a malicious file can still
make it use any amount of time and memory. Three checks therefore come first: the archive's list of members,
the names in its pickle, and the number of values that the pickle's instructions make. Source of the layout:
`torch/serialization.py` of torch 2.13, PKWARE's APPNOTE for zip archives, and the documentation of Python's
`pickletools`.
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
from ..messages import Phrase, phrase
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
"""The signatures of a zip archive: of a member, of the end record, and of the ZIP64 end locator."""
NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\.(_utils\._rebuild_(tensor_v[23]|tensor|parameter|parameter_with_state)"
    r"|_tensor\._rebuild_from_type_v2|Tensor|nn\.parameter\.Parameter|Size|device"
    r"|serialization\._get_layout|(storage\.)?[A-Z]\w*Storage|(b?float|u?int|complex|bool)\w*)"
)
"""The globals that a pickle of plain tensors refers to."""
TAKEN = {
    instruction.name: (True, kinds.index("mark")) if "mark" in kinds else (False, len(kinds))
    for instruction in pickletools.opcodes
    for kinds in [[kind.name for kind in instruction.stack_before]]
}
"""For each instruction: whether it pops all values down to the last mark, and how many more it pops."""
GROW = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"})
"""The instructions that change a value in place."""
LAYOUT = "a bare pickle, as torch wrote them before 1.6"


class _NotPlain(Exception):  # noqa: N818 - its text is a finding, not an error
    """Found something else than an archive of plain tensors. The text describes it."""


@dataclass(frozen=True)
class PickleFile(DiskFile):
    """A file of plain tensors that torch saved. It has no metadata."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    @collector_paused()
    def open(cls, path: str | os.PathLike[str]) -> PickleFile:
        """Check a file, and read the descriptions of its tensors.

        Raises FileFormatError where the file holds anything but plain tensors, with the key of the entry if
        the key is known. Raises it too where torch is older than 2.6, because its reader can be made to run
        code (CVE-2025-32434).
        """
        fingerprint = Fingerprint.of(path)
        if torch.__version__ < "2.6":
            raise FileFormatError(
                "E-torch-too-old-for-pickle", file=fingerprint.path, version=torch.__version__
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
        # All at once: torch parses the whole pickle even for a single tensor.
        tensors = super().read(list(self.tensors), cache, keep=keep)
        return {name: tensors[name] for name in names}

    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        self.check_unchanged()
        table = _table(self.path)
        # Copies, so that no mapping of the file stays open.
        return {
            name: table[name].detach().clone(memory_format=torch.contiguous_format).as_subclass(Tensor)
            for name in names
        }


def _check_archive(file: BinaryIO, size: int, start: bytes) -> frozenset[int]:
    """Check an archive and its pickle; return the sizes of its storages in bytes.

    Raises _NotPlain where members are compressed, too many or too large, or where the pickle holds more than
    plain tensors.
    """
    if start[:4] != ZIP:
        raise _NotPlain(LAYOUT if start[:1] == b"\x80" else "not a zip archive")
    if _list_size(file, size) > 256 * MAX_MEMBERS:
        raise _NotPlain("an archive with too many members")
    try:
        archive = zipfile.ZipFile(file)
        members = {member.filename: member for member in archive.infolist()}
        _check_members(archive, members, size)
        # All members are in one folder, of any name.
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
    """The size of an archive's list of members in bytes, from the ZIP64 end record if there is one."""
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if tail[-22:-18] != END:
        raise _NotPlain("an archive that is cut off or damaged")
    if tail[-42:-38] == LOCATOR:
        return int.from_bytes(tail[40:48], "little")
    return int.from_bytes(tail[-10:-6], "little")


def _check_members(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], size: int) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS or len(members) < len(entries):
        raise _NotPlain(f"an archive of {len(entries)} members, {len(members)} of them of different names")
    total = 0
    for member in entries:
        # torch stores the members as they are. Compressed ones could expand to any size.
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _NotPlain(f"an archive with a compressed member {member.filename}")
        total += member.file_size
        if total > size or member.header_offset + member.file_size > size:
            raise _NotPlain(
                f"an archive of {size} bytes whose member {member.filename} has {member.file_size} bytes"
            )


def _check_pickle(data: bytes) -> None:
    """Raise _NotPlain for a pickle that names more than tensors need, or makes or nests too many values.

    Each value on the stack has two numbers: how many values it holds, and how deep they are nested. A small
    file can be dangerous: forty tuples, each holding the previous one twice, take few bytes, but hashing them
    as the key of a table takes forever.
    """
    stack: list[list[int]] = []
    marks: list[int] = []
    memo: dict[Any, list[int]] = {}
    values_made = 0
    for step, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        name = instruction.name
        if step == MAX_STEPS:
            raise _NotPlain(f"a pickle of more than {MAX_STEPS} instructions")
        if name == "GLOBAL" and not NAMES.fullmatch(global_name := str(argument).replace(" ", ".")):
            raise _NotPlain(f"the name {global_name}, which is no part of a plain tensor")
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
            # Lists and tables change in place, and other values may already hold them.
            value = taken[0] if name in GROW and taken else [0, 0]
            values_made += size - value[0]
            value[:] = size, depth
            stack += [value for _ in instruction.stack_after]
            if values_made > MAX_MADE or depth > MAX_NESTED:
                raise _NotPlain("tables or tuples larger or nested deeper than in a file of tensors")


def _table(path: str) -> dict[str, Any]:
    """The entries of a file by name. In a trainer's checkpoint they are under `state_dict`."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise _not_plain(path, f"data that torch cannot read ({type(error).__name__}: {why})") from error
    inner: Any = cast("dict[Any, Any]", value).get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(inner, dict):
        raise FileFormatError("E-file-without-table", file=path, got=type(cast("object", inner)).__name__)
    table = cast("dict[Any, Any]", inner)
    for name in table:
        if type(name) is not str:
            raise FileFormatError("E-entry-name-not-text", file=path, got=type(name).__name__)
    check_names(table.keys(), path)
    return table


def _described(name: str, entry: Any, path: str) -> TensorInfo:
    """A tensor's description. Raises FileFormatError where it is not plain."""
    plain = type(entry) in (Tensor, nn.Parameter) and entry.layout == torch.strided
    if not plain or entry.dtype not in DTYPE_NAMES or stated_shape(tuple(entry.shape)) is None:
        raise FileFormatError(
            "E-entry-not-plain-tensor",
            file=path,
            key=name,
            got=Phrase("R-tensor-dtype", {"dtype": dtype_name(entry.dtype)})
            if isinstance(entry, Tensor)
            else type(entry).__name__,
            expected=f"{phrase('R-tensor')} " + ", ".join(map(dtype_name, DTYPE_NAMES)),
        )
    return TensorInfo.of(entry)


def _check_storages(table: Mapping[str, Tensor], sizes: frozenset[int], fingerprint: Fingerprint) -> None:
    """Raise FileFormatError where no member has a storage's size, or tensors share too much storage.

    torch takes the size of a storage from the pickle, and its start from the archive.
    """
    for name, tensor in table.items():
        size = tensor.untyped_storage().nbytes()
        if size and size not in sizes:
            raise FileFormatError("E-tensor-size-differs", file=fingerprint.path, key=name, size=size)
    total = sum(tensor.numel() * tensor.element_size() for tensor in table.values())
    if total > MAX_SHARING * fingerprint.size:
        raise FileFormatError(
            "E-tensors-overlap",
            file=fingerprint.path,
            total=total,
            size=fingerprint.size,
            max_sharing=MAX_SHARING,
        )


def _not_plain(path: str, content: str, start: bytes = b"") -> FileFormatError:
    # A safetensors file begins with the header's length in 8 bytes, then the header's brace.
    hint = "It is damaged, or it would run code when loaded: ask for a .safetensors file"
    if start[8:] == b"{":
        hint = "It is a safetensors file: rename it so that it ends in .safetensors"
    elif content == LAYOUT:
        hint = "If torch.load(path, weights_only=True) reads it, save it again as .safetensors"
    return FileFormatError("E-pickle-not-plain", file=path, got=content, hint=hint)
