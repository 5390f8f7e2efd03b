"""Pictures that a model samples while an adapter for it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ..lycoris_ops import LycorisNetwork
from .host import rough_picture, sampled
from .training import Latent, Session, family_of

STEPS = 20
CFG = 5.0
"""The guidance where there is a caption of no text, and the model has none built in."""


@dataclass(frozen=True)
class Previews:
    """Samples the first caption every so many steps, always from the same noise, and keeps the pictures.

    `empty` is the caption of no text. The pictures are rough: the VAE would take the room of the model.
    """

    session: Session
    network: LycorisNetwork
    every: int
    folder: Path
    like: Latent
    """The latent whose size the pictures have."""
    captions: Sequence[Any]
    empty: Sequence[Any]
    seed: int

    def due(self, step: int) -> bool:
        # Of several parts, such as video and sound, none is a picture.
        return self.every > 0 and step % self.every == 0 and len(self.like.shapes) == 1

    def make(self, step: int) -> Image | None:
        """The picture after a step, which is kept as a file too; None where latents cannot be shown."""
        patcher = self.session.patcher
        # Of several captions in one conditioning, the first.
        positive = self.captions[0][:1]
        built_in = bool(family_of(self.session.model).guidance)
        negative = self.empty[0] if self.empty else positive
        self.network.eval()
        with self.session.sampling():
            made = sampled(
                patcher,
                torch.zeros(self.like.values.shape),
                positive,
                negative,
                cfg=CFG if self.empty and not built_in else 1.0,
                steps=STEPS,
                seed=self.seed,
            )
            picture = rough_picture(patcher, made)
        if picture is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / f"sample-{step:06d}.png")
        return picture
