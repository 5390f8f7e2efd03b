"""The interface of a file of named tensors, which every container provides."""

from __future__ import annotations

import math
import os
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from torch import Tensor

from ..errors import FileFormatError
from ..maths.shapes import Shape
from .bounds import MAX_DIMENSIONS, MAX_DOTS, MAX_ELEMENTS, MAX_KEY, MAX_TENSORS
from .cache import TensorCache
from .dtypes import DTYPE_NAMES

SAFETENSORS = (".safetensors", ".sft")
"""The endings of safetensors files, in lower case."""
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
"""The endings of files that torch saved as pickles, in lower case."""
TICK = 20_000_000
"""Nanoseconds within which two changes of a file can get the same time stamp. Operating systems count in
steps of up to 10 ms."""


def _clock_of_stamps() -> int:
    """The time in ns on the clock that gives files their time stamps.

    On Linux this is CLOCK_REALTIME_COARSE, number 5, for which Python has no name. On a busy virtual machine
    this clock stands still for longer than a tick.
    """
    return time.clock_gettime_ns(5) if sys.platform == "linux" else time.time_ns()


@dataclass(frozen=True)
class Fingerprint:
    """The path, size and modification time of a file, which identify its content without reading it."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Fingerprint:
        """The current fingerprint of a file.

        Raises FileFormatError where there is no such file, where it is a folder or a device, or where the
        system gives no information on it. Sleeps until the last change is 20 ms old, see `TICK`.
        """
        # Links are not resolved: a download cache links readable names to files that are named by their hash.
        hint = "Check the name and the folder"
        try:
            full = Path(path).absolute()
            status = full.stat()
            # A second change within the same tick of the system's clock gets the same time stamp, so a stamp
            # identifies the content only after the tick. A stamp may be a little ahead of the clock: newer
            # kernels give finer stamps, and may give another file the same one.
            changed = status.st_mtime_ns
            while abs(age := _clock_of_stamps() - changed) < TICK:
                time.sleep((TICK - age) / 1e9)
                status = full.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            # ValueError: the name holds a null, or another character that the disk does not allow.
            raise FileFormatError("E-file-absent", file=str(path), hint=hint) from None
        except OSError as error:
            why = str(error.strerror)
            raise FileFormatError("E-config-file-unreadable", file=str(path), got=why, hint=hint) from error
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError("E-not-a-file", file=str(path), hint=hint)
        return cls(path=str(full), size=status.st_size, mtime_ns=status.st_mtime_ns)

    @classmethod
    def unstamped(cls, path: Path) -> Fingerprint:
        """The fingerprint of a file that is still being written. It has no time, so there is no wait."""
        return cls(path=str(path.absolute()), size=path.stat().st_size, mtime_ns=0)

    @property
    def stamp(self) -> str:
        """A short text that changes when the content changes. The file's path is not part of it."""
        return f"{self.size}-{self.mtime_ns}"


class TensorInfo(NamedTuple):
    """The description of a tensor in a file's header. `start` and `end` are byte offsets in the data
    section."""

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
"""The slice of a `TensorInfo` with both offsets, to sort tensors by where their data is."""


class TensorFile(Protocol):
    """Named tensors in a file or in memory.

    Names, dtypes and shapes are known. The tensors themselves are read on request.
    """

    @property
    def path(self) -> str:
        """The full path of the file, or the name of tensors in memory."""
        ...

    @property
    def size(self) -> int:
        """Size in bytes of the file, or of tensors in memory."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def check_unchanged(self) -> None:
        """Raise FileFormatError where a file on a disk changed since it was opened."""
        ...

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The named tensors. Callers must not write to them, since the cache may hold the same tensors.

        A file on a disk is read through `cache`, which keeps the tensors unless `keep` is False. The file is
        closed afterwards, and no mapping of it stays open.
        """
        ...


