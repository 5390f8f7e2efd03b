"""Turn a folder of pictures into training data: latents, conditionings and masks."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...lycoris_ops import LycorisError, Progress, TrainError, few, number_of
from ..host.families.family import References, Sound
from ..host.families.node import Beside, Made, Takes
from ..host.files import shown_path
from ..host.given import Given, restored, stored
from ..host.page import picture_tensor
from ..host.references import Conditioning, encoded_with, with_references
from ..host.sampling import NOISE_MASK
from ..training.data.captions import sizes_told
from ..training.data.tags import CAPTION, TRIGGER
from .clip import ClipFacts, Cut, cuts_of, facts_of, hash_of, is_film, pixels_of_clip, sound_of
from .folder import ALONE, BESIDE, Found, PictureFolder
from .kept import Kept, key_of
from .picture import (
    PICTURES,
    PictureFacts,
    mask_of,
    picture_facts,
    picture_of,
    pixels_of,
    size_of,
    small,
    whole_of,
)
from .sizes import PictureFit, Pixels, fit, middle
from .texts import alike, caption_of_file, choices_of, may_be_mirrored, orders_of, with_trigger

CUT = 0.2
"""The report names a picture as cut off if it loses more than this share."""
SHOWN, GAP = 25, 4
"""How many pictures are shown at most, and the pixels between them."""


@dataclass(frozen=True)
class Encoder:
    """A VAE for pixels (F, H, W, 3), a CLIP vision model for pictures (1, H, W, 3), a text encoder, an audio
    VAE, see `encoded_sound`, or an audio encoder, for a function that gives the waveform (1, channels, n) for
    a number of samples a second, and the number of frames."""

    encode: Callable[..., Any]
    identity: str | None
    """A hash that identifies the encoder. If None, its results are not kept."""
    cuts: Callable[[str], bool] = lambda text: False
    """Whether it truncates a text."""


@dataclass(frozen=True)
class PictureSettings:
    """How a folder is prepared; see the inputs of the node."""

    resolutions: tuple[int, ...]
    """Each picture is prepared in all of them, the largest first."""
    step: int
    """The step between sizes of a side, in pixels."""
    cut_off: float = 1.0
    """The largest share of a picture that may be cut off."""
    enlarge: bool = True
    """Whether small pictures are enlarged to the resolution."""
    mirror: bool = False
    """Whether each picture is also trained mirrored."""
    background: str | None = None
    """The colour of transparent parts. None: they are masked."""
    trigger: str = ""
    tag_orders: int = 1
    """In how many orders of its tags each caption is trained."""
    kept_tags: int = 1
    """How many tags stay in front in all orders."""
    held_out: int = 0
    """How many pictures are held out of the training."""
    frames: int = 1
    """The most frames in one cut of a clip."""
    frame_step: int = 1
    """A cut has a multiple of this number of frames, plus `frame_least`."""
    frame_least: int = 1
    frame_rate: float = 24.0
    """Frames a second."""
    cuts: int = 1
    """The most cuts of one clip."""
    sized: bool = False
    """Whether the model is conditioned on the size and crop of pictures, as SDXL is."""


@dataclass(frozen=True)
class Shown:
    """What the model gets beside pictures and captions, with the VAE and text encoder of the host."""

    vae: Any
    clip: Any
    references: References | None = None
    given: Given | None = None
    """How the model gets parts of its target, such as the first frame."""
    misses_frames: bool = False
    """Whether the model needs given frames, but no known node makes them."""
    own_sound: Sound | None = None
    """The sound that the model makes with its clips."""
    sound: Encoder | None = None
    """The audio VAE, where it is linked."""
    vision: Encoder | None = None
    """The CLIP vision model, where it is linked."""
    clip_vision: Any = None
    """The host's own, for nodes that take it."""
    hearing: Encoder | None = None
    """The audio encoder, where it is linked: it gives what a model hears."""
    unmade: str = ""
    """What the model is not given, because no folder has it."""

    @property
    def sounds(self) -> Encoder | None:
        """The audio VAE, for a model that learns sound."""
        return self.sound if self.own_sound else None

    @property
    def hears(self) -> bool:
        """Whether the model hears the sound of clips."""
        return self.given is not None and bool(self.given.takes.hears or self.given.takes.music)

    @property
    def listener(self) -> Encoder | None:
        """The audio encoder, for a model that hears sound."""
        return self.hearing if self.hears else None


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


@dataclass(frozen=True)
class _View:
    """A picture or a cut of a clip, as it is or mirrored."""

    mirrored: bool
    cut: Cut | None = None


@dataclass(frozen=True)
class _Encoded:
    """A view, encoded."""

    latent: Tensor
    mask: Tensor | None
    small: Tensor
    """A small picture of it."""
    given: Mapping[str, Any]
    """The parts of it that the model is given, as settings of a conditioning."""
    noise_mask: Tensor | None
    references: Sequence[Tensor]
    """The latents of its references, for models that take latents."""
    sound: Tensor | None = None
    """The latent of its sound."""


