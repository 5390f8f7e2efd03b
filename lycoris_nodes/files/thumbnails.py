"""The preview of an adapter: a picture or a clip beside its file, or a picture in its metadata."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ...lycoris_ops import LycorisError, peek_adapter
from .beside import CLIPS, PICTURES, files_beside

THUMBNAIL = "modelspec.thumbnail"
"""ModelSpec's picture in the metadata: `data:image/jpeg;base64,` and the picture."""
SIZE = 512
"""The most pixels of the longer side."""
KEPT = 256
"""How many small pictures are kept, of about 40 kB each."""
UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not a picture, or is too large a picture."""


def thumbnail(path: str) -> tuple[str, bytes | Path]:
    """The media type of an adapter's preview, and the preview: a small JPEG, or the path of a clip.

    Raises LycorisError where there is none.
    """
    for beside in files_beside(path, PICTURES):
        try:
            found = os.stat(beside)
            return "image/jpeg", _small_file(beside, found.st_size, found.st_mtime_ns)
        except UNREADABLE:
            # The next one may be a picture.
            continue
    for beside in files_beside(path, tuple(CLIPS)):
        return next(kind for ending, kind in CLIPS.items() if beside.endswith(ending)), Path(beside)
    for source in _within(path):
        try:
            return "image/jpeg", _small(source)
        except UNREADABLE:
            continue
    raise LycorisError("there is no preview picture", file=path, expected=f"{Path(path).stem}.preview.png")


@lru_cache(maxsize=KEPT)
def _small_file(path: str, size: int, changed: int) -> bytes:
    # Cached by size and time, so that a changed picture is read again.
    return _small(path)


def _small(source: str | io.BytesIO) -> bytes:
    with Image.open(source) as picture:
        # Decode no more of a JPEG than is shown.
        picture.draft("RGB", (SIZE, SIZE))
        picture.thumbnail((SIZE, SIZE))
        out = io.BytesIO()
        # Turn it as its EXIF data say, as browsers do.
        ImageOps.exif_transpose(picture).convert("RGB").save(out, "JPEG", quality=88)
    return out.getvalue()


def _within(path: str) -> Iterator[io.BytesIO]:
    mark, _, data = peek_adapter(path).metadata.get(THUMBNAIL, "").partition(";base64,")
    if mark.startswith("data:image/"):
        try:
            yield io.BytesIO(base64.b64decode(data, validate=True))
        except binascii.Error:
            return
