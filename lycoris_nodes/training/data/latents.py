"""Prepare latents and masks for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ....lycoris_ops import TrainError
from ...host import training as host


@dataclass(frozen=True, eq=False)
class Latent:
    """A latent of one sample (1, C, ...) in the scale of the model, in float32.

    Several parts, such as video and audio, are packed as (1, 1, N); `shapes` has the shape of each part.
    """

    values: Tensor
    shapes: tuple[torch.Size, ...]
    noise_mask: Tensor | None = None
    """Where noise is added, (1, 1, ...) broadcast to `values`: 0 in parts that the model is given, such as a
    first frame, 1 elsewhere. None: everywhere."""


def parts_of(latent: Any) -> list[Tensor]:
    """The parts of a latent of the graph, such as video and sound; mostly one."""
    return latent.unbind() if getattr(latent, "is_nested", False) else [latent]


def latent_of(
    model: Any, latent: Any, device: torch.device, noise_masks: Sequence[Tensor] | None = None
) -> Latent:
    """Prepare a latent from a VAE of the host, (1, C, ...) or nested, for training.

    `noise_masks` holds a mask (1, 1, ...) for each of its parts.

    Raises TrainError for a latent that is not of this model, is a batch, is all zeros, or has values that are
    not finite, and for noise masks with values other than 0 and 1, or without any 1.
    """
    # Copy: tensors made by other nodes cannot be trained on.
    latents = [each.to(device, torch.float32, copy=True) for each in parts_of(latent)]
    nested = len(latents) > 1
    if not nested:
        latents = [_as_expected(model, latents[0])]
    for checked in latents:
        if checked.shape[0] != 1:
            raise TrainError("E-sample-latents-several", got=str(list(checked.shape)))
        if not checked.isfinite().all():
            raise TrainError("E-latent-not-finite", shape=list(checked.shape))
    if not any(bool(each.any()) for each in latents):
        raise TrainError("E-latent-all-zeros")
    values, shapes = host.packed(latents) if nested else (latents[0], [latents[0].shape])
    noise_mask = _noise_mask(noise_masks, shapes) if noise_masks is not None else None
    return Latent(model.process_latent_in(values), tuple(shapes), noise_mask)


def _noise_mask(masks: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
    """The noise mask of a latent with parts of these shapes."""
    mask = host.noise_mask_of(masks, shapes)[:, :1]
    between = mask[(mask != 0) & (mask != 1)]
    if between.numel():
        raise TrainError("E-frame-given-in-part", got=f"{float(between[0]):g}")
    if not mask.any():
        raise TrainError("E-latent-all-given")
    return mask


def _as_expected(model: Any, latent: Tensor) -> Tensor:
    """A latent in the shape that the model is called with. Raises TrainError for a latent of another kind."""
    channels, dimensions, _ = host.ratios_of(model)
    # For a video model, a picture is a video of one frame.
    if dimensions == 3 and latent.ndim == 4:
        latent = latent.unsqueeze(2)
    if latent.ndim != dimensions + 2 or latent.shape[1] != channels:
        raise TrainError(
            "E-latent-of-another-model", channels=channels, dimensions=dimensions, got=str(list(latent.shape))
        )
    return latent


def mask_of(model: Any, mask: Tensor, latent: Latent) -> Tensor:
    """Turn a picture's mask (H, W) or (1, H, W), from 0 to 1, into weights (1, 1, ..., h, w) for its latent.

    Each weight is the mean over the pixels that one value of the latent covers. Sound beside a video gets
    the weight 1, and both are packed as the latent is.

    Raises TrainError for a mask that has another size than the picture, is all zeros, or has values that are
    negative or not finite, and for latents that cannot have a mask.
    """
    shape = latent.shapes[0]
    if not has_pictures(latent.shapes) or len(shape) < 4:
        raise TrainError("E-mask-on-unpictured-latent")
    ratio = host.ratios_of(model)[2]
    height, width = shape[-2:]
    pixels = mask.reshape(-1, 1, *mask.shape[-2:])[:1].to(latent.values.device, torch.float32, copy=True)
    # A VAE drops rows and columns that do not fill a whole value of the latent.
    fits = all(
        0 <= side - size * ratio < ratio or side == size
        for side, size in zip(pixels.shape[-2:], (height, width), strict=True)
    )
    if not fits:
        raise TrainError(
            "E-mask-size-differs",
            height=height * ratio,
            width=width * ratio,
            got="{} x {}".format(*pixels.shape[-2:]),
        )
    bad = pixels[~(pixels.isfinite() & (pixels >= 0))]
    if bad.numel():
        raise TrainError("E-mask-values-unusable", got=f"{float(bad[0]):g}")
    weights = functional.interpolate(pixels, (height, width), mode="area")
    weights = weights.view(1, 1, *(1 for _ in shape[2:-2]), height, width)
    beside = 0
    if others := latent.shapes[1:]:
        beside, _ = host.packed([torch.zeros(shape), *map(torch.ones, others)])
        weights, _ = host.packed([weights.expand(shape), *map(torch.zeros, others)])
    if not (weights if latent.noise_mask is None else weights * latent.noise_mask).any():
        raise TrainError("E-mask-leaves-nothing")
    return weights + beside


def has_pictures(shapes: Sequence[torch.Size]) -> bool:
    """Whether a latent with parts of these shapes has a picture or video as its first part.

    A latent with several parts has one only if it is a video with sound. A single part without height and
    width is a sound.
    """
    return len(shapes[0]) == 5 if len(shapes) > 1 else len(shapes[0]) > 3


def means(
    values: Tensor, shapes: Sequence[torch.Size], mask: Tensor | None, over: Tensor | None = None
) -> Tensor:
    """The mean (B,) of each row, weighted by a mask (B, 1, ...). With `over`, the weighted sum is divided by
    the sum of `over` and not of the mask.

    With several parts it is the sum of their means; otherwise the part with the most values would dominate.
    A part that is masked out adds nothing.
    """
    if len(shapes) > 1:
        latents = host.unpacked(values, shapes)
        none = [None for _ in latents]
        masks, divisors = (
            none if tensor is None else host.unpacked(tensor, shapes) for tensor in (mask, over)
        )
        each = [
            means(values_of_one, [values_of_one.shape], *own)
            for values_of_one, *own in zip(latents, masks, divisors, strict=True)
        ]
        return torch.stack(each).sum(0)
    if mask is None:
        return values.flatten(1).mean(1)
    total = (mask if over is None else over).expand_as(values).flatten(1).sum(1)
    return (values * mask).flatten(1).sum(1) / total.where(total > 0, 1.0)