@dataclass(frozen=True)
class _Planned:
    """A picture or clip in one size, and its caption."""

    found: Found
    resolution: int
    fit: PictureFit
    text: str
    held_out: bool
    views: tuple[_View, ...]
    clip: ClipFacts | None = None
    controls: tuple[ClipFacts, ...] = ()
    """Of `found.controls`."""
    is_animated: bool = False
    """Whether it is a picture with further frames, which are not read."""
    times: int = 1
    """How many resolutions give it this size."""

    def texts(self, settings: PictureSettings) -> list[str]:
        """The caption in all its choices and orders; for a held-out picture only the first."""
        if self.held_out:
            return choices_of(self.text)[:1]
        texts = [
            order
            for text in choices_of(self.text)
            for order in orders_of(text, settings.tag_orders, settings.kept_tags)
        ]
        return list(dict.fromkeys(texts))


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
    if shown.references or (shown.given and shown.given.takes != Takes()):
        _check_targets(folder)
    planned = _planned(folder, settings, progress(len(folder.pictures)))
    _check_references(planned, shown, settings)
    if shown.own_sound and shown.own_sound.needed:
        _check_sounds(planned, shown, settings)
    together = shown.references is not None and bool(shown.references.node)

    def is_pair(picture: _Planned) -> bool:
        """Whether its captions are encoded together with what it is given."""
        if picture.clip:
            return bool((how := _given(picture, shown)) and how.encode)
        return together and bool(picture.found.references)

    texts = sorted(
        {text for picture in planned if not is_pair(picture) for text in picture.texts(settings)} | {""}
    )
    count = sum(len(picture.views) for picture in planned)
    pairs = sum(len(picture.views) * len(picture.texts(settings)) for picture in planned if is_pair(picture))
    total = count + len(texts) + pairs
    update, done = progress(total), 0

    def tell(what: str, number: int, of: int) -> None:
        nonlocal done
        stage(what, number, of)
        done += 1
        update(done, total)

    def words_of(text: str) -> dict[str, str]:
        return {CAPTION: text, TRIGGER: settings.trigger}

    pictures = _Pictures(settings, vae, kept, check, shown)
    encoded: list[list[_Encoded]] = []
    sounds_made = 0
    for number, target in enumerate(planned):
        encoded.append([])
        for view in target.views:
            tell("pictures", done + 1, count)
            try:
                value, before = pictures.encoded(target, view), kept.made
            except TrainError as error:
                rest = [other for other in planned[number + 1 :] if other.found is not target.found]
                raise _together([error, *_unreadable(rest)], folder) from error
            sound = pictures.sound(target, view)
            sounds_made += kept.made - before
            encoded[-1].append(replace(value, sound=sound))
    pictures_made = kept.made - sounds_made
    sounds = sum(value.sound is not None for views in encoded for value in views)
    references = sum(len(view.references) for views in encoded for view in views)
    conditionings: dict[str, Conditioning] = {}
    for text in texts:
        tell("captions", done - count + 1, len(texts) + pairs)
        # The text may name a file of an embedding, which can change.
        key = None if "embedding:" in text or clip.identity is None else key_of("text", clip.identity, text)
        encoded_text = kept.fetch(key, lambda text=text: clip.encode(text))
        conditionings[text] = _saying(encoded_text, words_of(text))
    samples: dict[bool, list[PreparedPicture]] = {True: [], False: []}
    for target, views in zip(planned, encoded, strict=True):
        made_of_picture: list[PreparedPicture] = []
        settings_told = _told(target, settings)
        # One object for all its views, so that it is prepared for the model once.
        captions = {
            text: _saying(conditionings[text], settings_told)
            for text in target.texts(settings)
            if not is_pair(target)
        }
        for view, value in zip(target.views, views, strict=True):
            for text in target.texts(settings):
                if not is_pair(target):
                    conditioning = captions[text]
                    if value.references:
                        conditioning = with_references(conditioning, pictures.kind.key, value.references)
                else:
                    tell("captions", done - count + 1, len(texts) + pairs)
                    conditioning = pictures.caption(target, view, text, clip)
                    conditioning = _saying(conditioning, {**settings_told, **words_of(text)})
                conditioning = _saying(conditioning, value.given)
                rest = (value.mask, value.noise_mask, target.fit.size, value.sound)
                made_of_picture.append(PreparedPicture(value.latent, text, conditioning, *rest))
        samples[target.held_out] += made_of_picture * (
            1 if target.held_out else target.found.repeats * target.times
        )
    masked = {
        picture.found for picture, views in zip(planned, encoded, strict=True) if views[0].mask is not None
    }
    made_now = [number_of(pictures_made, "picture")]
    made_now += [number_of(sounds_made, "sound")] if sounds else []
    captions_made = number_of(kept.made - pictures_made - sounds_made, "caption")
    report = [
        *_described(folder, planned, masked, settings, clip, shown),
        f"encoded: {', '.join(made_now)} and {captions_made} of {total + references + sounds}",
        _place(kept, kept.sweep()),
    ]
    largest = {
        picture.found: (picture, views)
        for picture, views in zip(reversed(planned), reversed(encoded), strict=True)
    }
    first = [
        _row([*pictures.small_references(picture), views[0].small])
        for picture, views in [*reversed(largest.values())][:SHOWN]
    ]
    return DataSet(samples[False], samples[True], conditionings[""], _side_by_side(first), report)


