"""Named tensors in memory, with the interface of a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .cache import TensorCache, size_of
from .tensor_file import TensorInfo


@dataclass(frozen=True, eq=False)
class MemoryFile:
    """Tensors in memory, offered as a `TensorFile`."""

    path: str
    """The name that messages and reports use in place of a file's path."""
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    held: Mapping[str, Tensor] = field(repr=False)
    """The tensors themselves, by name."""

    @classmethod
    def of(cls, path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> MemoryFile:
        described = {name: TensorInfo.of(tensor) for name, tensor in tensors.items()}
        return cls(path, described, metadata, tensors)

    @property
    def size(self) -> int:
        return size_of(self.held)

    def check_unchanged(self) -> None:
        """Does nothing: there is no file that could change."""

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The named tensors themselves. The cache is not used, because they are in memory already."""
        return {name: self.held[name] for name in names}
