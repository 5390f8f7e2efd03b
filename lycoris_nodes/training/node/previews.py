"""Pictures that a model samples while an adapter for it is trained."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image, new

from ....lycoris_ops import LycorisNetwork, new_files
from ...host.sampling import decoded_picture, has_room_to_decode, rough_picture, sampled
from ...host.training import unpacked
from ..data.families import trained_family
from ..data.latents import Latent
from ..data.samples import without_text
from ..data.widths import misfits_told
from ..model.session import Session

LAST = -1
"""The frame of a clip that is shown: the first is often given, and would not change."""
VIDEO = 5
"""The dimensions of a clip's latent (1, C, F, H, W)."""
STEPS = 20
CFG = 5.0
"""The guidance where there is an empty caption and the model has no guidance built in."""

Conditioning = list[Any]


def sample(
    session: Session,
    shapes: Sequence[Sequence[int]],
    positive: Conditioning,
    negative: Conditioning | None,
    *,
    seed: int,
    tell: Callable[[int, int], None],
    like: Latent | None = None,
) -> torch.Tensor:
    """The latent (1, C, ...) that the host's sampler makes for a caption, with the adapters as they are now.

    `shapes` are those of the parts of a latent. Sound is sampled with the video, and left out here. Without
    `negative`, and for models with a guidance of their own, there is no CFG; else it has the settings of the
    caption that are not of its text. The model is given the same parts as of the latent `like`. Frames that
    it is given at the end, such as guides, are left out of what is returned. Call it within
    `session.sampling()`. Raises TrainError for a caption of another width than the model takes.
    """
    known = [] if like is None else _given(session, like)
    built_in = bool(trained_family(session.model).guidance)
    with misfits_told(session.network):
        latent = sampled(
            session.patcher,
            shapes,
            positive,
            positive if negative is None else [without_text(positive[0], negative[0])],
            cfg=1.0 if negative is None or built_in else CFG,
            steps=STEPS,
            seed=seed,
            tell=tell,
            known=known,
        )
    for _, mask in known[:1]:
        latent = latent[:, :, : int(mask.amax((0, 1, 3, 4)).nonzero().max()) + 1]
    return latent


def _given(session: Session, latent: Latent) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each part of a latent what the model is given of it, and a mask that is 0 there; [] for nothing."""
    if latent.noise_mask is None:
        return []
    values = latent.values.to("cpu", torch.float32)
    mask = latent.noise_mask.to("cpu", torch.float32).expand_as(values)
    shown = session.model.process_latent_out(values) * (1 - mask)
    if len(latent.shapes) == 1:
        return [(shown, mask)]
    return list(zip(*(unpacked(tensor, latent.shapes) for tensor in (shown, mask)), strict=True))


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample."""

    positive: Callable[[], Conditioning]
    """The encoded text, as the text encoders make it now."""
    shapes: Sequence[torch.Size]
    """The shapes of the parts of its latent."""
    seed: int
    strength: float = 1.0
    """The adapter's strength."""
    given: Latent | None = None
    """The latent of which the model is given parts, such as the first frame."""


@dataclass
class Previews:
    """Samples prompts before the first step, every `every` steps and after the last, always from the same
    noise, and saves the pictures of a step side by side. Those after the last step are of the weights in the
    file, which may be those of an earlier step.

    `vae` decodes them if there is memory for it beside the models in training; else they are rough.
    """

    session: Session
    network: LycorisNetwork
    every: int
    """0 for no pictures."""
    steps: int
    told: Callable[[int, int], None]
    """Called after each step of the sampler with the steps done and their total."""
    folder: Path
    prompts: Sequence[Prompt]
    negative: Callable[[], Conditioning] | None
    """The encoded empty text, if there is one."""
    vae: Any = None
    rough: int = 0
    """How many pictures the VAE had no room for."""

    def due(self, step: int) -> bool:
        due = self.every > 0 and (step % self.every == 0 or step == self.steps)
        return due and not self._path(step).exists()

    def forget_after(self, step: int) -> None:
        """Delete the pictures of later steps, after a training went back to this one."""
        for path in self.folder.glob("sample-*.png"):
            number = path.stem.removeprefix("sample-")
            # Users copy pictures, which then have other names.
            if number.isdecimal() and int(number) > step:
                path.unlink(missing_ok=True)

    @contextmanager
    def of_training(self) -> Generator[None]:
        """The context of the training. If it fails before the first step, the picture of the model alone is
        removed, with its folder: the folder would count as a training."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                # The claim of the folder is a JSON file. Its end removes the folder.
                if [file for file in self.folder.iterdir() if file.suffix != ".json"] == [self._path(0)]:
                    self._path(0).unlink()
            raise

    def _path(self, step: int) -> Path:
        return self.folder / f"sample-{step:06d}.png"

    def make(self, step: int) -> None:
        """Sample the picture after a step, and keep it as a file. Latents that cannot be shown leave none."""
        self.network.eval()
        pictures = [picture for prompt in self.prompts if (picture := self._picture(prompt)) is not None]
        if pictures:
            picture = side_by_side(pictures)
            # A half-written file would count as made.
            size = 3 * picture.width * picture.height
            with new_files([self._path(step)], size, make_folder=True) as (file,):
                picture.save(file, "png")

    def _picture(self, prompt: Prompt) -> Image | None:
        with torch.no_grad():
            positive = prompt.positive()
            negative = self.negative() if self.negative else None
        with self.session.sampling(), self.network.at(prompt.strength):
            how: dict[str, Any] = {"seed": prompt.seed, "tell": self.told, "like": prompt.given}
            latent = sample(self.session, prompt.shapes, positive, negative, **how)
            if self.vae is not None and has_room_to_decode(self.vae, latent.shape):
                return decoded_picture(self.vae, latent, LAST)
            self.rough += self.vae is not None
            return rough_picture(
                self.session.patcher, latent[:, :, LAST:] if latent.ndim == VIDEO else latent
            )


def side_by_side(pictures: Sequence[Image]) -> Image:
    """Pictures in one row, aligned at the top."""
    if len(pictures) == 1:
        return pictures[0]
    joined = new(
        "RGB",
        (sum(picture.width for picture in pictures), max(picture.height for picture in pictures)),
        "white",
    )
    left = 0
    for small_picture in pictures:
        joined.paste(small_picture, (left, 0))
        left += small_picture.width
    return joined