def _check_targets(folder: PictureFolder) -> None:
    """Raise TrainError for references without their picture: they would be trained on as pictures."""
    alone = [name for name in folder.left_out.get(ALONE, ()) if BESIDE.fullmatch(alike(Path(name).stem))]
    if alone:
        raise TrainError(
            "there are references without their picture",
            file=str(folder.path),
            got=few(alone),
            expected="a picture or clip with the same name without `_control`, `_reference` or `-condlabel`",
            hint="Put it there, or rename those that are pictures to be learned",
        )


def _check_references(planned: Sequence[_Planned], shown: Shown, settings: PictureSettings) -> None:
    """Raise TrainError for more references than the model takes, and for one that would lose too much."""
    takes = shown.given.takes if shown.given else None
    most = shown.references.most if shown.references else takes.most if takes and takes.references else 0
    most_clips = len(takes.controls) if takes else 0
    for picture in planned:
        for paths, number, what in (
            (picture.found.still_references, most, "references"),
            (picture.found.controls, most_clips, "clips as references"),
        ):
            if len(paths) > number:
                raise TrainError(
                    f"there are more {what} than the model takes" if number else f"the model takes no {what}",
                    file=str(picture.found.path),
                    got=few([path.name for path in paths]),
                    expected=f"at most {number}" if number else "a model such as Flux Kontext or Wan VACE",
                    hint="Files whose names end in `_control`, `_reference` or `-condlabel`, and files in "
                    "folders such as `control`, are references. Rename them if they are not"
                    + (f"; for {takes.instead}, set `references` to it" if takes and takes.instead else ""),
                )
        if picture.found.references and shown.references is None and picture.clip is None:
            raise TrainError(
                "the model takes references of clips, and this is a picture",
                file=str(picture.found.path),
                got=few([path.name for path in picture.found.references]),
                hint="Take its references out of the folder",
            )
        for path in picture.found.still_references:
            kind = shown.references
            if kind and kind.encoded and not (kind.node and kind.scales):
                _check_cut(path, _fit_of_reference(path, picture, kind, settings), settings)
        for path, control in zip(picture.found.controls, picture.controls, strict=True):
            wanted = max(view.cut.start + view.cut.count for view in picture.views if view.cut)
            if control.frames < wanted:
                raise TrainError(
                    "a clip is shorter than the one that it belongs to",
                    file=str(path),
                    got=number_of(control.frames, "frame"),
                    expected=f"at least {wanted}, as {picture.found.name}",
                    hint="Make both equally long, or lower `frames` or `cuts`",
                )


def _check_sounds(planned: Sequence[_Planned], shown: Shown, settings: PictureSettings) -> None:
    """Raise TrainError for what a model that only makes clips with sound cannot learn."""
    if shown.sound is None:
        raise TrainError(
            "the model only makes clips with sound",
            key="audio_vae",
            hint="Link its audio VAE, so that the sound of the clips is learned too",
        )
    rest = [picture.found.name for picture in planned if picture.clip is None or not picture.clip.sounds]
    rest += [
        picture.found.name
        for picture in planned
        if picture.found.name not in rest
        and picture.views[0].cut
        and picture.views[0].cut.count < settings.frame_least
    ]
    if rest:
        raise TrainError(
            f"the model only learns clips with sound of at least {settings.frame_least} frames",
            got=few(rest),
            hint=f"Take the others out of the folder, and set `frames` to at least {settings.frame_least}",
        )


