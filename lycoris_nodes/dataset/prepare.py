"""From a folder of pictures to what a training takes: latents, conditionings and masks."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...lycoris_ops import LycorisError, TrainError, few, number_of
from ..host.files import shown_path
from ..host.page import Progress, picture_tensor
from ..training.data.captions import sizes_told
from .folder import Found, PictureFolder
from .kept import Kept, key_of
from .picture import mask_of, pixels_of, size_of, small
from .sizes import PictureFit, Pixels, fit
from .texts import caption_of_file, may_be_mirrored, orders_of, with_trigger

CUT = 0.2
"""The share of a picture above which the report names it as cut off."""
SHOWN, GAP = 25, 4
"""How many pictures are shown at most, and the pixels between them."""

Conditioning = list[Any]
"""As the host has it: pairs of a tensor and settings."""
_Encoded = tuple[Tensor, Tensor | None, Tensor]
"""A picture's latent, its mask if it has one, and a small picture of it."""


@dataclass(frozen=True)
class Encoder:
    """A VAE or text encoder: what it makes of pixels (1, H, W, 3) or a text, and its identity."""

    encode: Callable[[Any], Any]
    identity: str | None
    """What tells it from others. None where nothing does: what it makes is not kept then."""


@dataclass(frozen=True)
class PictureSettings:
    """How a folder is prepared; see the inputs of the node."""

    resolution: int
    step: int
    """Pixels between two sizes of a side."""
    enlarge: bool = True
    """Whether small pictures are enlarged to the resolution."""
    mirror: bool = False
    """Whether each picture is there mirrored too."""
    background: str | None = None
    """The colour that transparent parts get. None: they are masked."""
    trigger: str = ""
    tag_orders: int = 1
    """How many orders of its tags each caption is there in."""
    kept_tags: int = 1
    """How many tags stay in front in all orders."""
    held_out: int = 0
    """How many pictures are not trained on."""
    sized: bool = False
    """Whether the model is told the size of pictures and how they were cut, as SDXL is."""


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """One latent (1, C, ...), its caption, and its mask (1, H, W) if it has one: 1 is learned."""

    latent: Tensor
    text: str
    conditioning: Conditioning
    mask: Tensor | None
    size: Pixels
    """Width and height of the picture as it is trained."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """What comes of a folder. A sample that counts several times is there several times, as one object."""

    training: list[PreparedPicture]
    held_out: list[PreparedPicture]
    empty: Conditioning
    """The conditioning of no text."""
    shown: Image.Image
    """Its first pictures, small."""
    report: list[str]

    @property
    def masks(self) -> list[Tensor]:
        """A mask for each sample that is trained on, white where it has none. None at all if none has one."""
        if not any(one.mask is not None for one in self.training):
            return []
        # One value, seen everywhere, takes no memory.
        white = torch.ones(1, 1, 1)
        return [
            white.expand(1, one.size[1], one.size[0]) if one.mask is None else one.mask
            for one in self.training
        ]


@dataclass(frozen=True)
class _Planned:
    """A picture, how it will fit, and its caption."""

    found: Found
    fit: PictureFit
    text: str
    held_out: bool
    mirrored: tuple[bool, ...]

    def texts(self, settings: PictureSettings) -> list[str]:
        """The caption in all its orders."""
        orders = 1 if self.held_out else settings.tag_orders
        return orders_of(self.text, orders, settings.kept_tags)


def prepared(
    folder: PictureFolder,
    settings: PictureSettings,
    vae: Encoder,
    clip: Encoder,
    kept: Kept,
    progress: Callable[[int], Progress],
    check: Callable[[Tensor], object],
    stage: Callable[[str, int, int], None],
) -> DataSet:
    """Encode the pictures and captions of a folder, or find them where they were kept.

    `check` raises LycorisError for a latent that the model cannot be trained on. `progress(total)` gives what
    is called after each picture and caption, which may end the work, and `stage` before each of them.

    Raises TrainError, with the file, for pictures, captions and masks that cannot be used, and for pictures
    without a caption.
    """
    planned = _planned(folder, settings, progress(len(folder.pictures)))
    texts = sorted({text for one in planned for text in one.texts(settings)} | {""})
    count = sum(len(one.mirrored) for one in planned)
    total = count + len(texts)
    update, done = progress(total), 0
    pictures = _Pictures(settings, vae, kept, check)
    latents: list[list[_Encoded]] = []
    for one in planned:
        latents.append([])
        for mirrored in one.mirrored:
            stage("pictures", done + 1, count)
            latents[-1].append(pictures.encoded(one, mirrored))
            done += 1
            update(done, total)
    pictures_made = kept.made
    conditionings: dict[str, Conditioning] = {}
    for text in texts:
        stage("captions", done - count + 1, len(texts))
        # The text may name a file of an embedding, which can change.
        key = None if "embedding:" in text or clip.identity is None else key_of("text", clip.identity, text)
        conditionings[text] = kept.fetch(key, lambda text=text: clip.encode(text))
        done += 1
        update(done, total)
    samples: dict[bool, list[PreparedPicture]] = {True: [], False: []}
    for one, both in zip(planned, latents, strict=True):
        told = {text: _told(conditionings[text], one.fit, settings.sized) for text in one.texts(settings)}
        made = [
            PreparedPicture(latent, text, conditioning, mask, one.fit.size)
            for latent, mask, _ in both
            for text, conditioning in told.items()
        ]
        samples[one.held_out] += made * (1 if one.held_out else one.found.repeats)
    masked = {one.found for one, both in zip(planned, latents, strict=True) if both[0][1] is not None}
    made = f"{number_of(pictures_made, 'picture')} and {number_of(kept.made - pictures_made, 'caption')}"
    encoded = f"encoded: {made} of {total}"
    report = [*_described(folder, planned, masked, settings), encoded, _place(kept, kept.sweep())]
    shown = _side_by_side([both[0][2] for both in latents][:SHOWN])
    return DataSet(samples[False], samples[True], conditionings[""], shown, report)


def _planned(folder: PictureFolder, settings: PictureSettings, update: Progress) -> list[_Planned]:
    found = folder.pictures
    if settings.held_out >= len(found):
        raise TrainError(
            "nothing is left to train on",
            key="held_out",
            got=f"{settings.held_out} of {len(found)} pictures held out",
            expected=f"fewer than {len(found)}",
        )
    # By their names, so that the same ones stay held out when others are added.
    ordered = sorted(found, key=lambda one: key_of(one.name))
    held_out = set(ordered[: settings.held_out])
    texts = [_text_of(one, settings.trigger) for one in found]
    missing = [one.name for one, text in zip(found, texts, strict=True) if not text]
    if missing:
        raise TrainError(
            "there are pictures without a caption",
            file=str(folder.path),
            got=f"{len(missing)} of {len(found)}: {few(missing)}",
            expected="a text file of the same name beside each",
            hint="Write what is in the picture, or set a trigger word, which is then their caption",
        )
    planned: list[_Planned] = []
    for number, (one, text) in enumerate(zip(found, texts, strict=True), 1):
        fitted = fit(size_of(one.path), settings.resolution, settings.step, enlarge=settings.enlarge)
        held = one in held_out
        mirrored = settings.mirror and not held and may_be_mirrored(text)
        planned.append(_Planned(one, fitted, text, held, (False, True) if mirrored else (False,)))
        update(number, len(found))
    return planned


def _text_of(found: Found, trigger: str) -> str:
    """The caption of a picture: its file's, else what its folder's name says, with the trigger."""
    text = caption_of_file(found.caption) if found.caption else ""
    return with_trigger(text or found.subject, trigger)


@dataclass(frozen=True)
class _Pictures:
    """Encodes pictures, or finds what was made of them before."""

    settings: PictureSettings
    vae: Encoder
    kept: Kept
    check: Callable[[Tensor], object]

    def encoded(self, one: _Planned, mirrored: bool) -> _Encoded:
        """What comes of a picture."""
        paths = [path for path in (one.found.path, one.found.mask) if path]
        contents = [_content(path) for path in paths]
        key = None
        if self.vae.identity is not None:
            hashes = [hashlib.sha256(content).hexdigest() for content in contents]
            fitted = (list(one.fit.size), list(one.fit.box), mirrored, self.settings.background)
            key = key_of("picture", self.vae.identity, hashes, *fitted)
        try:
            value = self.kept.fetch(key, lambda: self._made(one, mirrored, contents))
            # What was kept was made with this VAE, but perhaps for another model.
            self.check(value["latent"])
        except LycorisError as error:
            error.within(file=str(one.found.path))
            raise
        mask = value["mask"]
        return value["latent"], None if mask is None else mask.float() / 255, value["shown"]

    def _made(self, one: _Planned, mirrored: bool, contents: list[bytes]) -> dict[str, Any]:
        """The latent of a picture, its mask and a small picture, from the contents of its files."""
        picture, mask = pixels_of(one.found.path, contents[0], one.fit, self.settings.background)
        if one.found.mask:
            drawn = mask_of(one.found.mask, contents[1], one.fit)
            mask = drawn if mask is None else mask * drawn
        if mask is not None and not mask.any():
            raise TrainError(
                "the mask leaves nothing of its picture",
                file=str(one.found.mask or one.found.path),
                expected="white where the picture is to be learned",
            )
        pixels, miniature = picture_tensor(picture), small(picture, mask)
        if mirrored:
            pixels, mask = pixels.flip(2), None if mask is None else mask.flip(2)
        latent = self.vae.encode(pixels)
        self.check(latent)
        in_bytes = None if mask is None else (mask * 255).round().to(torch.uint8)
        return {"latent": latent, "mask": in_bytes, "shown": miniature}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainError("the file cannot be read", file=str(path), got=error.strerror) from error


def _told(conditioning: Conditioning, fitted: PictureFit, sized: bool) -> Conditioning:
    """A conditioning that says how large its picture was, and how it was cut, if the model is told that."""
    if not sized:
        return conditioning
    sizes = sizes_told(fitted.source, fitted.corner, fitted.size)
    return [[text, {**more, **sizes}] for text, more in conditioning]


def _described(
    folder: PictureFolder, planned: Sequence[_Planned], masked: set[Found], settings: PictureSettings
) -> list[str]:
    """What was found and what was made of it, in words."""

    def named(what: str, chosen: Callable[[_Planned], object]) -> list[str]:
        names = [one.found.name for one in planned if chosen(one)]
        return [f"{what}: {len(names)} ({few(names)})"] if names else []

    def smaller(one: _Planned) -> bool:
        # Not by rounding.
        return one.fit.scale > 1.001

    sizes = Counter("{} x {}".format(*one.fit.size) for one in planned)
    listed = ", ".join(f"{words} x{count}" for words, count in sizes.most_common())
    groups = Counter(
        (one.found.name.rpartition("/")[0] or folder.path.name, one.found.repeats) for one in planned
    )
    lines = [f"{number_of(len(planned), 'picture')} in {folder.path.name}"]
    if len(groups) > 1:
        lines += [
            f"  {name}: {count}, each {number_of(times, 'time')}"
            for (name, times), count in sorted(groups.items())
        ]
    lines += [f"sizes: {listed}; sides in steps of {settings.step} pixels"]
    lines += named("held out", lambda one: one.held_out)
    lines += named("without a text file", lambda one: not one.found.caption)
    lines += named("with a mask", lambda one: one.found in masked)
    lines += named("enlarged, because they are smaller", smaller)
    lines += named(f"more than {CUT:.0%} cut off", lambda one: one.fit.lost > CUT)
    if settings.mirror:
        lines += named(
            "not mirrored, for the words in their captions",
            lambda one: not one.held_out and len(one.mirrored) == 1,
        )
    if folder.left_out:
        lines.append(f"left out: {len(folder.left_out)} ({few(folder.left_out)})")
    return lines


def _place(kept: Kept, size: int) -> str:
    if kept.folder is None:
        return "nothing is kept on disk"
    return f"kept: {size / 1e6:.1f} MB of at most {kept.most / 1e9:.0f} GB in {shown_path(kept.folder)}"


def _side_by_side(shown: Sequence[Tensor]) -> Image.Image:
    """Small pictures (h, w, 3) of bytes as one, nearly a square, with nothing between them."""
    columns = math.ceil(math.sqrt(len(shown)))
    side = max(max(one.shape[:2]) for one in shown) + GAP
    rows = -(-len(shown) // columns)
    picture = Image.new("RGBA", (side * columns + GAP, side * rows + GAP))
    for number, one in enumerate(shown):
        row, column = divmod(number, columns)
        height, width = one.shape[:2]
        left, top = (
            GAP + column * side + (side - GAP - width) // 2,
            GAP + row * side + (side - GAP - height) // 2,
        )
        picture.paste(Image.fromarray(one.numpy()), (left, top))
    return picture
