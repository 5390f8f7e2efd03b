"""The components of a model, and how kohya-ss and diffusers number its text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..architectures.notation import Layout
from ..layouts import Layers

UNET = "unet"
ORDER = ("clip_l", "clip_h", "hydit_clip", "clip_g", "t5xxl", "mt5xl", "llama")
"""The order of text encoders in diffusers' pipelines. HunyuanVideo alone has Llama first."""


@dataclass(frozen=True)
class Components:
    """The components of a model: the diffusion model (`unet`) and text encoders by the host's names."""

    layers: Mapping[str, Layers]
    in_diffusers: str | None = None
    """Its name in diffusers' pipeline, where the diffusion model is in diffusers' own layout."""

    @property
    def component(self) -> str:
        """What diffusers calls the diffusion model in a pipeline."""
        return self.in_diffusers or self.layout.component

    @cached_property
    def layout(self) -> Layout:
        """The layout of the diffusion model; an empty one where it is unknown or not given."""
        model = self.layers[UNET].model if UNET in self.layers else None
        return model.layout if model else Layout(())

    @cached_property
    def encoders(self) -> set[str]:
        return set(self.layers) - {UNET}

    def number(self, encoder: str) -> int:
        """The number of a text encoder in diffusers' pipeline, counted from 1; 1 where it is not known."""
        if self.encoders == {"llama", "clip_l"}:
            return 1 if encoder == "llama" else 2
        order = self.layout.encoders or [name for name in ORDER if name in self.encoders]
        return order.index(encoder) + 1 if encoder in order else 1