def _planned(folder: PictureFolder, settings: PictureSettings, update: Progress) -> list[_Planned]:
    pictures = folder.pictures
    if settings.held_out >= len(pictures):
        raise TrainError(
            f"held_out leaves no picture to train on: the folder has {len(pictures)}",
            key="held_out",
            got=str(settings.held_out),
            expected=f"at most {len(pictures) - 1}",
            hint="Hold out fewer, or add pictures",
        )
    # Chosen by a hash of the name, so that adding pictures changes few of the held-out ones.
    ordered = sorted(pictures, key=lambda picture: key_of(picture.name))
    held_out = set(ordered[: settings.held_out])
    texts = [_text_of(picture, settings.trigger) for picture in pictures]
    missing = [picture.name for picture, text in zip(pictures, texts, strict=True) if not text]
    if missing:
        raise TrainError(
            "there are pictures without a caption",
            file=str(folder.path),
            got=f"{len(missing)} of {len(pictures)}: {few(missing)}",
            expected="a text file of the same name beside each",
            hint="Write what is in each picture, or set a trigger word, which is then their caption",
        )
    planned: list[_Planned] = []
    bad: list[TrainError] = []
    for number, (target, text) in enumerate(zip(pictures, texts, strict=True), 1):
        try:
            clip = facts_of(target.path, settings.frame_rate) if target.is_clip else None
            controls = tuple(facts_of(path, settings.frame_rate) for path in target.controls)
            facts = clip or picture_facts(target.path)
            # A small picture may have one size in several resolutions; its references may not.
            fits: dict[tuple[PictureFit, int], list[int]] = {}
            for resolution in settings.resolutions:
                fitted = fit(facts.size, resolution, settings.step, enlarge=settings.enlarge)
                _check_cut(target.path, fitted, settings)
                fits.setdefault((fitted, resolution if target.references else 0), []).append(resolution)
        except TrainError as error:
            bad.append(error)
            continue
        if target.mask and is_film(target.mask):
            raise TrainError(
                "a mask is a picture, and holds for all frames of its clip",
                file=str(target.mask),
                expected=f"a file that ends in {', '.join(PICTURES)}",
                hint="Save one frame of it as PNG, or take it out of the folder",
            )
        held = target in held_out
        cuts: Sequence[Cut | None] = [None]
        if clip:
            cuts = cuts_of(
                clip.frames, settings.frames, settings.frame_step, settings.cuts, settings.frame_least
            )
        mirrored = settings.mirror and not held and may_be_mirrored(text)
        views = tuple(_View(flip, cut) for cut in cuts for flip in ((False, True) if mirrored else (False,)))
        is_animated = isinstance(facts, PictureFacts) and facts.is_animated
        planned += [
            _Planned(target, same[0], fitted, text, held, views, clip, controls, is_animated, len(same))
            for (fitted, _), same in fits.items()
        ]
        update(number, len(pictures))
    if bad:
        raise _together([*bad, *_unreadable(planned)], folder) from bad[0]
    return planned


def _unreadable(planned: Sequence[_Planned]) -> Generator[TrainError]:
    """The errors of pictures that cannot be decoded. Clips are not read."""
    for picture in {picture.found: picture for picture in planned}.values():
        try:
            if picture.clip is None:
                whole_of(picture.found.path)
        except TrainError as error:
            yield error


def _together(errors: Sequence[TrainError], folder: PictureFolder) -> TrainError:
    """One error for several files; the error itself where there is one."""
    if len(errors) == 1:
        return errors[0]
    names: dict[str, list[str]] = {}
    for error in errors:
        names.setdefault(error.problem, []).append(Path(error.file or "").name)
    return TrainError(
        f"{len(errors)} files cannot be used",
        file=str(folder.path),
        got="; ".join(f"{problem}: {', '.join(files)}" for problem, files in names.items()),
        hint=". ".join(dict.fromkeys(error.hint for error in errors if error.hint)),
    )


def _fit_of_reference(
    path: Path, picture: _Planned, kind: References, settings: PictureSettings
) -> PictureFit:
    """How a reference becomes a latent: in its target's size where both are concatenated, else in its own
    shape."""
    source = size_of(path)
    if kind.fitted:
        return middle(source, picture.fit.size)
    return fit(source, picture.resolution, settings.step, enlarge=settings.enlarge)


def _whole_fit(path: Path) -> PictureFit:
    """A picture in its own size."""
    size = size_of(path)
    return PictureFit(size, size, (0, 0, *size))


def _check_cut(path: Path, fitted: PictureFit, settings: PictureSettings) -> None:
    """Raise TrainError if more of the picture would be cut off than is allowed."""
    if fitted.lost > settings.cut_off:
        raise TrainError(
            "more of the picture would be cut off than is allowed",
            file=str(path),
            got="{:.0%} of {} x {}".format(fitted.lost, *fitted.source),
            expected=f"at most {settings.cut_off:.0%}",
            hint="Cut it yourself, take it out of the folder, or raise `cut_off`",
        )


def _text_of(picture: Found, trigger: str) -> str:
    """The caption of a picture, from its file or else its folder's name, with the trigger."""
    text = caption_of_file(picture.caption) if picture.caption else picture.listed
    return with_trigger(text or picture.subject, trigger)


