"""A training's state as one safetensors file: its tensors as tensors, all the rest as JSON in the metadata.

No pickle, so a state from a stranger runs no code. The file takes its name only when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..errors import FileFormatError, WriteError
from ..files.cache import TensorCache
from ..files.dtypes import DTYPE_NAMES
from ..files.json_text import parse_json
from ..files.safetensors_file import SafetensorsFile, raw_bytes
from ..files.writing import header_of, in_file_order, written

KEY = "lycoris_training_state"
"""The metadata key of the JSON."""
VERSION = 1


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write dictionaries, lists, tuples, numbers, texts and tensors. Raises WriteError."""
    tensors: dict[str, Tensor] = {}
    tree = _packed(state, tensors, str(path))
    tensors = in_file_order(tensors)
    header = header_of(tensors, {KEY: json.dumps({"version": VERSION, "state": tree})})
    with written([path], len(header) + sum(t.nbytes for t in tensors.values()), make_folder=True) as (file,):
        file.write(header)
        for tensor in tensors.values():
            file.write(raw_bytes(tensor))


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote. Raises FileFormatError for any other file."""
    file = SafetensorsFile.open(path)
    if KEY not in file.metadata:
        raise FileFormatError(
            "this is not the state of a training",
            file=str(path),
            expected="a file that ends in .state.safetensors, from the folder of checkpoints",
        )
    try:
        table = parse_json(file.metadata[KEY])
        version, tree = table["version"], table["state"]
        if version != VERSION:
            raise FileFormatError(
                "the state is of another version", file=str(path), got=str(version), expected=str(VERSION)
            )
        return _unpacked(tree, file.read(list(file.tensors), TensorCache(0), keep=False))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileFormatError(
            "the state of the training is damaged", file=str(path), got=f"{type(error).__name__}: {error}"
        ) from error


def _packed(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A value as JSON. What JSON does not have becomes a table with one key that says what it is."""
    if isinstance(value, Tensor):
        if value.dtype not in DTYPE_NAMES:
            raise WriteError("no file can hold a tensor of this dtype", file=path, got=str(value.dtype))
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        # As pairs, since the keys of optimisers' states are numbers.
        pairs = cast("dict[Any, Any]", value).items()
        return {"dict": [[_packed(key, tensors, path), _packed(item, tensors, path)] for key, item in pairs]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(item, tensors, path) for item in cast("Sequence[Any]", value)]}
    raise WriteError(
        "the state holds what no file can hold",
        file=path,
        got=f"{type(value).__name__}",
        expected="tensors, numbers, texts, and lists and tables of these",
    )


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
