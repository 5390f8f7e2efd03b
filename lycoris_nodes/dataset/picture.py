"""Read pictures and masks: turn them upright, remove transparency, cut and resize them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...lycoris_ops import TrainError, phrase
from .sizes import PictureFit, Pixels

PICTURES = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff")
"""The endings of pictures. Browsers on Windows save JPEG as JFIF. Only Pillow 11.3 or newer reads AVIF."""
ORIENTATION = 274
"""EXIF's orientation tag. Values 5 to 8 swap width and height."""
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, ArithmeticError),
    *(EOFError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for damaged files and for files that are not pictures."""
SMALL = 128
"""The longest side of a small picture in pixels."""
GAP = 4
"""The pixels between small pictures."""
NEAR = 0.02
"""How far a mask's proportions may differ from its picture's, to allow for rounding."""


class PictureFacts(NamedTuple):
    """What a picture's header says."""

    size: Pixels
    """Width and height of the upright picture."""
    is_animated: bool


def picture_facts(path: Path) -> PictureFacts:
    """The facts of a picture. Raises TrainError for an unreadable one."""
    with _readable(path), Image.open(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        # Cameras put small copies behind their pictures (MPO).
        is_animated = getattr(picture, "is_animated", False) and picture.format != "MPO"
        return PictureFacts((height, width) if turned else (width, height), is_animated)


def size_of(path: Path) -> Pixels:
    """Width and height of the upright picture. Raises TrainError for an unreadable one."""
    return picture_facts(path).size


def whole_of(path: Path) -> Image.Image:
    """The upright picture in RGB, in its own size. Raises TrainError for an unreadable one."""
    with _readable(path):
        return _decoded(path, path.read_bytes())[0]


def pixels_of(
    path: Path, content: bytes, fitted: PictureFit, background: str | None
) -> tuple[Image.Image, Tensor | None]:
    """A picture as it is trained on, and the mask (1, H, W) of its opaque parts.

    Transparent parts get the colour `background`, or white if it is None. The mask is None where nothing is
    transparent, or where a background is given. Raises TrainError for an unreadable picture.
    """
    with _readable(path):
        picture, alpha = _decoded(path, content)
        if alpha is not None:
            picture = drawn_on(background or "white", picture, alpha)
        picture = picture.resize(fitted.size, Image.Resampling.LANCZOS, box=fitted.box)
        if alpha is None or background is not None:
            return picture, None
        return picture, _weights(alpha, fitted)


def mask_of(path: Path, content: bytes, fitted: PictureFit) -> Tensor:
    """A mask (1, H, W) from 0 to 1, cut and resized like its picture. What is transparent in it is black.

    Raises TrainError where its proportions differ from the picture's, and for an unreadable mask.
    """
    with _readable(path):
        drawn, alpha = _decoded(path, content)
        mask = drawn.convert("L") if alpha is None else ImageChops.multiply(drawn.convert("L"), alpha)
        (width, height), (wide, high) = mask.size, fitted.source
        if abs(width * high - height * wide) > NEAR * width * high:
            raise TrainError(
                "E-mask-shape-differs", file=str(path), width=width, height=height, wide=wide, high=high
            )
        return _weights(mask.resize(fitted.source, Image.Resampling.BILINEAR), fitted)


def small(picture: Image.Image, mask: Tensor | None) -> Tensor:
    """A small picture (h, w, 3) of bytes that shows what is learned: what the mask leaves out is dark."""
    if mask is not None:
        dark = Image.eval(picture, lambda value: value // 4)
        picture = Image.composite(picture, dark, Image.fromarray((mask[0] * 255).to(torch.uint8).numpy()))
    else:
        picture = picture.copy()
    picture.thumbnail((SMALL, SMALL))
    return torch.from_numpy(np.array(picture))


def row(pictures: Sequence[Tensor]) -> Tensor:
    """Small pictures (h, w, 3) of bytes in one row."""
    if len(pictures) == 1:
        return pictures[0]
    height = max(len(picture) for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + GAP * (len(pictures) - 1)
    joined, left = torch.full((height, width, 3), 255, dtype=torch.uint8), 0
    for small_picture in pictures:
        joined[: small_picture.shape[0], left : left + small_picture.shape[1]] = small_picture
        left += small_picture.shape[1] + GAP
    return joined


def picture_of(pixels: Tensor) -> Image.Image:
    """The picture of pixels (H, W, 3) from 0 to 1."""
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def _decoded(path: Path, content: bytes) -> tuple[Image.Image, Image.Image | None]:
    with Image.open(io.BytesIO(content)) as opened:
        return upright(path, opened)


def drawn_on(colour: str, picture: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """A picture in RGB with a colour in its transparent parts."""
    return Image.composite(picture, Image.new("RGB", picture.size, colour), alpha) if alpha else picture


def upright(path: Path, opened: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The upright picture in RGB, and its opacity; None where all of it is opaque."""
    picture = ImageOps.exif_transpose(opened)
    if picture.mode == "F":
        raise TrainError("E-picture-range-unknown", file=str(path))
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # 16 bits a colour: Pillow would clip the values at 255.
        values = np.asarray(picture).astype(np.float64) / 257
        picture = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    alpha = None
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
    return picture.convert("RGB"), alpha


def _weights(mask: Image.Image, fitted: PictureFit) -> Tensor:
    fit = mask.resize(fitted.size, Image.Resampling.BILINEAR, box=fitted.box)
    return torch.from_numpy(np.asarray(fit, dtype=np.float32) / 255)[None]


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """A context in which an error names the file of the picture that cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        # Pillow refuses pictures of more than about 180 million pixels.
        is_huge = isinstance(error, Image.DecompressionBombError)
        remedy = "Make it smaller" if is_huge else "Save it again as PNG or JPEG"
        raise TrainError(
            "E-picture-unreadable",
            file=str(path),
            remedy=remedy,
            got=phrase("R-no-picture")
            if isinstance(error, UnidentifiedImageError)
            else getattr(error, "strerror", None) or str(error),
        ) from error