@dataclass(frozen=True)
class _Pictures:
    """Encodes pictures, or reads them from the cache."""

    settings: PictureSettings
    vae: Encoder
    kept: Kept
    check: Callable[[Tensor], object]
    shown: Shown
    hashes: dict[Path, str] = field(default_factory=dict[Path, str])
    """Hashes of clips: each is read once for all its views."""

    def encoded(self, picture: _Planned, view: _View) -> _Encoded:
        """Encode a view."""
        content = b"" if view.cut else _content(picture.found.path)
        mask = _content(picture.found.mask) if picture.found.mask else b""
        giving = _given(picture, self.shown)
        seeing = [self.shown.vision.identity] if self.shown.vision and giving and giving.seen else []
        if self.shown.listener and giving and picture.clip and picture.clip.sounds:
            seeing.append(self.shown.listener.identity)
        key = None
        if self.vae.identity is not None and None not in seeing:
            hashes = [self._hash_of(picture.found.path) if view.cut else hashlib.sha256(content).hexdigest()]
            hashes += [hashlib.sha256(mask).hexdigest()] if picture.found.mask else []
            how: list[Any] = [
                list(picture.fit.size),
                list(picture.fit.box),
                view.mirrored,
                self.settings.background,
            ]
            if view.cut:
                how += [view.cut.start, view.cut.count, self.settings.frame_rate]
            how += [giving.node, giving.ends, *seeing] if giving else []
            if giving and not self.shown.references:
                how += [self._hash_of(path) for path in picture.found.references]
                if giving.takes.reference_masks:
                    how += [self._hash_of(path) for pair in picture.found.reference_masks for path in pair]
                # The size that a control clip of another size than the clip's is read in.
                how += [picture.resolution, self.settings.enlarge] if picture.found.controls else []
            key = key_of("picture", self.vae.identity, hashes, *how)
        try:
            value = self.kept.fetch(key, lambda: self._made(picture, view, content, mask, giving))
            # A cached latent is of this VAE, but perhaps for another model.
            self.check(value["latent"])
        except LycorisError as error:
            error.within(file=str(picture.found.path))
            raise
        learned = None if value["mask"] is None else value["mask"].float() / 255
        references: list[Tensor] = []
        if picture.found.references and self.shown.references and not self.kind.node:
            references = [self._reference(picture, path, view.mirrored) for path in picture.found.references]
        given_values = (restored(value.get("given", {})), value.get(NOISE_MASK))
        return _Encoded(value["latent"], learned, value["shown"], *given_values, references)

    def sound(self, picture: _Planned, view: _View) -> Tensor | None:
        """The latent of a view's sound; None where it has none, or none is learned."""
        encoder, cut, rate = self.shown.sounds, view.cut, self.settings.frame_rate
        if encoder is None or cut is None or picture.clip is None or not picture.clip.sounds:
            return None
        key = None
        if encoder.identity is not None:
            key = key_of(
                "sound", encoder.identity, self._hash_of(picture.found.path), cut.start, cut.count, rate
            )

        def encode() -> Tensor:
            return encoder.encode(partial(sound_of, picture.found.path, cut, rate), cut.count, rate)

        return self.kept.fetch(key, lambda: {"sound": encode()})["sound"]

    def _hash_of(self, path: Path) -> str:
        if path not in self.hashes:
            with _readable(path):
                self.hashes[path] = hash_of(path)
        return self.hashes[path]

    def _beside(self, picture: _Planned, view: _View) -> Beside:
        """What belongs to a cut of a clip."""
        cut, rate = view.cut, self.settings.frame_rate
        if cut is None or picture.clip is None or self.shown.references:
            return Beside()
        controls: list[Tensor] = []
        for path, control in zip(picture.found.controls, picture.controls, strict=True):
            # One of the same size is cut like the clip; another keeps its shape, and the host's node cuts it.
            fitted = picture.fit
            if control.size != picture.fit.source:
                fitted = fit(
                    control.size, picture.resolution, self.settings.step, enlarge=self.settings.enlarge
                )
            controls.append(_mirrored(pixels_of_clip(path, cut, rate, fitted), view.mirrored))

        def pixels_of_reference(path: Path) -> Tensor:
            return _mirrored(picture_tensor(self._whole(path, _content(path))), view.mirrored)

        stills, masks = picture.found.still_references, dict(picture.found.reference_masks)
        heard = None
        if self.shown.listener and picture.clip.sounds:
            heard = self.shown.listener.encode(partial(sound_of, picture.found.path, cut, rate), cut.count)
        coloured = [pixels_of_reference(masks[path]) if path in masks else None for path in stills]
        return Beside(controls, [pixels_of_reference(path) for path in stills], coloured, heard)

    @property
    def kind(self) -> References:
        assert self.shown.references is not None
        return self.shown.references

    def caption(self, picture: _Planned, view: _View, text: str, clip: Encoder) -> Conditioning:
        """A caption encoded together with what a picture or clip is given."""
        giving = _given(picture, self.shown)
        if view.cut and giving:
            return self._caption_of_clip(picture, view, view.cut, text, clip, giving)
        contents = [_content(path) for path in picture.found.references]
        seer = self.shown.vision if self.kind.sees else None
        key = None
        if None not in (self.vae.identity, clip.identity) and "embedding:" not in text:
            hashes = [hashlib.sha256(content).hexdigest() for content in contents]
            settings = (list(picture.fit.size), view.mirrored, self.settings.background)
            if not self.kind.scales:
                fits = (self._fit_of_shown(path, picture) for path in picture.found.references)
                settings = (*settings, [[*fitted.size, *fitted.box] for fitted in fits])
            if seer:
                settings = (*settings, seer.identity)
            if not seer or seer.identity:
                key = key_of(self.kind.node, self.vae.identity, clip.identity, text, hashes, *settings)

        def shown_as(path: Path, content: bytes) -> Tensor:
            fitted = self._fit_of_shown(path, picture)
            return picture_tensor(pixels_of(path, content, fitted, self.settings.background)[0])

        def encode() -> Conditioning:
            images = [
                _mirrored(shown_as(path, content), view.mirrored)
                for path, content in zip(picture.found.references, contents, strict=True)
            ]
            shown = self.shown
            pairs = encoded_with(
                self.kind, shown.clip, shown.vae, text, images, picture.fit.size, shown.clip_vision
            )
            return [[words, stored(more)] for words, more in pairs]

        return [[words, restored(more)] for words, more in self.kept.fetch(key, encode)]

    def _caption_of_clip(
        self, picture: _Planned, view: _View, cut: Cut, text: str, clip: Encoder, giving: Given
    ) -> Conditioning:
        key, settings = None, self.settings
        if None not in (self.vae.identity, clip.identity) and "embedding:" not in text:
            hashes = [self._hash_of(path) for path in (picture.found.path, *picture.found.references)]
            how = [list(picture.fit.size), list(picture.fit.box), view.mirrored, cut.start, cut.count]
            how += [settings.frame_rate, settings.background, picture.resolution, settings.enlarge]
            key = key_of(giving.node, giving.ends, self.vae.identity, clip.identity, text, hashes, *how)

        def encode() -> Conditioning:
            assert giving.encode is not None
            ends = [Cut(cut.start, 1), Cut(cut.start + cut.count - 1, 1)]
            pixels = [
                pixels_of_clip(picture.found.path, end, settings.frame_rate, picture.fit) for end in ends
            ]
            shown, beside = _mirrored(torch.cat(pixels), view.mirrored), self._beside(picture, view)
            return giving.encode(self.shown.clip, self.shown.vae, text, shown, cut.count, beside)

        return self.kept.fetch(key, encode)

    def small_references(self, picture: _Planned) -> list[Tensor]:
        """Small pictures of the references."""
        return [small(self._whole(path, _content(path)), None) for path in picture.found.still_references]

    def _whole(self, path: Path, content: bytes) -> Image.Image:
        """A reference in its own size."""
        return pixels_of(path, content, _whole_fit(path), self.settings.background)[0]

    def _fit_of_shown(self, path: Path, picture: _Planned) -> PictureFit:
        """How a node gets a reference that it encodes with the caption."""
        if self.kind.scales:
            return _whole_fit(path)
        return _fit_of_reference(path, picture, self.kind, self.settings)

    def _reference(self, picture: _Planned, path: Path, mirrored: bool) -> Tensor:
        """The latent of a reference, or its pixels."""
        settings, content = self.settings, _content(path)
        if not self.kind.encoded:
            return _mirrored(picture_tensor(self._whole(path, content)), mirrored)
        fitted = _fit_of_reference(path, picture, self.kind, settings)
        key = None
        if self.vae.identity is not None:
            rest = (list(fitted.size), list(fitted.box), mirrored, settings.background)
            key = key_of("reference", self.vae.identity, hashlib.sha256(content).hexdigest(), *rest)

        def encode() -> Tensor:
            picture, _ = pixels_of(path, content, fitted, settings.background)
            return self.vae.encode(_mirrored(picture_tensor(picture), mirrored))

        return self.kept.fetch(key, lambda: {"latent": encode()})["latent"]

    def _made(
        self, planned: _Planned, view: _View, content: bytes, mask_content: bytes, giving: Given | None
    ) -> dict[str, Any]:
        """Encode a view from the contents of its files, in the form that the cache keeps."""
        mask = None
        if view.cut:
            pixels = pixels_of_clip(planned.found.path, view.cut, self.settings.frame_rate, planned.fit)
        else:
            picture, mask = pixels_of(planned.found.path, content, planned.fit, self.settings.background)
            pixels = picture_tensor(picture)
        if planned.found.mask:
            drawn = mask_of(planned.found.mask, mask_content, planned.fit)
            mask = drawn if mask is None else mask * drawn
        if mask is not None and not mask.any():
            if not planned.found.mask:
                raise TrainError(
                    "the picture is transparent everywhere, and transparent parts are not learned",
                    file=str(planned.found.path),
                    expected="a part that is opaque",
                    hint="Take it out of the folder, or set `transparent` to white or black",
                )
            raise TrainError(
                "the mask leaves nothing of its picture",
                file=str(planned.found.mask),
                expected="white in the parts to learn",
            )
        # The first and the last frame of a clip.
        seen = dict.fromkeys((0, len(pixels) - 1))
        miniature = _row([small(picture_of(pixels[number]), mask) for number in seen])
        pixels = _mirrored(pixels, view.mirrored)
        if view.mirrored and mask is not None:
            mask = mask.flip(2)
        latent = self.vae.encode(pixels)
        self.check(latent)
        values: dict[str, Any] = {"latent": latent, "mask": None, "shown": miniature}
        of_it = Made({})
        if giving and giving.make:
            of_it = giving.make(self.shown.vae, pixels, mask, self._beside(planned, view))
            values |= {"latent": of_it.within(latent), "given": stored(of_it.settings)}
            if of_it.noise_mask is not None:
                if not of_it.noise_mask.any():
                    raise TrainError(
                        "all of the clip is given to the model",
                        got=number_of(len(pixels), "frame"),
                        expected="frames to be made between the first and the last",
                        hint="Raise `frames`, take a longer clip, or set `first_frames` to first",
                    )
                values[NOISE_MASK] = of_it.noise_mask
        if mask is not None and not (of_it.masked or (giving and giving.masked)):
            values["mask"] = (mask * 255).round().to(torch.uint8)
        return values


