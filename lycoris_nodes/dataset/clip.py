"""Read clips: frames at a rate of one's own, turned upright, cut and resized."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...lycoris_ops import TrainError
from .picture import PICTURES, UNREADABLE, size_of, whole_of
from .sizes import PictureFit, Pixels

CLIPS = (".mp4", ".webm", ".gif", ".mov", ".mkv")
FRAMES = ".frames"
"""The end of the name of a folder whose pictures are the frames of a clip, in the order of their names and of
the numbers in them."""
LONGEST = 3600.0
"""The most seconds of a clip."""


@dataclass(frozen=True)
class ClipFacts:
    size: Pixels
    frames: int
    """How many there are at the rate that is asked for."""
    repeated: bool
    """Whether the clip has fewer of its own, so that some come several times."""


@dataclass(frozen=True)
class Cut:
    """A part of a clip, in frames at the rate that is asked for."""

    start: int
    count: int


def cuts_of(frames: int, most: int, step: int, cuts: int) -> list[Cut]:
    """Evenly spaced parts of a clip that do not overlap, at most so many, of `most` frames or fewer.

    Each has a multiple of `step` frames and one more, which is what the VAEs of videos take.
    """
    count = (min(frames, most) - 1) // step * step + 1
    number = max(1, min(cuts, frames // count))
    return [Cut(round(n * (frames - count) / max(1, number - 1)), count) for n in range(number)]


def facts_of(path: Path, rate: float) -> ClipFacts:
    """Read from a clip, without its frames. Raises TrainError for an unreadable one, and one too long."""
    if path.is_dir():
        found = frame_files(path)
        return ClipFacts(size_of(found[0]), len(found), repeated=False)
    with _opened(path) as (container, stream):
        # Without the packets, which hold the data of the whole file.
        times = [
            float(packet.pts * packet.time_base)
            for packet in container.demux(stream)
            if packet.pts is not None
        ]
        count = len(times)
        # The last frame is shown as long as the others: not all files say how long.
        seconds = (max(times) - min(times)) * count / (count - 1) if count > 1 else 0.0
        if seconds > LONGEST:
            raise TrainError(
                "the clip is too long",
                file=str(path),
                got=f"{seconds / 60:.0f} minutes",
                expected=f"at most {LONGEST / 60:.0f}",
                hint="Cut out what is to be learned",
            )
    first = next(_at_times(path, [0.0]))
    # Times of files are rounded.
    frames = max(1, int(seconds * rate + 0.05))
    return ClipFacts(first.size, frames, repeated=frames > count)


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder. Raises TrainError where they have several sizes."""
    found = sorted((path for path in folder.iterdir() if _is_frame(path)), key=_place_of)
    sizes = {path: size_of(path) for path in found}
    if len(set(sizes.values())) != 1:
        other = next((path for path in found if sizes[path] != sizes[found[0]]), folder)
        raise TrainError(
            "the frames of a clip have one size",
            file=str(other),
            got="{} x {}".format(*sizes[other]) if found else "no pictures",
            expected="{} x {}".format(*sizes[found[0]]) if found else "its frames",
        )
    return found


def _is_frame(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(PICTURES) and not name.startswith(".") and path.is_file()


def _place_of(path: Path) -> list[str | int]:
    """The name in parts, its numbers as such: 2 is before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def pixels_of_clip(path: Path, cut: Cut, rate: float, fitted: PictureFit) -> Tensor:
    """The frames of a cut (F, H, W, 3) from 0 to 1, each the one that is shown at its time."""
    if path.is_dir():
        chosen: Iterator[Image.Image] = (
            whole_of(file) for file in frame_files(path)[cut.start : cut.start + cut.count]
        )
    else:
        chosen = _at_times(path, [(cut.start + n) / rate for n in range(cut.count)])
    made = [
        np.asarray(one.resize(fitted.size, Image.Resampling.LANCZOS, box=fitted.box), np.float32) / 255
        for one in chosen
    ]
    return torch.from_numpy(np.stack(made))


def hash_of(path: Path) -> str:
    """A hash of all that a clip is made of."""
    digest = hashlib.sha256()
    for file in frame_files(path) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _at_times(path: Path, times: list[float]) -> Iterator[Image.Image]:
    """The frame that is shown at each of some rising times; the last one also after the end.

    Raises TrainError for a film of which no frame can be decoded.
    """
    left = list(times)
    shown: Any = None
    with _opened(path) as (container, stream):
        for time, frame in _decoded(container, stream):
            # Times of files are rounded to a thousandth.
            while left and shown is not None and left[0] < time - 2e-3:
                yield _picture(shown)
                left.pop(0)
            if not left:
                return
            shown = frame
        if shown is None:
            raise ValueError("no frame of it can be decoded")
        for _ in left:
            yield _picture(shown)


def _decoded(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Each frame with its time from the first one."""
    first: float | None = None
    for frame in container.decode(stream):
        time = float(frame.time or 0.0)
        first = time if first is None else first
        yield time - first, frame


def _picture(frame: Any) -> Image.Image:
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    # Phones store films lying, with how they are to be turned.
    turned = int(getattr(frame, "rotation", 0) or 0)
    return picture.rotate(turned, expand=True) if turned else picture


@contextmanager
def _opened(path: Path) -> Generator[tuple[Any, Any]]:
    """A film and its stream of pictures. Names the file in the error where it cannot be read."""
    try:
        with cast("Any", av).open(str(path)) as container:
            streams = container.streams.video
            if not streams:
                raise ValueError("nothing to see in it")
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
    except (*UNREADABLE, cast("Any", av).FFmpegError) as error:
        raise TrainError(
            "the clip cannot be read",
            file=str(path),
            got=str(error),
            hint="Save it again as MP4, or take it out of the folder",
        ) from error
