"""What a file of named tensors offers, whichever container it is in."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from ..errors import FileFormatError
from ..maths.shapes import Shape
from .cache import TensorCache
from .dtypes import DTYPE_NAMES

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
TICK = 20_000_000
"""Nanoseconds in which two changes of a file can have the same time: systems count in up to 10 ms."""


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a file's content without reading it."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Fingerprint:
        """Raises FileFormatError where there is no such file, or the system does not tell of it."""
        # Links are kept: a download cache links readable names to files named after their hash.
        full = Path(path).absolute()
        hint = "Check the name, or refresh the list of files"
        try:
            found = full.stat()
            age = time.time_ns() - found.st_mtime_ns
            if 0 <= age < TICK:
                # A change within the same tick of the system's clock would leave the same time.
                time.sleep((TICK - age) / 1e9)
                found = full.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise FileFormatError("there is no such file", file=str(path), hint=hint) from None
        except OSError as error:
            why = str(error.strerror)
            raise FileFormatError("the file cannot be read", file=str(path), got=why, hint=hint) from error
        if not stat.S_ISREG(found.st_mode):
            raise FileFormatError("this is not a file", file=str(path), hint=hint)
        return cls(path=str(full), size=found.st_size, mtime_ns=found.st_mtime_ns)

    @property
    def stamp(self) -> str:
        """A short text that changes with the content and tells nothing of where the file is."""
        return f"{self.size}-{self.mtime_ns}"


class TensorInfo(NamedTuple):
    """A tensor as the header describes it; `start` and `end` are byte offsets in the data section."""

    dtype: str
    shape: Shape
    start: int = 0
    end: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> TensorInfo:
        """Of a tensor that has no place in a file."""
        return cls(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


OFFSETS = slice(2, 4)
"""Both offsets of a `TensorInfo`: to sort by."""


class TensorFile(Protocol):
    """Named tensors in a file or in memory: what they are is known, and each is read on demand."""

    @property
    def path(self) -> str:
        """The full path of the file; what is in memory has a name in its place."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the file, or of the tensors where they are in memory."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The named tensors, which are not to be written to: no mapping of a file stays open.

        What is read from a disk comes from the cache where it is held there, and goes into it unless
        `keep` is False.
        """
        ...


@dataclass(frozen=True)
class DiskFile:
    """A file on a disk, as it was when it was opened."""

    fingerprint: Fingerprint

    @property
    def path(self) -> str:
        return self.fingerprint.path

    @property
    def size(self) -> int:
        return self.fingerprint.size

    def check_unchanged(self) -> None:
        """Raise FileFormatError where the file is another by now."""
        if Fingerprint.of(self.path) != self.fingerprint:
            raise FileFormatError(
                "the file changed after it was opened",
                file=self.path,
                hint="Run again to read the new file",
            )