def _given(picture: _Planned, shown: Shown) -> Given | None:
    """How the model is given parts of a picture or clip; None if it is given nothing."""
    giving = shown.given
    # Given its only frame, the model would have nothing left to learn.
    if giving is None or (picture.clip is None and not giving.masked):
        return None
    return None if giving.only_beside and not picture.found.references else giving


def _mirrored(pixels: Tensor, mirrored: bool) -> Tensor:
    """Pixels (F, H, W, C), mirrored or as they are."""
    return pixels.flip(2) if mirrored else pixels


def _content(path: Path) -> bytes:
    with _readable(path):
        return path.read_bytes()


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """A context in which an error names the file that cannot be read, such as one that is gone by now."""
    try:
        yield
    except OSError as error:
        raise TrainError("the file cannot be read", file=str(path), got=error.strerror) from error


def _told(picture: _Planned, settings: PictureSettings) -> dict[str, Any]:
    """Settings of a conditioning: a picture's size and crop, if the model takes them; a clip's rate."""
    sizes = sizes_told(picture.fit.source, picture.fit.corner, picture.fit.size) if settings.sized else {}
    return {**sizes, **({"frame_rate": settings.frame_rate} if picture.found.is_clip else {})}


def _saying(conditioning: Conditioning, settings: Mapping[str, Any]) -> Conditioning:
    """A conditioning with these settings added; the same object if there are none."""
    return [[text, {**more, **settings}] for text, more in conditioning] if settings else conditioning


