"""Encode pictures, clips, sounds and captions, or read them from the cache."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...lycoris_ops import LycorisError, TrainError, number_of
from ..host.families.family import References
from ..host.families.node import Beside, Made
from ..host.given import Given, restored, stored
from ..host.page import picture_tensor
from ..host.references import Conditioning, encoded_with
from ..host.sampling import NOISE_MASK
from .clip import Cut, hash_of, pixels_of_clip, sound_of
from .kept import Kept, key_of
from .picture import mask_of, picture_of, pixels_of, row, small
from .plan import Encoder, PictureSettings, Planned, Shown, View, fit_of_reference, whole_fit
from .sizes import PictureFit, fit


@dataclass(frozen=True)
class Source:
    """What is read from a file: a picture, or a cut of a clip, resized and perhaps mirrored."""

    path: Path
    content: bytes | str
    """The bytes of a picture; a hash of a clip."""
    fit: PictureFit | None = None
    """None: the whole of it, in its own size."""
    mirrored: bool = False
    background: str | None = None
    cut: Cut | None = None
    rate: float = 0.0
    """Frames a second of the cut."""

    def pixels(self) -> Tensor:
        """(F, H, W, 3), from 0 to 1."""
        return self.with_opacity()[0]

    def with_opacity(self) -> tuple[Tensor, Tensor | None]:
        """The pixels, and the mask (1, H, W) of their opaque parts, see `pixels_of`."""
        fitted, opaque = self.fit or whole_fit(self.path), None
        if self.cut:
            pixels = pixels_of_clip(self.path, self.cut, self.rate, fitted)
        else:
            assert isinstance(self.content, bytes)
            picture, opaque = pixels_of(self.path, self.content, fitted, self.background)
            pixels = picture_tensor(picture)
        if not self.mirrored:
            return pixels, opaque
        return pixels.flip(2), None if opaque is None else opaque.flip(2)

    def mask(self) -> Tensor:
        """A mask (1, H, W), see `mask_of`."""
        assert isinstance(self.content, bytes) and self.fit
        mask = mask_of(self.path, self.content, self.fit)
        return mask.flip(2) if self.mirrored else mask

    def heard_by(self, encoder: Encoder, *settings: Any) -> Any:
        """What an encoder makes of the sound of the cut."""
        assert self.cut
        return encoder.encode(partial(sound_of, self.path, self.cut, self.rate), self.cut.count, *settings)


@dataclass(frozen=True)
class CacheKey:
    """All that a value is encoded from: nothing that is not in it may be used for that.

    Files count by their contents, and encoders by their identities.
    """

    what: str
    """`picture`, `reference`, `sound` or `caption`."""
    encoders: tuple[Encoder, ...]
    target: Source | None = None
    mask: Source | None = None
    controls: tuple[Source, ...] = ()
    references: tuple[Source, ...] = ()
    reference_masks: tuple[Source | None, ...] = ()
    """In colours."""
    listener: Encoder | None = None
    """The audio encoder that hears the sound of the target."""
    text: str = ""
    how: tuple[Any, ...] = ()
    """The host's node, and settings of it."""

    @property
    def short(self) -> str | None:
        """A hash of it. None where nothing identifies an encoder, or where the text may name an embedding,
        whose file can change."""
        used = (*self.encoders, *([self.listener] if self.listener else []))
        if "embedding:" in self.text or any(encoder.identity is None for encoder in used):
            return None
        return key_of(vars(self), default=_as_it_counts)

    def beside(self) -> Beside:
        """What belongs to the target, read from its files."""
        heard = self.target.heard_by(self.listener) if self.target and self.listener else None
        masks = [mask.pixels() if mask else None for mask in self.reference_masks]
        controls, references = ([each.pixels() for each in some] for some in (self.controls, self.references))
        return Beside(controls, references, masks, heard)


def _as_it_counts(value: Any) -> Any:
    """A part of a key as a value that JSON has."""
    if isinstance(value, Path):
        return None
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value.identity if isinstance(value, Encoder) else vars(value)


