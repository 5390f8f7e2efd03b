"""The parts of the host that a training uses: models loaded and running, conditionings, latents."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_base as model_base
import comfy.model_detection as model_detection
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn

from .families import family_of
from .sampling import literal_tokens


def loaded(patchers: Sequence[Any], memory: float) -> None:
    """Load models with their patches and injections, and leave `memory` bytes free for what training keeps.

    They are loaded in one call: else the host could unload one to make room for another.
    """
    comfy.model_management.load_models_gpu(list(patchers), memory_required=int(memory))


@contextmanager
def computing_in(model: Any, dtype: torch.dtype | None) -> Generator[None]:
    """A context in which a model computes in a dtype, whatever its weights are kept in; None changes nothing.

    The host does the same for weights in a dtype that a device cannot compute in.
    """
    if dtype is None:
        yield
        return
    layers = [vars(inner) for inner in model.modules() if hasattr(inner, "comfy_cast_weights")]
    own = [layer.get("comfy_cast_weights") for layer in layers]
    before = model.manual_cast_dtype
    try:
        for layer in layers:
            layer["comfy_cast_weights"] = True
        model.manual_cast_dtype = dtype
        yield
    finally:
        model.manual_cast_dtype = before
        for layer, flag in zip(layers, own, strict=True):
            if flag is None:
                del layer["comfy_cast_weights"]
            else:
                layer["comfy_cast_weights"] = flag


@contextmanager
def running(patcher: Any) -> Generator[None]:
    """A context that prepares the model as the host's sampler does, so that it runs without a sampler."""
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


def bypasses(model: nn.Module) -> list[Any]:
    """The adapters from files with which the host's own bypass has wrapped the `forward` of layers."""
    adapters: list[Any] = []
    for module in model.modules():
        around = getattr(vars(module).get("forward"), "__self__", None)
        while isinstance(around, BypassForwardHook):
            # An adapter from a file has a tuple of tensors. Adapters in training have parameters.
            if isinstance(getattr(around.adapter, "weights", None), tuple):
                adapters.append(around.adapter)
            around = getattr(around.original_forward, "__self__", None)
    return adapters


@contextmanager
def marked_training(on: bool = True) -> Generator[None]:
    """A context in which the host replaces kernels that it knows to have no derivative."""
    manager: Any = comfy.model_management
    before = manager.in_training
    manager.in_training = on
    try:
        yield
    finally:
        manager.in_training = before