def _described(
    folder: PictureFolder,
    planned: Sequence[_Planned],
    masked: set[Found],
    settings: PictureSettings,
    clip: Encoder,
    shown: Shown,
) -> list[str]:
    """The report: what was found, and how it was prepared."""

    def named(what: str, chosen: Callable[[_Planned], object]) -> list[str]:
        names = list(dict.fromkeys(picture.found.name for picture in planned if chosen(picture)))
        return [f"{what}: {len(names)} ({few(names)})"] if names else []

    def smaller(picture: _Planned) -> bool:
        # Ignore rounding.
        return picture.fit.scale > 1.001

    sizes: Counter[str] = Counter()
    for target in planned:
        sizes["{} x {}".format(*target.fit.size)] += target.times
    listed = ", ".join(f"{words} x{count}" for words, count in sizes.most_common())
    groups = Counter(
        (picture.name.rpartition("/")[0] or folder.path.name, picture.repeats) for picture in folder.pictures
    )
    lines = [f"{number_of(len(folder.pictures), 'picture')} in {folder.path.name}"]
    if len(settings.resolutions) > 1:
        lines.append(f"each in the resolutions {', '.join(map(str, settings.resolutions))}")
    if len(groups) > 1:
        lines += [
            f"  {name}: {count}, each {number_of(times, 'time')}"
            for (name, times), count in sorted(groups.items())
        ]
    lines += [f"sizes: {listed}; sides in steps of {settings.step} pixels"]
    lines += named("held out", lambda picture: picture.held_out)
    lines += named("without a text file", lambda picture: not (picture.found.caption or picture.found.listed))
    lines += named(
        "with a caption that is too long for the text encoder, which cuts off its end",
        lambda picture: any(map(clip.cuts, picture.texts(settings))),
    )
    if cuts := Counter(view.cut.count for picture in planned for view in picture.views if view.cut):
        clips = sum(picture.is_clip for picture in folder.pictures)
        counted = ", ".join(
            f"{number_of(count, 'frame')} x{number}" for count, number in sorted(cuts.items())
        )
        lines.append(f"{number_of(clips, 'clip')}, at {settings.frame_rate:g} frames a second: {counted}")
        lines += named(
            "with repeated frames, because the clip has too few",
            lambda picture: picture.clip and picture.clip.repeated,
        )
        lines += named(
            "whose end is missing, as in incomplete files",
            lambda picture: picture.clip and picture.clip.cut_off,
        )
        if settings.frames > settings.frame_step:
            lines += named(
                f"too short for {1 + settings.frame_step} frames, and learned as a still picture",
                lambda picture: picture.views[0].cut and picture.views[0].cut.count == 1,
            )
        lines += _sounds_in_words(planned, shown)
    beside = any(picture.found.references for picture in planned if picture.clip)
    if shown.given and (shown.given.masked or (cuts and (beside or not shown.given.only_beside))):
        lines.append(f"the model is also given what {shown.given.node} makes")
        if shown.given.seen:
            lines.append("  and what clip_vision sees there")
        if not shown.given.needed and not shown.given.only_beside:
            lines.append("  for text to video set first_frames to none")
    sees = shown.references is not None and shown.references.sees
    needs_seeing = sees or (shown.given is not None and shown.given.takes.only_seen)
    if needs_seeing and shown.vision is None and any(picture.found.references for picture in planned):
        lines.append("no CLIP vision model sees the references: link clip_vision, as for sampling")
    if shown.vision is not None and not sees and not (shown.given and shown.given.seen):
        unseen = " without a first frame" if shown.given and shown.given.unseen else ""
        lines.append(f"clip_vision is not used: this model does not take its output{unseen}")
    if shown.hearing is not None and not shown.hears:
        lines.append("audio_encoder is not used: this model hears no sound")
    if shown.misses_frames and cuts:
        lines.append("the model gets no first frame: no known node makes one for it")
    if shown.unmade:
        lines.append(shown.unmade)
    if shown.given and shown.given.takes != Takes() and cuts:
        lines += named("with clips that control them", lambda picture: picture.found.controls)
        lines += named("with a reference", lambda picture: picture.found.still_references)
    if not (shown.given and shown.given.takes.reference_masks):
        lines += named(
            "whose references have masks, which are not used", lambda picture: picture.found.reference_masks
        )
    if shown.references and any(picture.found.references for picture in planned):
        how = shown.references.in_words
        lines += named(f"with references, which are {how}", lambda picture: picture.found.references)
        lines += named("without a reference", lambda picture: not picture.found.references)
    lines += named(
        "with several pages or frames, of which the first is learned",
        lambda picture: picture.is_animated,
    )
    lines += named("with a mask", lambda picture: picture.found in masked)
    lines += named("enlarged, because they are smaller", smaller)
    lines += named(f"more than {CUT:.0%} cut off", lambda picture: picture.fit.lost > CUT)
    if settings.mirror:
        lines += named(
            "not mirrored, because of words in their captions",
            lambda picture: not picture.held_out and not picture.views[-1].mirrored,
        )
    lines += [f"{reason}: {len(names)} ({few(names)})" for reason, names in folder.left_out.items()]
    return lines


