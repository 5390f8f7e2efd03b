"""The weights of a model in one safetensors file, or in several that an index names.

Source of the index: transformers' and diffusers' sharded checkpoints, such as `model.safetensors.index.json`
beside `model-00001-of-00002.safetensors`: JSON with `weight_map`, the file of each tensor, and `metadata`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, cast

from torch import Tensor

from ..errors import FileFormatError, WriteError
from ..messages import Phrase, phrase
from .bounds import MAX_JSON
from .cache import TensorCache
from .json_text import parse_json
from .safetensors_file import SafetensorsFile
from .tensor_file import PICKLES, SAFETENSORS, Fingerprint, TensorInfo, open_file

INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(?P<variant>\.[\w-]+)?\.json")
"""The name of an index. Some have a variant: `model.safetensors.index.fp16.json`, whose files begin with
`model.fp16`."""


@dataclass(frozen=True)
class Index:
    """The index of a model in several files."""

    fingerprint: Fingerprint
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class ModelFile:
    """A model's weights on a disk. Headers are read and checked on opening, each tensor on request."""

    path: str
    """The full path of the file, or of the index."""
    shards: tuple[SafetensorsFile, ...]
    """The files, in the order of their names."""
    tensors: Mapping[str, TensorInfo]
    """The tensors of all files, in their order. The offsets count within each file."""
    shard_of: Mapping[str, int]
    """The index in `shards` of the file that holds a tensor."""
    index: Index | None
    folder: Path | None
    """The folder, if one was opened."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFile:
        """Open a safetensors file, an index, or the folder of either.

        Raises FileFormatError where a folder holds none or several models, where an index and its files do
        not agree, and for a file that is damaged or in another format.
        """
        # Not `Path.is_dir`, which raises for a name that no file can have.
        folder = Path(path) if os.path.isdir(path) else None
        source = _model_in(folder) if folder else Path(path)
        if not INDEX.fullmatch(source.name):
            only = SafetensorsFile.of_model(source)
            return cls(only.path, (only,), only.tensors, dict.fromkeys(only.tensors, 0), None, folder)
        index, weight_map = _read_index(source)
        home = Path(index.fingerprint.path).parent
        shards = tuple(SafetensorsFile.open(home / name) for name in sorted(set(weight_map.values())))
        tensors, numbers = dict[str, TensorInfo](), dict[str, int]()
        for number, shard in enumerate(shards):
            for name, info in shard.tensors.items():
                if name in tensors:
                    first = Path(shards[numbers[name]].path).name
                    raise _disagree("E-model-tensor-twice", index, name, first, Path(shard.path).name)
                tensors[name], numbers[name] = info, number
        for name, file in weight_map.items():
            if name not in numbers or Path(shards[numbers[name]].path).name != file:
                raise _disagree("E-model-tensor-missing", index, name, file, None)
        return cls(index.fingerprint.path, shards, tensors, numbers, index, folder)

    @property
    def size(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The entries of all files; where files differ, the first one counts."""
        return {key: text for shard in reversed(self.shards) for key, text in shard.metadata.items()}

    def check_unchanged(self) -> None:
        """Raise FileFormatError where a file changed since it was opened."""
        for shard in self.shards:
            shard.check_unchanged()
        if self.index and Fingerprint.of(self.path) != self.index.fingerprint:
            raise FileFormatError("E-index-changed", file=self.path)

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> dict[str, Tensor]:
        """The named tensors, in the order of `names`. Raises FileFormatError where a file changed."""
        tensors: dict[str, Tensor] = {}
        for number in sorted({self.shard_of[name] for name in names}):
            own = [name for name in names if self.shard_of[name] == number]
            tensors |= self.shards[number].read(own, cache, keep=keep)
        return {name: tensors[name] for name in names}


def _model_in(folder: Path) -> Path:
    """The one index, or the one safetensors file without an index, that a folder holds."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise FileFormatError("E-folder-unreadable", file=str(folder), got=str(error.strerror)) from error
    candidates = [name for name in names if INDEX.fullmatch(name)]
    candidates = candidates or [name for name in names if name.lower().endswith(SAFETENSORS)]
    if len(candidates) == 1:
        return folder / candidates[0]
    other = [name for name in names if name.lower().endswith(PICKLES)]
    raise FileFormatError(
        "E-folder-holds-several-models" if candidates else "E-folder-holds-no-model",
        file=str(folder),
        got=", ".join(candidates or other) or Phrase("R-neither-index-nor-safetensors-file"),
    )


def _read_index(path: Path) -> tuple[Index, dict[str, str]]:
    """An index, and each tensor's file name."""
    fingerprint = Fingerprint.of(path)
    with open_file(fingerprint.path) as file:
        text = file.read(MAX_JSON + 1) if fingerprint.size <= MAX_JSON else b""
    hint = "The index is damaged: download or save the model again"
    try:
        if fingerprint.size > MAX_JSON:
            raise ValueError(phrase("R-bytes-where-at-most-read", size=fingerprint.size, max_json=MAX_JSON))
        read: Any = parse_json(text, unique=True)
        weight_map: Any = read["weight_map"]
        metadata: Any = read.get("metadata") or {}
        if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
            raise ValueError(phrase("R-no-table-tensors"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            "E-index-damaged", file=fingerprint.path, name=type(error).__name__, error=error, hint=hint
        ) from error
    for name, file in cast("dict[str, Any]", weight_map).items():
        # Otherwise a path could name any file on the machine.
        if (
            not isinstance(file, str)
            or file != Path(file).name
            or "\\" in file
            or not file.endswith(SAFETENSORS)
        ):
            raise FileFormatError("E-index-file-absent", file=fingerprint.path, key=name, got=repr(file))
    return Index(fingerprint, cast("dict[str, Any]", metadata)), cast("dict[str, str]", weight_map)


def shard_names(index: str, count: int) -> list[str]:
    """The names of the `count` files beside an index, such as `model-00001-of-00002.safetensors`.

    Raises WriteError for a name that is not the name of an index.
    """
    if not INDEX.fullmatch(index):
        raise WriteError("E-index-name-unusable", file=index)
    return [f"{stem_of(index)}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def stem_of(name: str) -> str:
    """The name of a model's file or index without the ending."""
    index = INDEX.fullmatch(name)
    return index["stem"] + (index["variant"] or "") if index else PurePath(name).stem


def _disagree(code: str, index: Index, key: str, first: str, second: str | None) -> FileFormatError:
    return FileFormatError(
        code,
        file=index.fingerprint.path,
        key=key,
        got=Phrase("R-and-3", {"first": first, "second": second}) if second else first,
    )
