"""A cache of encoded pictures and captions on disk, keyed by a hash of everything they are made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...lycoris_ops import FileFormatError, TreeForm, WriteError

T = TypeVar("T")

FORM = TreeForm("lycoris_encoded", 1, "an encoded picture or caption")
MOST = 20 * 10**9
"""The most bytes kept, for all folders of pictures together."""
SAMPLED = 256
"""At least so many values of a weight are hashed. Two models differ in nearly all values of most weights."""


class Kept:
    """A folder of encoded pictures and captions, each in a file that appears only when it is whole.

    Above `most` bytes the least recently used files are deleted, but none that was used through this object.
    Any file may be deleted at any time.
    """

    def __init__(self, folder: Path | None, most: int = MOST) -> None:
        """`most` is in bytes. Without a folder each value is made anew, and none is kept."""
        self.folder = folder
        self.most = most
        self.made = 0
        """How many values were not found and had to be made."""
        self._used: set[Path] = set()

    def fetch(self, key: str | None, make: Callable[[], T]) -> T:
        """The value under a key, read from disk or made and kept. Without a key it is always made.

        Raises WriteError where it cannot be kept.
        """
        if self.folder is None or key is None:
            self.made += 1
            return make()
        path = self.folder / f"{key}.safetensors"
        if path.is_file():
            # One that is damaged, or of another version, is made again.
            with suppress(FileFormatError, FileNotFoundError):
                value = FORM.read(path)
                # The folder may be read-only.
                with suppress(OSError):
                    os.utime(path)
                self._used.add(path)
                return value
        value = make()
        self.made += 1
        try:
            # `write` makes only the last folder.
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            FORM.write(path, value)
        except (WriteError, OSError) as error:
            raise WriteError(
                "E-encodings-not-kept", file=str(path), got=getattr(error, "problem", str(error))
            ) from error
        self._used.add(path)
        return value

    def sweep(self) -> int:
        """Delete files above the limit, and return the bytes left."""
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*.safetensors") if self.folder else ():
            with suppress(FileNotFoundError):
                state = path.stat()
                files.append((state.st_mtime, state.st_size, path))
        size = sum(each for _, each, _ in files)
        for _, each, path in sorted(files):
            if size <= self.most:
                break
            if path not in self._used:
                # Another process may read it.
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    size -= each
        return size


def key_of(*values: Any, default: Callable[[Any], Any] | None = None) -> str:
    """A key of texts, numbers and lists of these, and of what `default` makes such values of."""
    return hashlib.sha256(json.dumps(values, default=default).encode()).hexdigest()[:40]


def identity_of(weights: Mapping[str, Tensor], *settings: str) -> str:
    """A hash that identifies a model: the names, shapes and dtypes of its weights, and some of their values.

    Reading all weights of a text encoder would take longer than encoding its captions.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLED)].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
