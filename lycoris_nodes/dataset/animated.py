"""Read animated pictures, WebP and APNG: their frames, and how long each is shown."""

from __future__ import annotations

import os
import struct
from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from ...lycoris_ops import phrase
from .picture import drawn_on, upright
from .sizes import Pixels

LARGEST = 40_000_000
"""The most pixels of a frame: somewhat more than 8K."""
MOST = 36_000
"""The most frames: ten minutes at 60 a second."""
ALL = 2_000_000_000
"""The most pixels of all frames together: more than half a minute of Full HD at 30 a second."""
CHUNKS = 500_000
"""The most chunks in a file."""
PNG, WEBP = b"\x89PNG\r\n\x1a\n", b"WEBP"
"""What a file begins with. A WebP has it behind `RIFF` and four bytes of its size."""
SHORT, USUAL = 0.01, 0.1
"""A frame of at most `SHORT` seconds is shown for `USUAL`, as in browsers."""


class Animation(NamedTuple):
    """What the chunks of an animated picture say."""

    size: Pixels
    seconds: list[float]
    """How long each frame is shown."""
    first: int
    """The number of its first frame: 1 where an APNG has another picture in front of them, else 0."""


def is_animated(path: Path) -> bool:
    """Whether a file is a WebP or PNG of several frames. What is damaged is named when it is read."""
    frames = 0
    with suppress(OSError, ValueError, struct.error), path.open("rb") as file:
        for kind, data in islice(_chunks(file), CHUNKS):
            if kind == b"acTL":
                return struct.unpack(">I", data[:4])[0] > 1
            frames += kind == b"ANMF"
            # The pixels of a still picture.
            if frames > 1 or kind in (b"IDAT", b"VP8 ", b"VP8L"):
                break
    return frames > 1


def animation_of(path: Path) -> Animation:
    """The facts of an animated picture; nothing is decoded.

    Raises ValueError for one whose end is missing, and for one beyond the bounds of this module.
    """
    size, stated, first = (0, 0), None, 0
    seconds: list[float] = []
    with path.open("rb") as file:
        for number, (kind, data) in enumerate(_chunks(file)):
            if kind == b"IHDR":
                size = struct.unpack(">II", data[:8])
            elif kind == b"VP8X":
                size = (1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little"))
            elif kind == b"acTL":
                (stated,) = struct.unpack(">I", data[:4])
            elif kind == b"ANMF":
                seconds.append(_shown(int.from_bytes(data[12:15], "little"), 1000))
            elif kind == b"fcTL":
                seconds.append(_shown(*struct.unpack(">HH", data[20:24])))
            elif kind == b"IDAT" and not seconds:
                first = 1
            if len(seconds) > MOST or number > CHUNKS:
                raise ValueError(phrase("R-has-more-than-frames-or", most=MOST, chunks=CHUNKS))
    width, height = size
    if width * height > LARGEST or width * height * len(seconds) > ALL:
        raise ValueError(phrase("R-frames-x-pixels-too-much", count=len(seconds), width=width, height=height))
    if stated not in (None, len(seconds)):
        raise ValueError(phrase("R-states-frames-has", stated=stated, count=len(seconds)))
    return Animation((width, height), seconds, first)


def frames_of(path: Path) -> Generator[tuple[float, Image.Image]]:
    """Each frame with its time from the first one: upright, in RGB, white where it is transparent."""
    animation, time = animation_of(path), 0.0
    with Image.open(path, formats=["PNG", "WEBP"]) as opened:
        for number, seconds in enumerate(animation.seconds, animation.first):
            opened.seek(number)
            yield time, drawn_on("white", *upright(path, opened))
            time += seconds


def _shown(count: int, unit: int) -> float:
    """The seconds for which a frame is shown."""
    seconds = count / (unit or 100)
    return seconds if seconds > SHORT else USUAL


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the first bytes of each chunk; nothing for a file that is neither PNG nor WebP.

    Raises ValueError where the file ends within one.
    """
    begin = file.read(12)
    is_png = begin.startswith(PNG)
    if not is_png and begin[8:] != WEBP:
        return
    offset, end, kind = 8 if is_png else 12, os.fstat(file.fileno()).st_size, b""
    stated = end if is_png else 8 + int.from_bytes(begin[4:8], "little")
    while offset < min(stated, end) and kind != b"IEND":
        file.seek(offset)
        head = file.read(8)
        if is_png:
            length, kind = struct.unpack(">I4s", head)
        else:
            kind, length = struct.unpack("<4sI", head)
        if offset + 8 + length > end:
            raise ValueError(phrase("R-end-missing"))
        yield kind, file.read(min(length, 26))
        offset += 8 + length + (4 if is_png else length % 2)
    if stated > end or (is_png and kind != b"IEND"):
        raise ValueError(phrase("R-end-missing"))
