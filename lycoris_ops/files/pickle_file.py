"""Adapter files that are pickles, read by torch's weights-only loader and by nothing else."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import FileFormatError
from .cache import TensorCache
from .tensor_file import DiskFile, Fingerprint, TensorInfo


@dataclass(frozen=True)
class PickleFile(DiskFile):
    """A .pt, .pth, .ckpt or .bin file of plain tensors.

    Unlike a safetensors file it can only be read as a whole. It has no metadata.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def open(cls, path: str | os.PathLike[str], cache: TensorCache) -> PickleFile:
        """Read the whole file into the cache and describe its tensors.

        Raises FileFormatError where the file holds anything but plain tensors.
        """
        fingerprint = Fingerprint.of(path)
        loaded = cache.fetch(fingerprint, lambda: _load(fingerprint.path))
        return cls(
            fingerprint,
            {name: TensorInfo.of(tensor) for name, tensor in loaded.items()},
        )

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The named tensors. Raises FileFormatError where the file changed since it was opened.

        `keep` has no effect: the whole file stays in the cache, because a part cannot be read alone.
        """
        self.check_unchanged()
        loaded = cache.fetch(self.fingerprint, lambda: _load(self.path))
        return {name: loaded[name] for name in names}


def _is_safetensors(path: str) -> bool:
    """Whether a file begins like safetensors: 8 bytes of header length, then the header's opening brace."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _load(path: str) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        # These say nothing about the file's content.
        raise
    except Exception as error:  # a damaged pickle makes the unpickler raise anything
        raise FileFormatError(
            "not a pickle of plain tensors",
            file=path,
            expected="a table of tensors saved by torch, with nothing else in it",
            # torch's own text is left out: it advises a way of loading that runs any code in the file.
            hint="It is a safetensors file: rename it so that it ends in .safetensors"
            if _is_safetensors(path)
            else "It is damaged, or it would run code when loaded: ask for a .safetensors file",
        ) from error
    # A trainer's checkpoint has its table of tensors under `state_dict`, a plain file at the top.
    outer = cast("dict[Any, Any]", loaded) if isinstance(loaded, dict) else {}
    inner: Any = outer.get("state_dict", loaded)
    if not isinstance(inner, dict):
        raise FileFormatError(
            "the file holds no table of tensors",
            file=path,
            got=type(cast("object", inner)).__name__,
            expected="dict",
        )
    table = cast("dict[Any, Any]", inner)
    for name, value in table.items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                "an entry is not a tensor",
                file=path,
                key=str(name),
                got=type(value).__name__,
                expected="a tensor",
            )
    return {str(name): value.detach() for name, value in table.items()}
