"""Turn a folder of pictures into training data: latents, conditionings and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...lycoris_ops import Progress, TrainError
from ..host.references import Conditioning, with_references
from ..training.data.captions import sizes_told
from ..training.data.tags import CAPTION, TRIGGER
from .encode import Encoded, Encoding
from .folder import PictureFolder
from .kept import Kept
from .plan import Encoder, PictureSettings, Planned, Shown, plan, together, unreadable
from .report import described, encoded_in_words, place, shown_first
from .sizes import Pixels

Each = Callable[[str, Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """One latent (1, C, ...), its caption, and its mask (1, H, W) if it has one: 1 is learned."""

    latent: Tensor
    text: str
    conditioning: Conditioning
    mask: Tensor | None
    noise_mask: Tensor | None
    """(1, 1, F, ...): 0 in the frames that the model is given, 1 elsewhere."""
    size: Pixels
    """Width and height of the picture as it is trained."""
    sound: Tensor | None
    """The latent of its sound (1, C, T, F), where that is learned."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """The data made from a folder. A repeated sample is listed several times, always as the same object."""

    training: list[PreparedPicture]
    held_out: list[PreparedPicture]
    empty: Conditioning
    """The encoded empty text."""
    shown: Image.Image
    """Its first pictures, small."""
    report: list[str]

    @property
    def masks(self) -> list[Tensor]:
        """A mask for each sample that is trained on, white where it has none; [] if no sample has one."""
        if not any(sample.mask is not None for sample in self.training):
            return []
        # One value, expanded, takes no memory.
        white = torch.ones(1, 1, 1)
        return [
            white.expand(1, sample.size[1], sample.size[0]) if sample.mask is None else sample.mask
            for sample in self.training
        ]


def prepared(
    folder: PictureFolder,
    settings: PictureSettings,
    vae: Encoder,
    clip: Encoder,
    kept: Kept,
    progress: Callable[[int], Progress],
    check: Callable[[Tensor], object],
    stage: Callable[[str, int, int], None],
    shown: Shown,
) -> DataSet:
    """Encode the pictures and captions of a folder, or read them from the cache.

    `check` raises LycorisError for a latent that the model cannot be trained on. `stage` and the function
    that `progress(total)` returns are called for each picture and caption; either may end the work.

    Raises TrainError, with the file, for pictures, captions and masks that cannot be used, and for pictures
    without a caption.
    """
    planned = plan(folder, settings, shown, progress(len(folder.pictures)))
    alone = [picture for picture in planned if not shown.encodes(picture)]
    texts = sorted({text for picture in alone for text in picture.texts} | {""})
    together_with = (len(picture.views) * len(picture.texts) for picture in planned if shown.encodes(picture))
    counts = {
        "pictures": sum(len(picture.views) for picture in planned),
        "captions": len(texts) + sum(together_with),
    }
    total, done = sum(counts.values()), Counter[str]()
    update = progress(total)

    def each(what: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each after it is told that work on it begins."""
        for item in items:
            stage(what, done[what] + 1, counts[what])
            done[what] += 1
            update(done.total(), total)
            yield item

    encoding = Encoding(settings, vae, clip, kept, check, shown)
    encoded = _views(encoding, planned, folder, each)
    captions = {
        text: _saying(encoding.caption(text), _words_of(text, settings)) for text in each("captions", texts)
    }
    samples: dict[bool, list[PreparedPicture]] = {True: [], False: []}
    for picture, views in zip(planned, encoded, strict=True):
        times = 1 if picture.held_out else picture.found.repeats * picture.times
        samples[picture.held_out] += _samples(encoding, picture, views, captions, each) * times
    report = [
        *described(folder, planned, encoded, settings, clip, shown),
        encoded_in_words(encoding.made, encoded, total),
        place(kept, kept.sweep()),
    ]
    first = shown_first(planned, encoded, encoding.small_references)
    return DataSet(samples[False], samples[True], captions[""], first, report)


def _views(
    encoding: Encoding, planned: Sequence[Planned], folder: PictureFolder, each: Each
) -> list[list[Encoded]]:
    """Each picture's views, encoded. Raises one TrainError for all files that cannot be read."""
    encoded: list[list[Encoded]] = []
    for number, picture in enumerate(planned, 1):
        try:
            views = [encoding.view(picture, view) for view in each("pictures", picture.views)]
        except TrainError as error:
            rest = [other for other in planned[number:] if other.found is not picture.found]
            raise together([error, *unreadable(rest)], folder) from error
        encoded.append(views)
    return encoded


def _samples(
    encoding: Encoding,
    picture: Planned,
    views: Sequence[Encoded],
    captions: Mapping[str, Conditioning],
    each: Each,
) -> list[PreparedPicture]:
    """A picture in all its views and with all its texts. `captions` are those that are encoded alone."""
    settings = encoding.settings
    told, beside = _told(picture, settings), encoding.shown.encodes(picture)
    # One object for all its views, so that it is prepared for the model once.
    alone = {} if beside else {text: _saying(captions[text], told) for text in picture.texts}
    samples: list[PreparedPicture] = []
    for view, value in zip(picture.views, views, strict=True):
        for text in each("captions", picture.texts) if beside else picture.texts:
            if beside:
                conditioning = encoding.caption_beside(picture, view, text)
                conditioning = _saying(conditioning, {**told, **_words_of(text, settings)})
            else:
                conditioning = alone[text]
                if value.references:
                    conditioning = with_references(conditioning, encoding.kind.key, value.references)
            conditioning = _saying(conditioning, value.given)
            rest = (value.mask, value.noise_mask, picture.fit.size, value.sound)
            samples.append(PreparedPicture(value.latent, text, conditioning, *rest))
    return samples


def _words_of(text: str, settings: PictureSettings) -> dict[str, Any]:
    return {CAPTION: text, TRIGGER: settings.trigger}


def _told(picture: Planned, settings: PictureSettings) -> dict[str, Any]:
    """Settings of a conditioning: a picture's size and crop, if the model takes them; a clip's rate."""
    sizes = sizes_told(picture.fit.source, picture.fit.corner, picture.fit.size) if settings.sized else {}
    return {**sizes, **({"frame_rate": settings.frame_rate} if picture.found.is_clip else {})}


def _saying(conditioning: Conditioning, settings: Mapping[str, Any]) -> Conditioning:
    """A conditioning with these settings added; the same object if there are none."""
    return [[text, {**more, **settings}] for text, more in conditioning] if settings else conditioning