def _sounds_in_words(planned: Sequence[_Planned], shown: Shown) -> list[str]:
    """The report's lines on the sound of clips."""
    clips = {picture.found: picture for picture in planned if picture.clip}.values()
    heard = [picture.found.name for picture in clips if picture.clip and picture.clip.sounds]
    silent = [picture.found.name for picture in clips if picture.clip and not picture.clip.sounds]
    without = [f"without sound: {len(silent)} ({few(silent)})"] if silent else []
    if shown.hears:
        if shown.hearing is None:
            return ["the model hears no sound: link audio_encoder, as for sampling"] if heard else []
        lines = [f"with sound, which the model hears: {len(heard)} ({few(heard)})"] if heard else []
        return lines + without
    if shown.sound is not None and not shown.own_sound:
        return ["no sound is learned: this model makes none, so audio_vae is not used"]
    if not shown.own_sound or not heard:
        return []
    if shown.sound is None:
        clips = number_of(len(heard), "clip")
        return [f"no sound is learned: link audio_vae to learn the sound of {clips} ({few(heard)})"]
    lines = [f"with sound, which is learned too: {len(heard)} ({few(heard)})"]
    return lines + without


def _place(kept: Kept, size: int) -> str:
    if kept.folder is None:
        return "nothing is kept on disk"
    return f"kept: {size / 1e6:.1f} MB of at most {kept.most / 1e9:.0f} GB in {shown_path(kept.folder)}"


def _row(pictures: Sequence[Tensor]) -> Tensor:
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


def _side_by_side(shown: Sequence[Tensor]) -> Image.Image:
    """Small pictures (h, w, 3) of bytes in a grid that is nearly a square, transparent between them."""
    columns = math.ceil(math.sqrt(len(shown)))
    side = max(max(picture.shape[:2]) for picture in shown) + GAP
    rows = -(-len(shown) // columns)
    picture = Image.new("RGBA", (side * columns + GAP, side * rows + GAP))
    for number, small_picture in enumerate(shown):
        row, column = divmod(number, columns)
        height, width = small_picture.shape[:2]
        left, top = (
            GAP + column * side + (side - GAP - width) // 2,
            GAP + row * side + (side - GAP - height) // 2,
        )
        picture.paste(Image.fromarray(small_picture.numpy()), (left, top))
    return picture
