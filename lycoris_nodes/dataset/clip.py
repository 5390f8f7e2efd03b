"""Read clips: frames at any rate, turned upright, cut and resized, and their sound."""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...lycoris_ops import TrainError, phrase
from .animated import animation_of, frames_of, is_animated
from .picture import PICTURES, UNREADABLE, size_of, whole_of
from .sizes import PictureFit, Pixels

CLIPS = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".m4v", ".avi")
FRAMES = ".frames"
"""A folder with this ending is a clip: its pictures are the frames, in natural order (2 before 10)."""
FILMS = (*CLIPS, FRAMES)
"""The endings of clips. Animated WebP and APNG are clips too, and have those of pictures."""
LONGEST = 3600.0
"""The longest clip in seconds."""
ROUNDED = 0.05
"""What a clip may lack of its last frame, because files round their times."""
GIF_END = b";"
"""The last byte of a GIF."""
GAP = 0.005
"""Each piece of sound follows the one before, unless its stated time differs by more than these seconds."""
AHEAD = 16
"""AVI files have the times of frames in the order of decoding, which differs by at most so many frames."""
LATER = 1.2
"""A film may state up to this many times the length of its frames: the last one may be shown longer."""


@dataclass(frozen=True)
class ClipFacts:
    size: Pixels
    frames: int
    """The number of frames at the requested rate."""
    repeated: bool = False
    """Whether the file has fewer frames, so that some are repeated."""
    cut_off: bool = False
    """Whether the end of the file is missing, as in an incomplete copy."""
    sounds: bool = False
    """Whether it has sound."""


@dataclass(frozen=True)
class Cut:
    """A part of a clip, in frames at the requested rate."""

    start: int
    count: int


