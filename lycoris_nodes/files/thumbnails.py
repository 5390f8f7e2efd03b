"""The preview of an adapter: a picture or a clip beside its file, or a picture in its metadata."""

from __future__ import annotations

import base64
import io
import os
import threading
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ...lycoris_ops import LycorisError, adapter_stamp, peek_adapter, phrase
from .beside import CLIPS, PICTURES, files_beside

THUMBNAIL = "modelspec.thumbnail"
"""ModelSpec's picture in the metadata: `data:image/jpeg;base64,` and the picture."""
SIZE = 512
"""The most pixels of the longer side."""
KEPT = 256
"""How many small pictures are kept, of about 40 kB each."""
MEMORY = 100_000_000
"""The most bytes that decoding a picture may take. Strangers made the pictures, and a small file can hold a
huge one."""
BYTES = {"JPEG": 1, "PNG": 10, "GIF": 10, "AVIF": 16, "WEBP": 17}
"""The bytes of memory for a pixel of each format. Of a JPEG no more is decoded than is shown."""
OPAQUE, PROGRESSIVE = 6, 7
"""The same for a PNG without transparency, and for a progressive JPEG, whose coefficients are held whole."""
LONGEST = 16 << 20
"""The most characters of a picture in the metadata."""
UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not a picture, or is too large a picture."""


def thumbnail(path: str) -> tuple[str, bytes | Path]:
    """The media type of an adapter's preview, and the preview: a small JPEG, or the path of a clip.

    Raises LycorisError where there is none.
    """
    for beside in files_beside(path, PICTURES):
        try:
            state = os.stat(beside)
            return "image/jpeg", _small_file(beside, state.st_size, state.st_mtime_ns)
        except UNREADABLE:
            # The next one may be a picture.
            continue
    for beside in files_beside(path, tuple(CLIPS)):
        return next(kind for ending, kind in CLIPS.items() if beside.endswith(ending)), Path(beside)
    try:
        return "image/jpeg", _small_within(path, adapter_stamp(path))
    except UNREADABLE as error:
        raise LycorisError("E-preview-absent", file=path, stem=Path(path).stem, got=str(error)) from None


# Cached by what changes with a file, so that a changed picture is read again.
@lru_cache(maxsize=KEPT)
def _small_file(path: str, size: int, changed: int) -> bytes:
    return _small(path, size)


@lru_cache(maxsize=KEPT)
def _small_within(path: str, stamp: str) -> bytes:
    mark, _, data = peek_adapter(path).metadata.get(THUMBNAIL, "")[: LONGEST + 1].partition(";base64,")
    if not mark.startswith("data:image/") or len(data) >= LONGEST:
        raise ValueError(phrase("R-no-picture-metadata"))
    content = base64.b64decode(data, validate=True)
    return _small(io.BytesIO(content), len(content))


# One at a time, so that a page that asks for many takes the memory of one.
_ALONE = threading.Lock()


def _small(source: str | io.BytesIO, size: int) -> bytes:
    """A picture as a small JPEG. `size` is its size in bytes. Raises ValueError for one beyond `MEMORY`."""
    Image.init()
    known = [kind for kind in BYTES if kind in Image.OPEN]
    with _ALONE, Image.open(source, formats=known) as picture:
        kind = "JPEG" if picture.format == "MPO" else picture.format or ""
        each = BYTES[kind]
        if kind == "PNG" and picture.mode == "RGB":
            each = OPAQUE
        elif kind == "JPEG" and picture.info.get("progressive"):
            each = PROGRESSIVE
        # Pillow reads the files of these two whole.
        content = 2 * size if kind in ("AVIF", "WEBP") else 0
        width, height = picture.size
        if width * height * each + content > MEMORY:
            raise ValueError(phrase("R-picture-x-pixels-too-large", width=width, height=height))
        # Decode no more of a JPEG than is shown.
        picture.draft("RGB", (SIZE, SIZE))
        picture.thumbnail((SIZE, SIZE))
        out = io.BytesIO()
        # Turn it as its EXIF data say, as browsers do.
        ImageOps.exif_transpose(picture).convert("RGB").save(out, "JPEG", quality=88)
    return out.getvalue()
