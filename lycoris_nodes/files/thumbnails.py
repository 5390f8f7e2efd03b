"""The preview picture of an adapter: a picture beside its file, or one in its metadata."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ...lycoris_ops import LycorisError, peek_adapter

ENDINGS = tuple(
    f"{mark}.{kind}" for mark in (".preview", "") for kind in ("png", "jpg", "jpeg", "webp", "gif")
)
"""What stands in place of the ending of the adapter's file, as other packs and model managers name
previews."""
THUMBNAIL = "modelspec.thumbnail"
"""ModelSpec's picture in the metadata: `data:image/jpeg;base64,` and the picture."""
SIZE = 512
"""The most pixels of the longer side."""
UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no picture, or too large a one."""


def thumbnail(path: str) -> bytes:
    """The preview of the adapter at this path as a JPEG. Raises LycorisError where there is none."""
    for source in _sources(Path(path)):
        try:
            with Image.open(source) as picture:
                picture.thumbnail((SIZE, SIZE))
                out = io.BytesIO()
                picture.convert("RGB").save(out, "JPEG", quality=88)
        except UNREADABLE:
            # The next one may be a picture.
            continue
        return out.getvalue()
    raise LycorisError("there is no preview picture", file=path, expected=f"{Path(path).stem}.preview.png")


def _sources(path: Path) -> Iterator[Path | io.BytesIO]:
    home = os.path.realpath(path.parent)
    for ending in ENDINGS:
        beside = path.with_name(path.stem + ending)
        # A link could lead out of the model folders.
        if beside.is_file() and Path(os.path.realpath(beside)).is_relative_to(home):
            yield beside
    mark, _, data = peek_adapter(path).metadata.get(THUMBNAIL, "").partition(";base64,")
    if mark.startswith("data:image/"):
        try:
            yield io.BytesIO(base64.b64decode(data, validate=True))
        except binascii.Error:
            return
