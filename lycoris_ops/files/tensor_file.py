"""The interface of a file of named tensors, which every container provides."""

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
"""The endings of safetensors files, in lower case."""
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
"""The endings of files that torch saved as pickles, in lower case."""
TICK = 20_000_000
"""Nanoseconds within which two changes of a file can get the same time stamp: systems count time in steps of
up to 10 ms."""


@dataclass(frozen=True)
class Fingerprint:
    """Path, size and time of the last change: what identifies a file's content without reading it."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Fingerprint:
        """The fingerprint of a file as it is at the moment.

        Raises FileFormatError where there is no such file, where the system refuses to describe it, or where
        it is a folder or a device. May sleep up to 20 ms, see `TICK`.
        """
        # Links are not resolved: a download cache links readable names to files that are named by their hash.
        full = Path(path).absolute()
        hint = "Check the name, or refresh the list of files"
        try:
            found = full.stat()
            age = time.time_ns() - found.st_mtime_ns
            if 0 <= age < TICK:
                # A second change within the same tick of the system's clock would leave the same time stamp,
                # so the tick must be over before the time stamp can stand for the content.
                time.sleep((TICK - age) / 1e9)
                found = full.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            # ValueError comes of a null character in the name.
            raise FileFormatError("there is no such file", file=str(path), hint=hint) from None
        except OSError as error:
            why = str(error.strerror)
            raise FileFormatError("the file cannot be read", file=str(path), got=why, hint=hint) from error
        if not stat.S_ISREG(found.st_mode):
            raise FileFormatError("this is not a file", file=str(path), hint=hint)
        return cls(path=str(full), size=found.st_size, mtime_ns=found.st_mtime_ns)

    @property
    def stamp(self) -> str:
        """A short text that changes when the content does. The file's path is not part of it."""
        return f"{self.size}-{self.mtime_ns}"


class TensorInfo(NamedTuple):
    """A tensor as a file's header describes it; `start` and `end` are byte offsets in the data section."""

    dtype: str
    """The safetensors name of the dtype, such as `BF16`."""
    shape: Shape
    start: int = 0
    end: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> TensorInfo:
        """The description of a tensor in memory; both offsets are 0."""
        return cls(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


OFFSETS = slice(2, 4)
"""The slice of a `TensorInfo` that holds both offsets, to sort tensors by the place of their data."""


class TensorFile(Protocol):
    """Named tensors in a file or in memory.

    Their names, dtypes and shapes are known; the tensors themselves are read when they are asked for.
    """

    @property
    def path(self) -> str:
        """The full path of the file, or the name of tensors in memory."""
        ...

    @property
    def size(self) -> int:
        """Size of the file in bytes, or of the tensors where they are in memory."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def check_unchanged(self) -> None:
        """Raise FileFormatError where a file on a disk changed since it was opened."""
        ...

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The named tensors. Callers must not write to them, since the cache may hold the same ones.

        A file on a disk is read through `cache`: tensors that it holds are taken from it, and tensors that
        are read go into it unless `keep` is False. No file and no mapping of it stays open.
        """
        ...


@dataclass(frozen=True)
class DiskFile:
    """A file on a disk, identified by its fingerprint at the time when it was opened."""

    fingerprint: Fingerprint

    @property
    def path(self) -> str:
        return self.fingerprint.path

    @property
    def size(self) -> int:
        return self.fingerprint.size

    def check_unchanged(self) -> None:
        """Raise FileFormatError where the file changed since it was opened."""
        if Fingerprint.of(self.path) != self.fingerprint:
            raise FileFormatError(
                "the file changed after it was opened",
                file=self.path,
                hint="Run again to read the new file",
            )
