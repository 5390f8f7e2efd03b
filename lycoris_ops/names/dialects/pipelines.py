"""The parts of a model, and how kohya-ss and diffusers number its text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...maths.shapes import Shape

UNET = "unet"
LDM = ("input_blocks.0.0", "middle_block.0.in_layers.2")
"""Layers of every UNet of the SD family."""
CASCADE, MMDIT = "clf.1", "joint_blocks.0.x_block.attn.qkv"
"""A layer that only Stable Cascade has, and one that only SD3 has."""
ORDER = ("clip_l", "clip_h", "hydit_clip", "clip_g", "t5xxl", "mt5xl", "llama")
"""The order of text encoders in diffusers' pipelines. HunyuanVideo alone has Llama first."""
SD3_ENCODERS = {"clip_l": 1, "clip_g": 2, "t5xxl": 3}
"""The numbers in diffusers' pipeline of SD3. They stay the same where some of the three are absent."""


@dataclass(frozen=True)
class Parts:
    """The parts of a model: the diffusion model (`unet`) and text encoders by the host's names."""

    shapes: Mapping[str, Mapping[str, Shape]]
    """The shapes of the weights by part and path."""

    @property
    def unet(self) -> Mapping[str, Shape]:
        """The diffusion model's shapes by path; none where it is not given."""
        return self.shapes.get(UNET, {})

    @property
    def encoders(self) -> set[str]:
        return set(self.shapes) - {UNET}

    def number(self, encoder: str) -> int:
        """The number of a text encoder in diffusers' pipeline for this model, counted from 1."""
        if MMDIT in self.unet:
            return SD3_ENCODERS.get(encoder, 1)
        if self.encoders == {"llama", "clip_l"}:
            return 1 if encoder == "llama" else 2
        order = [name for name in ORDER if name in self.encoders]
        return order.index(encoder) + 1 if encoder in order else 1


def is_ldm(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are the layers of a UNet of the SD family."""
    return all(path in shapes for path in LDM)
