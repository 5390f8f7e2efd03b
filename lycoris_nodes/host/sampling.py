"""Encoding, sampling and decoding, and the noise schedules of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.model_sampling as sampling
import comfy.sample
import latent_preview
import nodes
import torch
from comfy.nested_tensor import NestedTensor
from PIL.Image import Image, fromarray
from torch import Tensor

from ...lycoris_ops import TrainError
from .page import picture_tensor

NOISE_MASK = "noise_mask"
"""The name under which the host keeps the mask of a latent, beside `samples`."""


def own_node(name: str, without: str, hint: str = "Update ComfyUI") -> Any:
    """One of the host's own nodes. Raises TrainError for a host that lacks it, which cannot do `without`."""
    node = nodes.NODE_CLASS_MAPPINGS.get(name)
    if node is None:
        raise TrainError("E-host-node-absent", without=without, name=name, hint=hint)
    return node


def literal(text: str) -> str:
    """A text with its parentheses escaped, because the host reads plain ones as weights of words."""
    return re.sub(r"\\?([()])", r"\\\1", text)


def literal_tokens(clip: Any, text: str) -> Any:
    """The tokens of a text with parentheses as they are."""
    return clip.tokenize(literal(text))


def encoded_text(clip: Any, text: str) -> list[Any]:
    """The conditioning of a text, as the host's CLIP Text Encode gives it, with parentheses as they are."""
    return clip.encode_from_tokens_scheduled(literal_tokens(clip, text))


def is_cut(clip: Any, text: str) -> bool:
    """Whether a text encoder cuts off the end of a text: its tokens are the same without the last word."""
    if len(text) < FEWEST or "embedding:" in text:
        return False
    shorter = text.rpartition(" ")[0] or text[:-1]
    return literal_tokens(clip, text) == literal_tokens(clip, shorter)


FEWEST = 200
"""No text encoder cuts a text of fewer letters."""


def sampled(
    patcher: Any,
    shapes: Sequence[Sequence[int]],
    positive: Any,
    negative: Any,
    *,
    cfg: float,
    steps: int,
    seed: int,
    tell: Callable[[int, int], None],
    known: Sequence[tuple[Tensor, Tensor]] = (),
) -> torch.Tensor:
    """Sample by the host (euler, simple) a latent with parts of these shapes, and return the first part.

    `tell` is called after each step with the number of steps done and the number of all steps. `known` has
    for each part what the model is given, in the scale of the VAE, and a mask that is 0 there.
    """
    latents = [values for values, _ in known] or [torch.zeros(tuple(shape)) for shape in shapes]
    latent: Any = latents[0] if len(latents) == 1 else NestedTensor(latents)
    masks = [mask for _, mask in known]
    mask: Any = NestedTensor(masks) if len(masks) > 1 else masks[0] if masks else None
    noise = comfy.sample.prepare_noise(latent, seed)
    denoised_latent = comfy.sample.sample(
        patcher,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        positive,
        negative,
        latent,
        noise_mask=mask,
        disable_pbar=True,
        seed=seed,
        callback=lambda step, denoised, noised, total: tell(step + 1, total),
    )
    return denoised_latent if len(latents) == 1 else denoised_latent.unbind()[0]


def empty_latent(patcher: Any, latent: Mapping[str, Any]) -> torch.Tensor:
    """An empty latent of any model, converted for this model as the host's samplers do it."""
    ratios = {name: value for name, value in latent.items() if name.startswith("downscale_ratio")}
    return comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], **ratios)


def rough_picture(patcher: Any, latent: torch.Tensor) -> Image | None:
    """A rough picture of a latent by the host's preview method, or by latent-to-RGB factors if none is on.

    None if the host has no factors for these latents.
    """
    previewer = _previewer(patcher)
    if previewer is None:
        return None
    shown = patcher.model.process_latent_in(latent.to(patcher.load_device))
    return previewer.decode_latent_to_preview_image("JPEG", shown)[1]


def _previewer(patcher: Any) -> Any:
    kind = patcher.model.latent_format
    previewer = latent_preview.get_previewer(patcher.load_device, kind)
    if previewer is None and kind.latent_rgb_factors is not None:
        factors = (kind.latent_rgb_factors, kind.latent_rgb_factors_bias, kind.latent_rgb_factors_reshape)
        previewer = latent_preview.Latent2RGBPreviewer(*factors)
    return previewer


STEREO = 2
"""The number of channels of decoded sound."""


def can_show(patcher: Any, vae: Any) -> bool:
    """Whether a VAE decodes latents to pictures, and not to sound. Without one: whether the host has rough
    pictures of the model's latents."""
    return _previewer(patcher) is not None if vae is None else vae.output_channels != STEREO


def check_vae(vae: Any, shape: Sequence[int]) -> None:
    """Raise TrainError for a VAE that decodes latents of other channels than those of a shape (1, C, ...)."""
    if vae.latent_channels != shape[1]:
        raise TrainError(
            "E-vae-of-another-model", key="vae", latent_channels=vae.latent_channels, expected=str(shape[1])
        )


def has_room_to_decode(vae: Any, shape: Sequence[int]) -> bool:
    """Whether a VAE can be loaded and decode a latent (1, C, ...) without unloading another model."""
    manager: Any = comfy.model_management
    device = vae.device
    if manager.is_device_cpu(device):
        return True
    needed = vae.memory_used_decode(tuple(shape), vae.vae_dtype) + manager.extra_reserved_memory()
    needed = max(needed, manager.minimum_inference_memory())
    return needed + 1.1 * vae.patcher.model_size() <= manager.get_free_memory(device)


def decoded_picture(vae: Any, latent: torch.Tensor, frame: int = 0) -> Image:
    """The picture of a latent (1, C, ...); for a video, this frame of it."""
    pixels = vae.decode(latent)
    shown = pixels.reshape(-1, *pixels.shape[-3:])[frame].float().clamp(0, 1).cpu()
    return fromarray((255 * shown).round().to(torch.uint8).numpy())


def embeddings(clip_vision: Any, pictures: Sequence[Image]) -> torch.Tensor:
    """A CLIP vision model's embeddings (N, D) of pictures, each cropped to a square as in its training."""
    tensors = map(picture_tensor, pictures)
    vectors = [clip_vision.encode_image(picture, crop=True)["image_embeds"] for picture in tensors]
    return torch.cat(vectors).float().cpu()


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


def predicted_by(model_sampling: Any) -> str | None:
    """What a model predicts, by our names; None if it is unknown, or if no noise is added."""
    return next((name for kind, name in PARAMETRISATIONS if isinstance(model_sampling, kind)), None)


def time_to_sigma(model_sampling: Any, time: Tensor) -> Tensor:
    """The sigma of a time from 0 (data) to 1 (noise), on the time scale of the model's training.

    It is without the shift that the host's own schedules add for sampling.
    """
    if isinstance(model_sampling, sampling.CONST):
        return time
    # Annotated, because the type checker takes `sigmas` from another base class.
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


def ends_in_noise(model_sampling: Any) -> bool:
    """Whether the last step of a model's schedule is noise alone: a signal-to-noise ratio of zero."""
    return bool(getattr(model_sampling, "zsnr", False)) or float(model_sampling.sigma_max) > PURE


PURE = 1000.0
"""From this sigma on no signal is left. Schedules that keep some signal end at a sigma of 15 to 500, the
others at 4518."""