def attention(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's attention in place of the host's choice, which may have no derivative (flash, sage)."""
    return attention_pytorch(*args, **kwargs)


def fused_functions() -> dict[str, Callable[..., Any]]:
    """Differentiable functions of plain torch, by the names of the host's fused kernels that they replace."""
    functions: dict[str, Any] = {}
    for module in ("rope", "adaln"):
        try:
            functions |= vars(importlib.import_module(f"comfy_kitchen.backends.eager.{module}"))
        except ImportError:
            # Older hosts do not have all of these kernels.
            continue
    names = ("apply_rope", "rms_rope", "adaln", "rms_adaln")
    return {name: value for name, value in functions.items() if callable(value) and name.startswith(names)}


def staying(clip: Any) -> Any:
    """A CLIP whose text encoders encode without being loaded again."""
    other = copy.copy(clip)
    # Loading could unload the model that is trained beside them.
    other.load_model = lambda *args, **kwargs: other.patcher
    return other


def text_encoded(clip: Any, text: str) -> tuple[Tensor, dict[str, Any]]:
    """A text as `encoded_text` encodes it, with gradients: the encoded tokens, and all other values."""
    values = clip.encode_from_tokens(literal_tokens(clip, text), return_dict=True)
    return values.pop("cond"), values


def held(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the CPU, pinned for a fast copy to a GPU."""
    here = tensor.cpu()
    return here.pin_memory() if device.type == "cuda" else here


def encoded(
    model: Any,
    text: Any,
    settings: Mapping[str, Any],
    noise: Tensor,
    shapes: Sequence[torch.Size],
    seed: int,
    noise_mask: Tensor | None,
) -> dict[str, Any]:
    """A conditioning as the model takes it: the host's own objects by name, one row each.

    `noise` has the shape of the latent, `shapes` are the shapes of its parts, and `noise_mask` is as
    `with_given` takes it. Zeros stand for the picture's latent: otherwise a model that takes a latent beside
    its input would see its target.
    """
    (entry,) = comfy.samplers.encode_model_conds(
        model.extra_conds,
        comfy.sampler_helpers.convert_cond([[text, dict(settings)]]),
        noise,
        noise.device,
        "positive",
        latent_image=torch.zeros_like(noise),
        denoise_mask=None if noise_mask is None else noise_mask.expand_as(noise),
        seed=seed,
        latent_shapes=list(shapes),
    )
    # Some of these objects hold one row for the whole batch.
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
    sizes = shape[2:]
    sides = patch_of(model.diffusion_model, 2)[-len(sizes) :]
    return math.prod(-(-size // side) for size, side in zip(sizes, sides, strict=True))


def grid_of(model: Any) -> int:
    """The number of pixels that the sides of a model's pictures must be multiples of.

    It is the pixels per value of a latent, times a transformer's patch or all downsampling of a UNet.
    """
    levels = getattr(model.diffusion_model, "channel_mult", None)
    patch = max(patch_of(model.diffusion_model, 2)[1:]) if levels is None else 2 ** (len(levels) - 1)
    return ratios_of(model)[2] * patch


def patch_of(network: Any, unknown: int = 1) -> tuple[int, int, int]:
    """The frames, rows and columns of a latent per token.

    Rows and columns are `unknown` where no size is found.
    """
    # The latents of Ideogram and Lens are cut into patches already.
    cut = hasattr(network, "ae_channels") or hasattr(network, "selected_layer_index")
    # LTX-Video has the size of a patch in its patchifier.
    size = 1 if cut else getattr(getattr(network, "patchifier", network), "patch_size", None)
    if size is None:
        # Krea calls it `patch`.
        size = getattr(network, "patch", None)
    if size is None:
        # Cosmos has one size for space and one for time.
        side = getattr(network, "patch_spatial", unknown)
        size = (getattr(network, "patch_temporal", 1), side, side)
    frames, height, width = (1, size, size) if isinstance(size, int) else (1, *size)[-3:]
    return int(frames), int(height), int(width)


def classes_of_file(shapes: Mapping[str, Sequence[int]]) -> tuple[list[str], str]:
    """The names of the host's classes for a model file with weights of these shapes, in two values.

    First a list: the class of the configuration and those that it inherits from, then the same for the
    model's class. Second the model's class alone. Both are empty where the host knows no such model. No model
    is made: the name of its class is found in the configuration's method that would make it.
    """
    weights = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    for prefix in dict.fromkeys((model_detection.unet_prefix_from_state_dict(weights), "")):
        try:
            config: Any = model_detection.model_config_from_unet(weights, prefix)
        except NotImplementedError:
            # The host asks for values, which a header does not have.
            continue
        if config is not None:
            named = (getattr(model_base, name, None) for name in type(config).get_model.__code__.co_names)
            classes = [value for value in named if isinstance(value, type) and hasattr(value, "extra_conds")]
            # If it names several, the last is the usual one. A pack's own configuration may name none.
            kinds = [type(config), *classes[-1:]]
            return [kind.__name__ for top in kinds for kind in top.__mro__], classes[
                -1
            ].__name__ if classes else ""
    return [], ""


def ratios_of(model: Any) -> tuple[int, int, int]:
    """Of latents of pictures: channels, dimensions of space and time, and pixels per value along a side."""
    kind = model.latent_format
    channels: int = family_of(model).channels or kind.latent_channels
    return channels, kind.latent_dimensions, getattr(kind, "spacial_downscale_ratio", 8)


def noise_mask_of(masks: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
    """The noise mask of a latent, made of the masks of its parts as the sampler makes it. Several parts are
    packed. Parts without a mask get noise everywhere."""
    prepare = comfy.sampler_helpers.prepare_mask
    # Like the sampler, leave out masks for which there is no part.
    masks_made = [prepare(mask, shape, mask.device) for mask, shape in zip(masks, shapes, strict=False)]
    masks_made += [torch.ones(shape) for shape in shapes[len(masks_made) :]]
    return (packed(masks_made)[0] if len(masks_made) > 1 else masks_made[0]).float()


def with_given(
    model: Any, x: Tensor, sigma: Tensor, noise: Tensor, latent: Tensor, noise_mask: Tensor
) -> Tensor:
    """Noised latents x (B, ...) with given values in them, as the sampler hands them to the model.

    Values are given where the noise mask, which is broadcast to x, is 0. Most video models get them without
    noise.
    """
    known = model.scale_latent_inpaint(x=x, sigma=sigma, noise=noise, latent_image=latent)
    return x * noise_mask + known * (1.0 - noise_mask)


def packed(latents: Sequence[Tensor]) -> tuple[Tensor, list[torch.Size]]:
    """Several latents of one sample, such as video and audio, as the host packs them: (B, 1, N)."""
    return comfy.utils.pack_latents(list(latents))


def unpacked(latent: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The parts of a latent that was packed, (B, ...) each."""
    return comfy.utils.unpack_latents(latent, list(shapes))