def cuts_of(frames: int, most: int, step: int, cuts: int, least: int = 1) -> list[Cut]:
    """At most `cuts` evenly spaced parts of a clip that do not overlap, each of at most `most` frames.

    Each has a multiple of `step` frames plus `least`, as video VAEs need; of fewer than that, one.
    """
    count = (min(frames, most) - least) // step * step + least if min(frames, most) >= least else 1
    number = max(1, min(cuts, frames // count))
    return [Cut(round(n * (frames - count) / max(1, number - 1)), count) for n in range(number)]


def facts_of(path: Path, rate: float) -> ClipFacts:
    """The facts of a clip. Only its first frame is decoded.

    Raises TrainError for a clip that cannot be read or is too long.
    """
    if path.is_dir():
        files = frame_files(path)
        return ClipFacts(size_of(files[0]), len(files))
    if is_animated(path):
        with _readable(path):
            seconds, count = _bounded(path, sum(shown := animation_of(path).seconds)), len(shown)
        frames = max(1, int(seconds * rate + ROUNDED))
        return ClipFacts(size_of(path), frames, frames > count)
    with _opened(path) as (container, stream):
        # Keep no packets: they hold the data of the whole file.
        times = [
            float(packet.pts * packet.time_base)
            for packet in container.demux(stream)
            if packet.pts is not None
        ]
        count = len(times)
        # Assume that the last frame is shown as long as the others: not all files state its length.
        seconds = (max(times) - min(times)) * count / (count - 1) if count > 1 else 0.0
        cut_off = _is_cut_off(path, container, stream, count, _bounded(path, seconds))
        sounds = bool(container.streams.audio)
    with closing(_at_times(path, [0.0])) as shown:
        first = next(shown)
    frames = max(1, int(seconds * rate + ROUNDED))
    return ClipFacts(first.size, frames, frames > count, cut_off, sounds)


def is_film(path: Path) -> bool:
    """Whether a picture or clip has several frames."""
    return path.name.lower().endswith(FILMS) or is_animated(path)


def _bounded(path: Path, seconds: float) -> float:
    """The length of a clip. Raises TrainError for more than `LONGEST`."""
    if seconds > LONGEST:
        raise TrainError(
            "E-clip-too-long", file=str(path), seconds=f"{seconds / 60:.0f}", longest=f"{LONGEST / 60:.0f}"
        )
    return seconds


def _is_cut_off(path: Path, container: Any, stream: Any, count: int, seconds: float) -> bool:
    """Whether the end of a film is missing: its file states more than the frames and seconds found."""
    if path.suffix.lower() == ".gif":
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != GIF_END
    if stream.frames:
        return count < stream.frames
    # The duration of a file with sound proves nothing: the sound may be longer.
    alone = len(container.streams) == 1 and count > 1
    return alone and (container.duration or 0) / 1e6 > LATER * seconds


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder, in natural order. Raises TrainError for none, and for several sizes."""
    frames = sorted((path for path in folder.iterdir() if _is_frame(path)), key=_place_of)
    if not frames:
        raise TrainError("E-clip-without-frames", file=str(folder), frames=FRAMES, pictures=PICTURES)
    sizes = {path: size_of(path) for path in frames}
    if other := next((path for path in frames if sizes[path] != sizes[frames[0]]), None):
        raise TrainError(
            "E-clip-sizes-differ",
            file=str(other),
            got="{} x {}".format(*sizes[other]),
            expected="{} x {}".format(*sizes[frames[0]]),
        )
    return frames


def _is_frame(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(PICTURES) and not name.startswith(".") and path.is_file()


def _place_of(path: Path) -> list[str | int]:
    """The name in parts, with numbers as integers: 2 comes before 10."""
    return [int(segment) if segment.isdecimal() else segment for segment in re.split(r"(\d+)", path.name)]


def pixels_of_clip(path: Path, cut: Cut, rate: float, fitted: PictureFit) -> Tensor:
    """The frames of a cut (F, H, W, 3) from 0 to 1, each as the clip shows it at its time."""
    if path.is_dir():
        chosen: Iterator[Image.Image] = (
            whole_of(file) for file in frame_files(path)[cut.start : cut.start + cut.count]
        )
    else:
        chosen = _at_times(path, [(cut.start + n) / rate for n in range(cut.count)])
    frames = [
        np.asarray(image.resize(fitted.size, Image.Resampling.LANCZOS, box=fitted.box), np.float32) / 255
        for image in chosen
    ]
    return torch.from_numpy(np.stack(frames))


def sound_of(path: Path, cut: Cut, rate: float, samples: int) -> Tensor:
    """The sound (1, channels, n) of a cut, at `samples` a second.

    It begins with the first frame of the cut, is as long as its frames, and is silent where the file has no
    sound. More than two channels are mixed down to two.
    """
    with _opened(path) as (container, pictures):
        stream = container.streams.audio[0]
        begin = float((pictures.start_time or 0) * pictures.time_base) + cut.start / rate
        count, channels = round(cut.count / rate * samples), min(2, stream.channels)
        sound = torch.zeros(1, channels, count)
        end: int | None = None
        mixed = cast("Any", av).AudioResampler("fltp", "stereo" if channels == 2 else "mono", samples)
        # The resampler gives its last samples for None.
        for frame in chain(container.decode(stream), [None]):
            for resampled in mixed.resample(frame):
                values = torch.from_numpy(resampled.to_ndarray())
                start = round((float(resampled.time or 0.0) - begin) * samples)
                # Some files round times to a thousandth of a second.
                first = start if end is None or abs(start - end) > GAP * samples else end
                end = first + values.shape[1]
                if first >= count:
                    return sound
                if end > 0:
                    values = values[:, max(0, -first) : count - first]
                    sound[0, :, max(0, first) : max(0, first) + values.shape[1]] = values
    return sound


def hash_of(path: Path) -> str:
    """A hash of a clip's file, or of all its frames."""
    digest = hashlib.sha256()
    for file in frame_files(path) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _at_times(path: Path, times: list[float]) -> Generator[Image.Image]:
    """The frame that is shown at each of these rising times; after the end of the film, its last one.

    Raises TrainError if no frame of the film can be decoded.
    """
    left = list(times)
    shown: Any = None
    with _frames(path) as frames:
        for time, frame in frames:
            # Files round their times to a thousandth.
            while left and shown is not None and left[0] < time - 2e-3:
                yield _picture(shown)
                left.pop(0)
            if not left:
                return
            shown = frame
        if shown is None:
            raise ValueError(phrase("R-no-frame-can-be-decoded"))
        for _ in left:
            yield _picture(shown)


@contextmanager
def _frames(path: Path) -> Generator[Iterator[tuple[float, Any]]]:
    """Each frame of a film with its time from the first one. An error names the file."""
    if is_animated(path):
        with _readable(path), closing(frames_of(path)) as frames:
            yield frames
    else:
        with _opened(path) as (container, stream):
            yield _decoded(container, stream)


def _decoded(container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Each frame with its time from the first one."""
    first: float | None = None
    for time, frame in _in_order(container.decode(stream), AHEAD if container.format.name == "avi" else 0):
        first = time if first is None else first
        yield time - first, frame


def _in_order(frames: Iterable[Any], ahead: int) -> Iterator[tuple[float, Any]]:
    """The frames with their times in order: each takes the lowest time that is left, of those up to `ahead`
    frames after it."""
    times: list[float] = []
    waiting: deque[Any] = deque()
    for frame in frames:
        heappush(times, float(frame.time or 0.0))
        waiting.append(frame)
        if len(waiting) > ahead:
            yield heappop(times), waiting.popleft()
    while waiting:
        yield heappop(times), waiting.popleft()


def _picture(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    # Phones store films on their side, with the angle to turn them by.
    turned = int(getattr(frame, "rotation", 0) or 0)
    return picture.rotate(turned, expand=True) if turned else picture


@contextmanager
def _opened(path: Path) -> Generator[tuple[Any, Any]]:
    """A film and its stream of pictures. If it cannot be read, the error names the file."""
    with _readable(path), cast("Any", av).open(str(path)) as container:
        streams = container.streams.video
        if not streams:
            raise ValueError(phrase("R-has-no-pictures"))
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """A context in which an error names the clip that cannot be read."""
    try:
        yield
    except (*UNREADABLE, cast("Any", av).FFmpegError) as error:
        raise TrainError(
            "E-clip-unreadable", file=str(path), got=getattr(error, "strerror", None) or str(error)
        ) from error
