"""Plan how the pictures and clips of a folder are encoded: in which size, in which cuts, with which texts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ...lycoris_ops import Progress, TrainError, few, number_of, phrase
from ..host.families.family import References, Sound
from ..host.families.node import Takes
from ..host.given import Given
from .clip import ClipFacts, Cut, cuts_of, facts_of, is_film
from .folder import ALONE, BESIDE, Found, PictureFolder
from .kept import key_of
from .picture import PICTURES, PictureFacts, picture_facts, size_of, whole_of
from .sizes import PictureFit, fit, middle
from .texts import alike, caption_of_file, choices_of, may_be_mirrored, orders_of, with_trigger


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

    def giving(self, picture: Planned) -> Given | None:
        """How the model is given parts of a picture or clip; None if it is given nothing."""
        giving = self.given
        # Given its only frame, the model would have nothing left to learn.
        if giving is None or (picture.clip is None and not giving.masked):
            return None
        return None if giving.only_beside and not picture.found.references else giving

    def encodes(self, picture: Planned) -> bool:
        """Whether the captions of a picture are encoded together with what it is given."""
        if picture.clip:
            return bool((giving := self.giving(picture)) and giving.encode)
        return self.references is not None and bool(self.references.node and picture.found.references)

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


@dataclass(frozen=True)
class View:
    """A picture or a cut of a clip, as it is or mirrored."""

    mirrored: bool
    cut: Cut | None = None


@dataclass(frozen=True)
class Planned:
    """A picture or clip in one size, and its captions."""

    found: Found
    resolution: int
    fit: PictureFit
    texts: tuple[str, ...]
    """The caption in all its choices and orders; of a held-out picture only the first."""
    held_out: bool
    views: tuple[View, ...]
    clip: ClipFacts | None = None
    controls: tuple[ClipFacts, ...] = ()
    """Of `found.controls`."""
    is_animated: bool = False
    """Whether it is a picture with further frames, which are not read."""
    times: int = 1
    """How many resolutions give it this size."""


def plan(folder: PictureFolder, settings: PictureSettings, shown: Shown, update: Progress) -> list[Planned]:
    """Plan all pictures and clips of a folder.

    Raises TrainError, with the file, for those that cannot be used, and for pictures without a caption.
    """
    if shown.references or (shown.given and shown.given.takes != Takes()):
        _check_targets(folder)
    planned = _planned(folder, settings, update)
    _check_references(planned, shown, settings)
    if shown.own_sound and shown.own_sound.needed:
        _check_sounds(planned, shown, settings)
    return planned


def _check_targets(folder: PictureFolder) -> None:
    """Raise TrainError for references without their picture: they would be trained on as pictures."""
    alone = [name for name in folder.left_out.get(ALONE, ()) if BESIDE.fullmatch(alike(Path(name).stem))]
    if alone:
        raise TrainError("E-reference-without-picture", file=str(folder.path), got=few(alone))


def _check_references(planned: Sequence[Planned], shown: Shown, settings: PictureSettings) -> None:
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
                    "E-references-too-many" if number else "E-references-not-taken",
                    file=str(picture.found.path),
                    what=what,
                    got=few([path.name for path in paths]),
                    most=number,
                    otherwise=phrase("R-set-references", instead=takes.instead)
                    if takes and takes.instead
                    else "",
                )
        if picture.found.references and shown.references is None and picture.clip is None:
            raise TrainError(
                "E-references-of-clips-only",
                file=str(picture.found.path),
                got=few([path.name for path in picture.found.references]),
            )
        for path in picture.found.still_references:
            kind = shown.references
            if kind and kind.encoded and not (kind.node and kind.scales):
                _check_cut(path, fit_of_reference(path, picture, kind, settings), settings)
        for path, control in zip(picture.found.controls, picture.controls, strict=True):
            wanted = max(view.cut.start + view.cut.count for view in picture.views if view.cut)
            if control.frames < wanted:
                raise TrainError(
                    "E-clip-shorter-than-its-clip",
                    file=str(path),
                    wanted=wanted,
                    name=picture.found.name,
                    got=number_of(control.frames, "frame"),
                )


def _check_sounds(planned: Sequence[Planned], shown: Shown, settings: PictureSettings) -> None:
    """Raise TrainError for what a model that only makes clips with sound cannot learn."""
    if shown.sound is None:
        raise TrainError("E-clips-need-sound", key="audio_vae")
    rest = [picture.found.name for picture in planned if picture.clip is None or not picture.clip.sounds]
    rest += [
        picture.found.name
        for picture in planned
        if picture.found.name not in rest
        and picture.views[0].cut
        and picture.views[0].cut.count < settings.frame_least
    ]
    if rest:
        raise TrainError("E-clips-with-sound-too-short", frame_least=settings.frame_least, got=few(rest))


def _planned(folder: PictureFolder, settings: PictureSettings, update: Progress) -> list[Planned]:
    pictures = folder.pictures
    if settings.held_out >= len(pictures):
        raise TrainError(
            "E-held-out-leaves-nothing",
            key="held_out",
            pictures=len(pictures),
            most=len(pictures) - 1,
            got=str(settings.held_out),
        )
    # Chosen by a hash of the name, so that adding pictures changes few of the held-out ones.
    ordered = sorted(pictures, key=lambda picture: key_of(picture.name))
    held_out = set(ordered[: settings.held_out])
    texts = [_text_of(picture, settings.trigger) for picture in pictures]
    missing = [picture.name for picture, text in zip(pictures, texts, strict=True) if not text]
    if missing:
        raise TrainError(
            "E-pictures-without-caption",
            file=str(folder.path),
            without=len(missing),
            pictures=len(pictures),
            missing=few(missing),
        )
    planned: list[Planned] = []
    bad: list[TrainError] = []
    for number, (target, text) in enumerate(zip(pictures, texts, strict=True), 1):
        try:
            sizes = _sizes_of(target, text, settings, held_out=target in held_out)
        except TrainError as error:
            bad.append(error)
            continue
        if target.mask and is_film(target.mask):
            raise TrainError("E-mask-for-clip-not-picture", file=str(target.mask), pictures=PICTURES)
        planned += sizes
        update(number, len(pictures))
    if bad:
        raise together([*bad, *unreadable(planned)], folder) from bad[0]
    return planned


def _sizes_of(target: Found, text: str, settings: PictureSettings, *, held_out: bool) -> list[Planned]:
    """A picture or clip in each of its sizes."""
    clip = facts_of(target.path, settings.frame_rate) if target.is_clip else None
    controls = tuple(facts_of(path, settings.frame_rate) for path in target.controls)
    facts = clip or picture_facts(target.path)
    # A small picture may have one size in several resolutions; its references may not.
    fits: dict[tuple[PictureFit, int], list[int]] = {}
    for resolution in settings.resolutions:
        fitted = fit(facts.size, resolution, settings.step, enlarge=settings.enlarge)
        _check_cut(target.path, fitted, settings)
        fits.setdefault((fitted, resolution if target.references else 0), []).append(resolution)
    cuts: Sequence[Cut | None] = [None]
    if clip:
        cuts = cuts_of(clip.frames, settings.frames, settings.frame_step, settings.cuts, settings.frame_least)
    flips = (False, True) if settings.mirror and not held_out and may_be_mirrored(text) else (False,)
    views = tuple(View(mirrored, cut) for cut in cuts for mirrored in flips)
    orders = (orders_of(choice, settings.tag_orders, settings.kept_tags) for choice in choices_of(text))
    texts = tuple(dict.fromkeys(chain.from_iterable(orders)))
    texts = tuple(choices_of(text)[:1]) if held_out else texts
    is_animated = isinstance(facts, PictureFacts) and facts.is_animated
    return [
        Planned(target, same[0], fitted, texts, held_out, views, clip, controls, is_animated, len(same))
        for (fitted, _), same in fits.items()
    ]


def unreadable(planned: Sequence[Planned]) -> Generator[TrainError]:
    """The errors of pictures that cannot be decoded. Clips are not read."""
    for picture in {picture.found: picture for picture in planned}.values():
        try:
            if picture.clip is None:
                whole_of(picture.found.path)
        except TrainError as error:
            yield error


def together(errors: Sequence[TrainError], folder: PictureFolder) -> TrainError:
    """One error for several files; the error itself where there is one."""
    if len(errors) == 1:
        return errors[0]
    names: dict[str, list[str]] = {}
    for error in errors:
        names.setdefault(error.problem, []).append(Path(error.file or "").name)
    return TrainError(
        "E-dataset-files-unusable",
        file=str(folder.path),
        count=len(errors),
        got="; ".join((f"{problem}: {', '.join(files)}" for problem, files in names.items())),
        hint=". ".join(dict.fromkeys(error.hint for error in errors if error.hint)),
    )


def fit_of_reference(path: Path, picture: Planned, kind: References, settings: PictureSettings) -> PictureFit:
    """How a reference becomes a latent: in its target's size where both are concatenated, else in its own
    shape."""
    source = size_of(path)
    if kind.fitted:
        return middle(source, picture.fit.size)
    return fit(source, picture.resolution, settings.step, enlarge=settings.enlarge)


def whole_fit(path: Path) -> PictureFit:
    """A picture in its own size."""
    size = size_of(path)
    return PictureFit(size, size, (0, 0, *size))


def _check_cut(path: Path, fitted: PictureFit, settings: PictureSettings) -> None:
    """Raise TrainError if more of the picture would be cut off than is allowed."""
    if fitted.lost > settings.cut_off:
        raise TrainError(
            "E-picture-cut-too-much",
            file=str(path),
            cut_off=f"{settings.cut_off:.0%}",
            got="{:.0%} of {} x {}".format(fitted.lost, *fitted.source),
        )


def _text_of(picture: Found, trigger: str) -> str:
    """The caption of a picture, from its file or else its folder's name, with the trigger."""
    text = caption_of_file(picture.caption) if picture.caption else picture.listed
    return with_trigger(text or picture.subject, trigger)