@dataclass(frozen=True)
class DerivedFile:
    """A file with some tensors that are made from the tensors of another `file`, or added to them."""

    file: TensorFile
    tensors: Mapping[str, TensorInfo]
    makers: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
    """For each tensor that is made: the name of the tensor of `file` that it is made from, and the
    function."""
    added: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The tensors that are not read from `file`."""

    def restored(self, keys: Collection[str]) -> DerivedFile:
        """This file with the tensors of these keys as they are in `file`. Added tensors are left out."""
        own = self.file.tensors
        back = {key for key in keys if key in own or key in self.added}
        tensors = {key: info for key, info in self.tensors.items() if key not in back}
        return DerivedFile(
            self.file,
            tensors | {key: own[key] for key in own if key in back},
            {key: how for key, how in self.makers.items() if key not in back},
            {key: tensor for key, tensor in self.added.items() if key not in back},
        )

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.file.metadata

    def check_unchanged(self) -> None:
        """Raise FileFormatError where `file` changed since it was opened."""
        self.file.check_unchanged()

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """See `TensorFile`. The tensors of `file` are always kept, because several tensors may be made from
        one."""
        makers = {name: self.makers[name] for name in names if name in self.makers}
        own = [name for name in names if name not in self.added]
        sources = {name: makers[name][0] if name in makers else name for name in own}
        held = self.file.read(tuple(dict.fromkeys(sources.values())), cache, keep=keep or bool(makers))
        added = {name: self.added[name] for name in names if name in self.added}
        tensors = added | {name: held[source] for name, source in sources.items()}
        return tensors | {name: make(tensors[name]) for name, (_, make) in makers.items()}


@dataclass(frozen=True)
class DiskFile(ABC):
    """A file on a disk, identified by its fingerprint when it was opened."""

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
            raise FileFormatError("E-file-changed", file=self.path)

    def read(self, names: Collection[str], cache: TensorCache, *, keep: bool = True) -> Mapping[str, Tensor]:
        """The named tensors. Raises FileFormatError where the file changed since it was opened."""
        return cache.fetch((self.fingerprint, tuple(names)), lambda: self._read(names), keep=keep)

    @abstractmethod
    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        """The named tensors, read from the file into new memory. Raises FileFormatError."""


def open_file(path: str) -> BinaryIO:
    """Open for reading. Raises FileFormatError where the system refuses."""
    try:
        # Unbuffered, since each tensor is read in one piece, straight into its own memory.
        return cast("BinaryIO", Path(path).open("rb", buffering=0))
    except OSError as error:
        raise FileFormatError("E-config-file-unreadable", file=path, got=str(error.strerror)) from error


ANSWERS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "Git LFS's pointer to a model",
    b'{"error"': "a site's error message",
}
"""The beginnings of files that a download saved in place of a model, with a description of each."""


def check_no_answer(file: BinaryIO, path: str) -> None:
    """Raise FileFormatError where a file holds a web site's answer in place of a model.

    The file must be at its start, and is at its start again afterwards.
    """
    start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    file.seek(0)
    for begins, answer in ANSWERS.items():
        if start.startswith(begins):
            raise FileFormatError("E-file-not-a-model", file=path, answer=answer, begins=begins.decode())


def read_exactly(file: BinaryIO, view: memoryview, path: str) -> None:
    """Fill `view` from the file. Raises FileFormatError where the file ends before `view` is full."""
    done = 0
    # An unbuffered file may give fewer bytes than asked for.
    while done < len(view):
        try:
            count = cast("Any", file).readinto(view[done:])
        except OSError as error:
            raise FileFormatError("E-config-file-unreadable", file=path, got=str(error.strerror)) from error
        if not count:
            raise FileFormatError("E-file-truncated", file=path, done=done, count=len(view))
        done += count


def check_names(names: Collection[str], path: str) -> None:
    """Raise FileFormatError where a file has too many tensors, or a name that no tensor can have.

    Such a name is longer than `MAX_KEY`, has more than `MAX_DOTS` dots, or holds half of a surrogate pair,
    which cannot be written to a file or a terminal.
    """
    if len(names) > MAX_TENSORS:
        raise FileFormatError("E-tensors-too-many", file=path, max_tensors=MAX_TENSORS, got=str(len(names)))
    for name in names:
        dots = name.count(".")
        if len(name) > MAX_KEY or dots > MAX_DOTS or not is_text(name):
            raise FileFormatError(
                "E-tensor-name-implausible",
                file=path,
                key=name,
                count=len(name),
                dots=dots,
                max_key=MAX_KEY,
                max_dots=MAX_DOTS,
            )


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8. Half of a surrogate pair cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def stated_shape(sizes: Sequence[Any]) -> Shape | None:
    """The sizes that a file gives for a tensor, as a shape; None if no tensor can have this shape.

    A shape has at most `MAX_DIMENSIONS` sizes, all whole numbers from 0. The product of the sizes above 0
    must be at most `MAX_ELEMENTS`.
    """
    if len(sizes) > MAX_DIMENSIONS:
        return None
    for size in sizes:
        # Compare types: for isinstance, True and False are integers.
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            return None
    shape: Shape = tuple(sizes)
    # Filter only where needed: it takes time, and most shapes have no size of 0.
    count = math.prod(filter(None, shape)) if 0 in shape else math.prod(shape)
    return shape if count <= MAX_ELEMENTS else None
