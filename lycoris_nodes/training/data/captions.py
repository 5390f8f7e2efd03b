"""Conditionings for training: encoded once, and joined into batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ....lycoris_ops import TrainError
from ...host import training as host
from ...host.given import check_made
from .families import trained_family
from .latents import Latent

Size = tuple[int, int]

FOR_SAMPLERS = {
    "area": "an area",
    "mask": "a mask",
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "hooks": "hooks",
}
"""Settings of a conditioning that only a sampler can follow, with their names in words."""


@dataclass(frozen=True)
class Text:
    """A text, and the settings beside it in a conditioning, such as a guidance."""

    words: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Caption:
    """A model's other inputs for one latent, by name, as the host's own objects."""

    conds: Mapping[str, Any]
    alone: bool = False
    """Whether the model takes one sample at a time."""
    text: Text | None = None
    """The text to encode anew in each pass, where text encoders are trained."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> Caption:
        """The caption with its tensors moved."""
        conds = {
            name: cond._copy_with(tree_map_only(Tensor, move, cond.cond)) for name, cond in self.conds.items()
        }
        return replace(self, conds=conds)

    def goes_with(self, other: Caption) -> bool:
        """Whether both can be rows of one batch, each with its own values."""
        return not self.alone and not other.alone and host.alike(self.conds, other.conds)


def sizes_told(size: Size, corner: Size = (0, 0), target: Size | None = None) -> dict[str, int]:
    """The sizes in pixels that SDXL and its relatives take: the picture's, the crop's corner, the result's.

    Each is two numbers, along the width first. Without `target` the picture was not cropped.
    """
    names = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
    return dict(zip(names, (*size, *corner, *(target or size)), strict=True))


def joined(captions: Sequence[Caption]) -> dict[str, Any]:
    """Join captions that go with each other into one batch: the model's arguments by name."""
    return host.joined([caption.conds for caption in captions])


def caption_of(
    model: Any,
    conditioning: Sequence[Any],
    latent: Latent,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    graph: bool = False,
) -> Caption:
    """A conditioning of the host, encoded for one latent.

    SDXL gets the sizes in the conditioning or, without them, the size of the latent. A guidance embedding
    gets the guidance at which the model's family is trained: a conditioning's own is for samplers. If the
    conditioning switches guidance off, it stays off. `seed` is for models that mix noise into their inputs.
    `device` is where the model is, by default where the latent is. With `graph` the tensors keep their
    autograd graph, so that gradients reach the text encoders.

    Call it while the model is open for training. Raises TrainError for a conditioning of several parts, for
    one that only a sampler can follow, for one without a setting that the model cannot run without, and for a
    text with values that are not finite.
    """
    if len(conditioning) != 1:
        raise TrainError("E-caption-conditionings-several", count=len(conditioning))
    text, settings = conditioning[0]
    check_made(model, settings)
    for name, words in FOR_SAMPLERS.items():
        if settings.get(name) is not None:
            raise TrainError("E-caption-with-sampler-options", key=name, words=words)
    if (strength := settings.get("strength", 1.0)) != 1.0:
        raise TrainError("E-caption-with-strength", key="strength", got=f"{strength:g}")
    start, end = settings.get("start_percent", 0.0), settings.get("end_percent", 1.0)
    if (start, end) != (0.0, 1.0):
        raise TrainError("E-caption-for-part-of-sampling", key="start_percent", start=start, end=end)
    device = device or latent.values.device

    def own(tensor: Tensor) -> Tensor:
        # Without a graph, copy: tensors made by other nodes cannot be trained on.
        return tensor.to(device) if graph else tensor.detach().to(device, copy=True)

    def finite(tensor: Tensor) -> Tensor:
        if not graph and not tensor.isfinite().all():
            raise TrainError("E-caption-not-finite", shape=list(tensor.shape))
        return own(tensor)

    defaults: dict[str, Any] = {}
    if latent.values.ndim >= 4:
        ratio = host.ratios_of(model)[2]
        height, width = latent.values.shape[-2:]
        defaults = sizes_told((width * ratio, height * ratio))
    values = {**defaults, **tree_map_only(Tensor, own, dict(settings))}
    family = trained_family(model)
    usual = family.guidance
    if usual is not None and values.get("guidance", usual) is not None:
        values["guidance"] = usual
    noise = torch.zeros(latent.values.shape, device=device)
    mask = None if latent.noise_mask is None else latent.noise_mask.to(device)
    conds = host.encoded(model, tree_map_only(Tensor, finite, text), values, noise, latent.shapes, seed, mask)
    caption = Caption(conds, family.alone)
    return caption.moved(own)
