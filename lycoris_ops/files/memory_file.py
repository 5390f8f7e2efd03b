"""Named tensors that are in memory and in no file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .cache import TensorCache, size_of
from .tensor_file import TensorInfo


@dataclass(frozen=True, eq=False)
class MemoryFile:
    """Tensors by name, as a file would hold them."""

    path: str
    """What they are called in messages and reports."""
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    held: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> MemoryFile:
        described = {name: TensorInfo.of(tensor) for name, tensor in tensors.items()}
        return cls(path, described, metadata, tensors)

    @property
    def size(self) -> int:
        return size_of(self.held)

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The tensors themselves: there is nothing that a cache could spare."""
        return {name: self.held[name] for name in names}
