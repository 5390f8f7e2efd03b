"""Store nested values in one safetensors file: tensors as tensors, everything else as JSON in the metadata.

There is no pickle, so an untrusted file cannot run code. The file gets its name only when it is complete. It
contains the CRC-32 of its JSON and of each tensor, so that a bit changed by a faulty disk is noticed. Files
of earlier versions have no CRC-32.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..errors import FileFormatError, WriteError
from ..messages import phrase
from .cache import TensorCache
from .dtypes import DTYPE_NAMES
from .json_text import parse_json
from .safetensors_file import SafetensorsFile, raw_bytes
from .writing import header_of, in_file_order, new_files


@dataclass(frozen=True)
class TreeForm:
    """A kind of file that holds nested values."""

    key: str
    """The metadata key of the JSON."""
    version: int
    what: str
    """The kind's name in errors, such as `the state of a training`."""
    hint: str | None = None
    """The hint of the error for a file of another kind."""

    def write(self, path: Path, value: Any) -> None:
        """Write dictionaries, lists, tuples, numbers, texts and tensors. Raises WriteError."""
        tensors: dict[str, Tensor] = {}
        tree = self._packed(value, tensors, str(path))
        tensors = in_file_order(tensors)
        sums = {"": _sum_of_tree(tree), **{name: _sum_of(tensor) for name, tensor in tensors.items()}}
        table = {"version": self.version, "state": tree, "crc32": sums}
        header = header_of(tensors, {self.key: json.dumps(table)})
        size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
        with new_files([path], size, make_folder=True) as (file,):
            file.write(header)
            for tensor in tensors.values():
                file.write(raw_bytes(tensor))

    def read(self, path: Path) -> Any:
        """Read what `write` wrote. Raises FileFormatError for any other file, and for a damaged one."""
        return self._read(
            path,
            lambda tree, file, sums: _unpacked(
                tree, _Checked(file.read(list(file.tensors), TensorCache(0), keep=False), sums)
            ),
        )

    def peek(self, path: Path, *names: str) -> dict[str, Any]:
        """Read some entries of a table that `write` wrote, and only their tensors. Missing entries are left
        out. Raises FileFormatError as `read` does.
        """

        def unpacked(tree: Any, file: SafetensorsFile, sums: Mapping[str, int]) -> dict[str, Any]:
            tensors = _Checked(_OnDemand(file), sums)
            return {name: _unpacked(item, tensors) for name, item in tree["dict"] if name in names}

        return self._read(path, unpacked)

    def _read(self, path: Path, unpacked: Callable[[Any, SafetensorsFile, Mapping[str, int]], Any]) -> Any:
        file = SafetensorsFile.open(path)
        if self.key not in file.metadata:
            raise FileFormatError("E-not-a-tree-file", file=str(path), what=self.what, hint=self.hint)
        try:
            table = parse_json(file.metadata[self.key])
            version, tree = table["version"], table["state"]
            if version != self.version:
                raise FileFormatError(
                    "E-tree-file-version-unknown",
                    file=str(path),
                    what=self.what,
                    got=str(version),
                    expected=str(self.version),
                )
            sums = table.get("crc32", {})
            if sums and _sum_of_tree(tree) != sums[""]:
                raise ValueError(phrase("R-checksum-values-differs"))
            return unpacked(tree, file, sums)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileFormatError(
                "E-tree-file-damaged",
                file=str(path),
                what=self.what,
                got=str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}",
            ) from error

    def _packed(self, value: Any, tensors: dict[str, Tensor], path: str) -> Any:
        """A value as JSON. A type that JSON lacks becomes a table with one key: the type's name."""
        if isinstance(value, Tensor):
            if value.dtype not in DTYPE_NAMES:
                raise WriteError("E-dtype-not-storable", file=path, got=str(value.dtype))
            name = f"t{len(tensors)}"
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, dict):
            # As pairs, because the keys in optimiser states are numbers.
            pairs = cast("dict[Any, Any]", value).items()
            packed = [
                [self._packed(key, tensors, path), self._packed(item, tensors, path)] for key, item in pairs
            ]
            return {"dict": packed}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            items = cast("Sequence[Any]", value)
            return {kind: [self._packed(item, tensors, path) for item in items]}
        raise WriteError("E-value-not-storable", file=path, what=self.what, got=type(value).__name__)


class _OnDemand:
    """The tensors of a file by name, each read when it is asked for."""

    def __init__(self, file: SafetensorsFile) -> None:
        self.file = file

    def __getitem__(self, name: str) -> Tensor:
        return self.file.read([name], TensorCache(0), keep=False)[name]


class _Checked:
    """Tensors by name. Raises ValueError for one whose CRC-32 is not the one in `sums`."""

    def __init__(self, tensors: Any, sums: Mapping[str, int]) -> None:
        self.tensors = tensors
        self.sums = sums

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if self.sums and _sum_of(tensor) != self.sums[name]:
            raise ValueError(phrase("R-checksum-tensor-differs", name=name))
        return tensor


def _sum_of(tensor: Tensor) -> int:
    return zlib.crc32(raw_bytes(tensor))


def _sum_of_tree(tree: Any) -> int:
    return zlib.crc32(json.dumps(tree).encode())


def _unpacked(tree: Any, tensors: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = cast("dict[str, Any]", tree).items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in content}
    items = [_unpacked(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