@dataclass(frozen=True)
class Encoded:
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
class Encoding:
    """Encodes pictures and captions, or reads them from the cache."""

    settings: PictureSettings
    vae: Encoder
    clip: Encoder
    kept: Kept
    check: Callable[[Tensor], object]
    shown: Shown
    made: Counter[str] = field(default_factory=Counter[str])
    """How many values were encoded, by `CacheKey.what`."""
    _hashes: dict[Path, str] = field(default_factory=dict[Path, str])
    """Hashes of clips: each is read once for all its views."""

    def view(self, picture: Planned, view: View) -> Encoded:
        """Encode a view."""
        giving = self.shown.giving(picture)
        seeing = (self.shown.vision,) if self.shown.vision and giving and giving.seen else ()
        key = self._key("picture", (self.vae, *seeing), picture, view, giving)
        try:
            value = self._fetch(key, lambda: self._made(key, giving))
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
        sound = self._sound(picture, view)
        return Encoded(value["latent"], learned, value["shown"], *given_values, references, sound)

    def caption(self, text: str) -> Conditioning:
        """A caption alone, encoded."""
        return self._fetch(CacheKey("caption", (self.clip,), text=text), lambda: self.clip.encode(text))

    def caption_beside(self, picture: Planned, view: View, text: str) -> Conditioning:
        """A caption encoded together with what a picture or clip is given."""
        shown, giving = self.shown, self.shown.giving(picture)
        if view.cut and giving:
            cut, key = view.cut, self._key("caption", (self.vae, self.clip), picture, view, giving, text)

            def encode_clip() -> Conditioning:
                assert giving.encode is not None and key.target is not None
                ends = (Cut(cut.start, 1), Cut(cut.start + cut.count - 1, 1))
                pixels = torch.cat([replace(key.target, cut=end).pixels() for end in ends])
                return giving.encode(shown.clip, shown.vae, text, pixels, cut.count, key.beside())

            return self._fetch(key, encode_clip)
        seer = (shown.vision,) if self.kind.sees and shown.vision else ()
        size = picture.fit.size
        # The node itself scales the whole picture, or gets it as it is trained.
        references = tuple(
            self._source(
                path,
                None if self.kind.scales else fit_of_reference(path, picture, self.kind, self.settings),
                view.mirrored,
            )
            for path in picture.found.references
        )
        key = CacheKey(
            "caption",
            (self.vae, self.clip, *seer),
            references=references,
            text=text,
            how=(self.kind.node, *size),
        )

        def encode() -> Conditioning:
            images = [reference.pixels() for reference in references]
            pairs = encoded_with(self.kind, shown.clip, shown.vae, text, images, size, shown.clip_vision)
            return [[words, stored(more)] for words, more in pairs]

        return [[words, restored(more)] for words, more in self._fetch(key, encode)]

    def small_references(self, picture: Planned) -> list[Tensor]:
        """Small pictures of the references."""
        paths = picture.found.still_references
        return [small(picture_of(self._source(path).pixels()[0]), None) for path in paths]

    @property
    def kind(self) -> References:
        assert self.shown.references is not None
        return self.shown.references

    def _fetch(self, key: CacheKey, make: Callable[[], Any]) -> Any:
        before = self.kept.made
        value = self.kept.fetch(key.short, make)
        self.made[key.what] += self.kept.made - before
        return value

    def _source(
        self, path: Path, fitted: PictureFit | None = None, mirrored: bool = False, cut: Cut | None = None
    ) -> Source:
        """Raises TrainError, with the file, where it is gone by now."""
        try:
            if cut is None:
                return Source(path, path.read_bytes(), fitted, mirrored, self.settings.background)
            if path not in self._hashes:
                self._hashes[path] = hash_of(path)
        except OSError as error:
            raise TrainError("E-config-file-unreadable", file=str(path), got=error.strerror) from error
        return Source(path, self._hashes[path], fitted, mirrored, None, cut, self.settings.frame_rate)

    def _key(
        self,
        what: str,
        encoders: tuple[Encoder, ...],
        picture: Planned,
        view: View,
        giving: Given | None,
        text: str = "",
    ) -> CacheKey:
        """The key of a view, and of a caption that is encoded together with it."""
        found, cut, mirrored = picture.found, view.cut, view.mirrored
        target = self._source(found.path, picture.fit, mirrored, cut)
        mask = self._source(found.mask, picture.fit, mirrored) if found.mask else None
        key = CacheKey(what, encoders, target, mask, text=text)
        if giving is None:
            return key
        plain = (value for value in vars(giving.takes).values() if not callable(value))
        key = replace(key, how=(giving.node, giving.ends, giving.masked, *plain))
        if cut is None or picture.clip is None or self.shown.references:
            return key
        masks = dict(found.reference_masks) if giving.takes.reference_masks else {}
        return replace(
            key,
            controls=tuple(
                self._source(path, self._fit_of_control(picture, facts.size), mirrored, cut)
                for path, facts in zip(found.controls, picture.controls, strict=True)
            ),
            references=tuple(self._source(path, None, mirrored) for path in found.still_references),
            reference_masks=tuple(
                self._source(masks[path], None, mirrored) if path in masks else None
                for path in found.still_references
            ),
            listener=self.shown.listener if picture.clip.sounds else None,
        )

    def _fit_of_control(self, picture: Planned, size: tuple[int, int]) -> PictureFit:
        """One of the clip's size is cut like it; another keeps its shape, and the host's node cuts it."""
        if size == picture.fit.source:
            return picture.fit
        return fit(size, picture.resolution, self.settings.step, enlarge=self.settings.enlarge)

    def _sound(self, picture: Planned, view: View) -> Tensor | None:
        """The latent of a view's sound; None where it has none, or none is learned."""
        encoder = self.shown.sounds
        if encoder is None or view.cut is None or picture.clip is None or not picture.clip.sounds:
            return None
        source = self._source(picture.found.path, cut=view.cut)
        key = CacheKey("sound", (encoder,), source)
        return self._fetch(key, lambda: {"sound": source.heard_by(encoder, source.rate)})["sound"]

    def _reference(self, picture: Planned, path: Path, mirrored: bool) -> Tensor:
        """The latent of a reference, or its pixels."""
        if not self.kind.encoded:
            return self._source(path, None, mirrored).pixels()
        source = self._source(path, fit_of_reference(path, picture, self.kind, self.settings), mirrored)
        key = CacheKey("reference", (self.vae,), source)
        return self._fetch(key, lambda: {"latent": self.vae.encode(source.pixels())})["latent"]

    def _made(self, key: CacheKey, giving: Given | None) -> dict[str, Any]:
        """Encode a view, in the form that the cache keeps."""
        assert key.target is not None
        pixels, mask = key.target.with_opacity()
        if key.mask:
            mask = key.mask.mask() if mask is None else mask * key.mask.mask()
        if mask is not None and not mask.any():
            raise _nothing_to_learn(key.target.path, key.mask)
        # The first and the last frame of a clip.
        seen = dict.fromkeys((0, len(pixels) - 1))
        miniature = row([small(picture_of(pixels[number]), mask) for number in seen])
        latent = self.vae.encode(pixels)
        self.check(latent)
        values: dict[str, Any] = {"latent": latent, "mask": None, "shown": miniature}
        of_it = Made({})
        if giving and giving.make:
            of_it = giving.make(self.shown.vae, pixels, mask, key.beside())
            values |= {"latent": of_it.within(latent), "given": stored(of_it.settings)}
            if of_it.noise_mask is not None:
                if not of_it.noise_mask.any():
                    raise TrainError("E-clip-all-given", got=number_of(len(pixels), "frame"))
                values[NOISE_MASK] = of_it.noise_mask
        if mask is not None and not (of_it.masked or (giving and giving.masked)):
            values["mask"] = (mask * 255).round().to(torch.uint8)
        return values


def _nothing_to_learn(path: Path, mask: Source | None) -> TrainError:
    if mask:
        return TrainError("E-picture-mask-leaves-nothing", file=str(mask.path))
    return TrainError("E-picture-transparent", file=str(path))
