"""What a training uses of the host, ComfyUI: the second and last module that imports it, see `..host`."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_sampling as sampling
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..host import plain

__all__ = [
    "PARAMETRISATIONS",
    "QuantizedTensor",
    "alike",
    "attention",
    "encoded",
    "fetched",
    "fresh_id",
    "fused_functions",
    "joined",
    "loaded",
    "marked_training",
    "packed",
    "ratios_of",
    "running",
    "time_to_sigma",
    "tokens_of",
    "unpacked",
]


# The model, loaded and running.


def loaded(patcher: Any, memory: float) -> None:
    """Load a model with its patches and injections, and leave `memory` bytes free for what training keeps."""
    comfy.model_management.load_models_gpu([patcher], memory_required=int(memory))


@contextmanager
def running(patcher: Any) -> Generator[None]:
    """A time in which the model runs outside of the host's sampler, which prepares it in the same way."""
    if not hasattr(patcher, "pre_run"):
        yield
        return
    before = getattr(patcher.model, "current_patcher", None)
    patcher.pre_run()
    try:
        yield
    finally:
        patcher.cleanup()
        if hasattr(patcher.model, "current_patcher"):
            patcher.model.current_patcher = before


@contextmanager
def marked_training(on: bool = True) -> Generator[None]:
    """A time in which the host uses code that has a derivative, where it knows that its kernels have none."""
    manager: Any = comfy.model_management
    before = manager.in_training
    manager.in_training = on
    try:
        yield
    finally:
        manager.in_training = before


def attention(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """An attention in place of any other: the host's own choice may have no derivative (flash, sage)."""
    return attention_pytorch(*args, **kwargs)


def fused_functions() -> dict[str, Callable[..., Any]]:
    """The host's fused kernels without a derivative, by name, as functions of plain torch that have one."""
    try:
        from comfy_kitchen.backends.eager import adaln, rope
    except ImportError:
        # Older hosts have no such kernels.
        return {}
    found = {name: value for module in (rope, adaln) for name, value in vars(module).items()}
    names = ("apply_rope", "rms_rope", "adaln", "rms_adaln")
    return {name: value for name, value in found.items() if callable(value) and name.startswith(names)}


def fetched(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight that a layer multiplies with, unpacked, patched, in a dtype and on a device. Never kept."""
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF
        layer: Any = module
        return plain(layer.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)[0])
    weight, bias, stream = comfy.ops.cast_bias_weight(
        module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
    )
    comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    return plain(weight).to(dtype)


# How a model is trained by its sampling.

_NAMED = {
    # The more special classes come first.
    "IMG_TO_IMG": None,
    "IMG_TO_IMG_FLOW": None,
    "X0": "x0",
    "EDM": "edm",
    "V_PREDICTION": "v",
    "V_PREDICTION_DDPM": "v of a preserved variance",
    "EPS": "eps",
    "CONST": "flow",
    "COSMOS_RFLOW": "flow of an exploding variance",
}
PARAMETRISATIONS: Sequence[tuple[type, str | None]] = tuple(
    # Older hosts do not have all of them.
    (getattr(sampling, kind), name)
    for kind, name in _NAMED.items()
    if hasattr(sampling, kind)
)
"""The host's classes of what a model predicts, with our names; None for those that add no noise."""


def time_to_sigma(model_sampling: Any, time: Tensor) -> Tensor:
    """The sigma of a time from 0 (data) to 1 (noise) in the clock that the model was trained with.

    The host's own schedules add a shift that is meant for sampling; it is left out here.
    """
    if isinstance(model_sampling, sampling.CONST):
        return time
    # The host's class has this of another class than the one that is asked for here.
    steps: Tensor = model_sampling.sigmas
    low, high = float(steps[0]), float(steps[-1])
    if isinstance(model_sampling, sampling.COSMOS_RFLOW):
        return (time / (1 - time)).clamp(max=high)
    if isinstance(model_sampling, sampling.StableCascadeSampling):
        return model_sampling.sigma(time.cpu()).to(time).clamp(low, high)
    if isinstance(model_sampling, sampling.ModelSamplingContinuousV):
        return model_sampling.sigma(time).clamp(low, high)
    if isinstance(model_sampling, sampling.ModelSamplingDiscrete):
        return steps[(time * len(steps)).long().clamp(max=len(steps) - 1).to(steps.device)].to(time)
    return low * (high / low) ** time


# Conditionings and latents.


def encoded(
    model: Any, text: Any, settings: Mapping[str, Any], noise: Tensor, shapes: Sequence[torch.Size], seed: int
) -> dict[str, Any]:
    """A conditioning as the model takes it: the host's own objects by name, one row each.

    `noise` has the shape of the latent, and `shapes` are those of its parts. No latent of a picture is given:
    a model that sees one beside its input would be shown what it is to predict.
    """
    (entry,) = comfy.samplers.encode_model_conds(
        model.extra_conds,
        comfy.sampler_helpers.convert_cond([[text, dict(settings)]]),
        noise,
        noise.device,
        "positive",
        latent_image=torch.zeros_like(noise),
        denoise_mask=None,
        seed=seed,
        latent_shapes=list(shapes),
    )
    # Some of these objects hold one row for all rows.
    return {name: value.process_cond(batch_size=1, area=None) for name, value in entry["model_conds"].items()}


def alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two encoded conditionings can be rows of one batch."""
    if first.keys() != second.keys():
        return False
    return all(
        type(value) is type(second[name]) and value.can_concat(second[name]) for name, value in first.items()
    )


def joined(conditionings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Encoded conditionings as the rows of one batch: the arguments of the model."""
    return comfy.samplers.cond_cat(list(conditionings))


def tokens_of(model: Any, shape: Sequence[int]) -> int:
    """How many tokens a transformer makes of a latent (B, C, ..., H, W), as far as its patches are known."""
    network = model.diffusion_model
    patch: Any = getattr(network, "patch_size", None) or getattr(network, "patch_spatial", None) or 2
    sides = [1, 1, 1, *(patch if isinstance(patch, tuple | list) else (patch, patch))]
    sizes = shape[2:]
    return math.prod(-(-size // int(side)) for size, side in zip(sizes, sides[-len(sizes) :], strict=True))


def ratios_of(model: Any) -> tuple[int, int, int]:
    """Of a model's latents: their channels, how many dimensions they have, and pixels a value and side."""
    kind = model.latent_format
    return kind.latent_channels, kind.latent_dimensions, getattr(kind, "spacial_downscale_ratio", 8)


def packed(parts: Sequence[Tensor]) -> tuple[Tensor, list[torch.Size]]:
    """Several latents of one sample, such as video and audio, as the host packs them: (B, 1, N)."""
    return comfy.utils.pack_latents(list(parts))


def unpacked(latent: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The parts of a latent that was packed, (B, ...) each."""
    return comfy.utils.unpack_latents(latent, list(shapes))


def fresh_id() -> uuid.UUID:
    """What tells the conditioning of one pass from others, for packs that keep something for each."""
    return uuid.uuid4()
