"""The record of a family of the host's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .node import Node
from .times import Times

LATENTS, CONCATENATED = "reference_latents", "concat_latent_image"
"""The keys of reference latents in a conditioning."""


@dataclass(frozen=True)
class References:
    """How a model takes references: as latents under `key`, or encoded with the caption by a host's `node`.

    `fitted` says whether each is cropped and resized like its target; else it keeps its own shape. `given`
    makes the inputs of `node`, except the encoder, the VAE and the text, from references (1, H, W, 3) and the
    width and height of the target.
    """

    key: str = LATENTS
    fitted: bool = False
    most: int = 16
    """How many a model takes at most."""
    encoded: bool = True
    """Whether they become latents; else the model takes their pixels (1, H, W, 3)."""
    node: str = ""
    sees: bool = False
    """Whether the node also takes a CLIP vision model."""
    scales: bool = True
    """Whether the node scales them itself."""
    given: Callable[[Sequence[Tensor], tuple[int, int]], dict[str, Any]] = lambda images, size: {}

    @property
    def in_words(self) -> str:
        if self.node:
            return f"encoded with the captions, as by {self.node}"
        if not self.encoded:
            return "pixels beside the captions"
        return "concatenated to the latents" if self.key == CONCATENATED else "latents beside the captions"


@dataclass(frozen=True)
class Sound:
    """The sound that a model makes with its clips."""

    vae: str
    """The host's class of its audio VAE."""
    cut: Callable[[Any, Tensor, int, float], Tensor]
    """Cuts a latent of sound to the length of the host's empty sound, given the VAE, the latent, the number
    of frames and the frames a second."""
    needed: bool = False
    """Whether the model cannot make clips without sound."""


@dataclass(frozen=True)
class Unmade:
    """A setting of a conditioning that is not made from a folder."""

    setting: str
    node: str
    """The host's node that makes it."""
    needed: bool = False
    """Whether the model cannot run without it. Else the host itself takes zeros for it."""


@dataclass(frozen=True)
class Network:
    """What a network does with activations that the backward pass needs. Without more it overwrites none."""

    norms: str = ""
    """The class of the part that overwrites inputs of norms.

    Copying these inputs is cheaper than watching every operation: a step of a small Flux takes a quarter of
    the time."""
    attentions: str = ""
    """The class of the attentions whose inputs are overwritten, with those of norms that are called as
    functions."""
    fused: bool = False
    """Whether it uses fused kernels even when the host is in training mode."""


def marked(model: Any) -> bool:
    """Whether the host marks a model as image-to-video."""
    return getattr(model, "image_to_video", False)


FLOW = Times("logit-normal")
"""The times at which most trainers train a flow model."""


@dataclass(frozen=True)
class Family:
    """A family of models in the host. The defaults are the rule for a model without a record.

    The sources of the training's settings are the defaults and examples of trainers in 2026. Their learning
    rates are for scales (alpha / rank) of 1/16 to 1, so they are only a start.
    """

    hosts: tuple[str, ...] = ()
    """The host's classes of its models, or of their configurations where these say more. Classes that derive
    from them belong to the family too."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Further classes, each with the fields that differ from the rest of the family."""
    denoises: bool = True
    """Whether its models denoise. Others are not trained."""

    name: str = "other flow models"
    source: str = "what most trainers do"
    """The trainers whose defaults the following are."""
    times: Times = FLOW
    """The times at which its models are trained."""
    guidance: float | None = None
    """The guidance at which a model with a guidance embedding is trained. None: that of the caption."""
    rank: int = 16
    lr: float = 1e-4
    """The learning rate for a scale (alpha / rank) of 1."""
    preset: str = "attn-mlp"
    include: tuple[str, ...] = ()
    """Patterns of layers that are trained beside those of the preset."""
    resolution: int = 1024
    """The side, in pixels, of a square picture of the size used in training."""
    told_size: bool = False
    """Whether the model is conditioned on the size and the crop of a picture."""
    alone: bool = False
    """Whether the model takes one sample at a time."""
    boundary: float | None = None
    """For models with two experts: the lowest time of the expert for high noise, as in the model's own
    code."""

    frame_rate: float | None = None
    """Frames a second of the videos that its models make, as in the model's own examples, and for LTX-Video
    in the host; None for those that make pictures."""
    clip: tuple[int, int] | None = None
    """Clips have a multiple of the first number of frames, plus the second. None: as the VAE says."""
    latents: Mapping[str, int] = field(default_factory=dict[str, int])
    """Video frames per latent frame, by the host's class of latents. Hosts before 0.24 do not say it
    themselves. Source: `temporal_downscale_ratio` of ComfyUI 0.30."""
    channels: int | None = None
    """The channels of latents of pictures, where the host's class says those of sound too."""

    given: Node | Callable[[Any, str], Node | None] | None = None
    """What gives a model parts of its target: one for all models, or by the model and the user's choice of
    `ways`."""
    fills: Callable[[Any], bool] = lambda model: "mask" in model.concat_keys
    """Whether a model is given what surrounds a hole in the picture."""
    animates: Callable[[Any], bool] = marked
    """Whether a model makes videos of pictures."""
    references: References | Callable[[Any, str], References | None] | None = None
    """How a model takes references, likewise."""
    ways: tuple[str, ...] = ()
    """The user's choices of how references are given, beside "auto": for models that have the same layers."""
    sound: Sound | None = None
    unmade: Unmade | None = None
    networks: Mapping[str, Network] = field(default_factory=dict[str, Network])
    """By the class of the network. One that no family knows gets every cure, which is correct for any model
    but slower for most. tests/host trains each of these for a step."""

    def given_to(self, model: Any, way: str) -> Node | None:
        """`given` for a model and a choice of `ways`."""
        return self.given if isinstance(self.given, Node | None) else self.given(model, way)

    def references_of(self, model: Any, way: str) -> References | None:
        """`references` for a model and a choice of `ways`."""
        own = self.references
        return own if isinstance(own, References | None) else own(model, way)
