"""The files that a model is written to: one, or several with an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import WriteError
from ..files.model_file import INDEX, ModelFile, shard_names
from ..files.tensor_file import PICKLES, SAFETENSORS, TensorInfo
from ..files.writing import check_files, check_name, check_other, safetensors_path

ALONGSIDE = (".jinja", ".json", ".model", ".py", ".tiktoken", ".txt")
"""Endings of files to copy from a model's folder: no program loads a model without its settings and
tokenizer."""


@dataclass(frozen=True)
class Destination:
    """Where a model is to be written, and which tensors each of its files holds."""

    path: Path
    """The file, the index or the folder, as it was asked for."""
    weights: tuple[Path, ...]
    shard_of: Mapping[str, int]
    """The index in `weights` of each tensor's file."""
    index: Path | None = None
    copied: tuple[Path, ...] = ()
    """The files of the base's folder that are copied."""

    @property
    def files(self) -> list[Path]:
        """All files. Readers look for the first, so it is the last to get its name."""
        index = [self.index] if self.index else []
        return [*index, *self.weights, *(self.weights[0].with_name(file.name) for file in self.copied)]

    def check(self, base: ModelFile, *, overwrite: bool) -> None:
        """Raise WriteError where a file is in the way or is one of the base's.

        A folder that holds another model is refused too.
        """
        for path in self.files:
            for source in (base.path, *(shard.path for shard in base.shards), *map(str, self.copied)):
                check_other(path, source)
        check_files(self.files, overwrite=overwrite, make_folder=self.path != self.weights[0])
        if self.path.is_dir():
            known = {path.name for path in self.files}
            others = (path for path in sorted(self.path.iterdir()) if path.name not in known)
            beside = next((path for path in others if path.suffix.lower() in SAFETENSORS), None)
            if beside is not None:
                raise WriteError("E-folder-holds-another-model", file=str(self.path), got=beside.name)

    def index_text(self, base: ModelFile, tensors: Mapping[str, TensorInfo]) -> bytes:
        """The index of the files, with the metadata of the base's index."""
        metadata = dict(base.index.metadata) if base.index else {}
        metadata["total_size"] = sum(info.end - info.start for info in tensors.values())
        files = {name: self.weights[number].name for name, number in sorted(self.shard_of.items())}
        return (json.dumps({"metadata": metadata, "weight_map": files}, indent=2) + "\n").encode()


def destination_of(base: ModelFile, out_path: str | os.PathLike[str]) -> Destination:
    """Where a model that is made from `base` is to be written.

    A safetensors file gets all tensors. With an index or a folder there are as many files as in the base. A
    folder also gets copies of the files in the base's folder that end in ALONGSIDE, indexes excepted. Raises
    WriteError for any other name, and for an index where the base has none.
    """
    path = check_name(out_path)
    several = base.folder or base.index
    if path.suffix.lower() in SAFETENSORS or not several:
        return Destination(safetensors_path(path), (path,), dict.fromkeys(base.tensors, 0))
    named = INDEX.fullmatch(path.name)
    if named and not base.index:
        raise WriteError("E-model-file-has-no-index", file=str(path), got=Path(base.path).name)
    if not named and path.suffix.lower() in (".json", *PICKLES):
        raise WriteError("E-model-not-safetensors", file=str(path), got=path.suffix)
    home = path.parent if named else path
    own = path.name if named else Path(base.path).name
    names = shard_names(own, len(base.shards)) if base.index else [own]
    copied = () if named or not base.folder else tuple(_alongside(base.folder))
    index = home / own if base.index else None
    return Destination(path, tuple(home / name for name in names), base.shard_of, index, copied)


def _alongside(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        weights = file.name.endswith(".index.json") or INDEX.fullmatch(file.name)
        if file.is_file() and file.suffix.lower() in ALONGSIDE and not weights:
            yield file
