"""Read the weights of a model in a file or in memory one at a time, never all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..maths.shapes import Rows, Shape
from ..maths.tensors import PIECE
from ..messages import phrase
from .cache import TensorCache
from .dtypes import DTYPES, FLOAT8, FLOATS
from .model_file import ModelFile
from .quantised import Codec, plain_floats, quantised_in, stored_as


class Weights(Protocol):
    """The weights of a model by key. A host may provide its own class for models that it has loaded."""

    @property
    def name(self) -> str:
        """The full path of the file, or a name for errors and reports."""
        ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor. For a quantised weight it is the unpacked shape."""
        ...

    def read(self, key: str) -> Tensor:
        """A tensor of any float dtype. Callers must not write to it."""
        ...

    def reads(self, key: str) -> bool:
        """Whether a tensor holds the values of a parameter, not integers or the scales of another tensor."""
        ...

    def grain(self, key: str) -> torch.dtype | None:
        """The dtype that a tensor's values were rounded to; None if torch lacks this dtype."""
        ...


ModelSource = str | os.PathLike[str] | Mapping[str, Tensor] | Weights
"""A safetensors file, an index or a folder (see `ModelFile`), a state dict, or weights that a host reads."""


def weights_of(source: ModelSource, codec: Codec | None = None, *, name: str = "the model") -> Weights:
    """The weights of a file or a state dict.

    `name` is the name of a state dict in messages, and `codec` reads a file's quantised formats. Raises
    FileFormatError for a file that is damaged or not safetensors.
    """
    if isinstance(source, Mapping):
        return MappedWeights(name, source)
    if isinstance(source, (str, os.PathLike)):
        return FileWeights(source, codec)
    return source


class MappedWeights:
    """The weights of a state dict."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self._tensors = tensors
        self.shapes: Mapping[str, Shape] = {key: tuple(tensor.shape) for key, tensor in tensors.items()}

    def read(self, key: str) -> Tensor:
        return self._tensors[key].detach()

    def reads(self, key: str) -> bool:
        return self._tensors[key].is_floating_point()

    def grain(self, key: str) -> torch.dtype | None:
        return self._tensors[key].dtype


class FileWeights:
    """The weights of a model on a disk. A codec reads the quantised ones."""

    def __init__(self, path: str | os.PathLike[str], codec: Codec | None = None) -> None:
        self.file = ModelFile.open(path)
        self._codec = codec
        self._quantised, self._unread = quantised_in(self.file, codec)
        shapes = {key: info.shape for key, info in self.file.tensors.items()}
        self.shapes: Mapping[str, Shape] = shapes | {
            key: weight.shape for key, weight in self._quantised.items()
        }

    @property
    def name(self) -> str:
        return self.file.path

    @cached_property
    def _plain(self) -> set[str]:
        return plain_floats(self.file.tensors, {*self._quantised, *self._unread})

    def read(self, key: str) -> Tensor:
        """Raises FileFormatError where the file changed, or where no codec reads the weight's format."""
        weight = self._quantised.get(key)
        if weight is None and key not in self._plain:
            raise FileFormatError(
                "E-weight-quantised-unreadable",
                file=self.name,
                key=key,
                got=stored_as(self.file.tensors[key].dtype, self._unread.get(key)),
                expected=", ".join((*FLOATS, *(phrase("R-without-scales", name=name) for name in FLOAT8))),
            )
        # Weights are read once, and would evict adapters from a cache.
        if weight is None or self._codec is None:
            return self.file.read([key], TensorCache(0), keep=False)[key]
        return self._codec.decode(weight, self.file.read(list(weight.parts), TensorCache(0), keep=False))

    def grain(self, key: str) -> torch.dtype | None:
        if key in self._quantised:
            return None
        return DTYPES[self.file.tensors[key].dtype]

    def reads(self, key: str) -> bool:
        # Do not skip a weight in an unknown format: reading it must be an error.
        return key in self._quantised or key in self._plain or key.endswith(".weight")


def read_rows(source: Weights, ranges: Sequence[tuple[str, Rows | None]]) -> Tensor:
    """Concatenate tensors, or rows of them. Float8 becomes float32: torch cannot compute with float8."""
    tensors: list[Tensor] = []
    for key, rows in ranges:
        tensor = source.read(key)
        piece = tensor if rows is None else tensor[rows[0] : rows[1]]
        tensors.append(piece.float() if piece.itemsize == 1 else piece)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def rounding_variance(values: Tensor, dtype: torch.dtype) -> float:
    """The mean squared error of rounding values to nearest in `dtype`: ulp^2 / 12 each.

    ulp is the distance between neighbouring numbers, 2^floor(log2 |x|) eps. Subnormal numbers have the ulp of
    the smallest normal one.
    """
    info = torch.finfo(dtype)
    flat = values.detach().reshape(-1)
    # About PIECE values are enough for the mean.
    sample = flat[:: max(1, flat.numel() // PIECE)].float()
    # |x| = f 2^e with f in [0.5, 1), and f = 0 for 0.
    fraction, exponent = torch.frexp(sample)
    step = torch.ldexp(0.5 * fraction.ne(0), exponent).clamp_(min=info.smallest_normal)
    return float((step.double() * info.eps).square().mean()) / 12 if flat.numel() else 0.0
