"""The one door to the host, ComfyUI: everything that the nodes use of it passes through this module."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import comfy.lora
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.utils
import folder_paths
import latent_preview
import torch
from aiohttp import web
from comfy.cli_args import args
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy.weight_adapter import WeightAdapterBase
from comfy.weight_adapter.bypass import BypassForwardHook
from comfy_api.latest import ComfyExtension, io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from PIL.Image import Image, fromarray
from server import PromptServer

from ..lycoris_ops import LycorisError, WriteError, check_name, dtype_name

__all__ = [
    "QUANT_FORMATS",
    "Answer",
    "ComfyExtension",
    "ExecutionBlocker",
    "HostReader",
    "PatcherInjection",
    "Progress",
    "WeightAdapterBase",
    "add_injection",
    "add_patches",
    "answer_get",
    "answer_post",
    "compute_device",
    "decoded_picture",
    "encoded_picture",
    "encoded_text",
    "end_if_interrupted",
    "enlarged_by_patches",
    "file_names",
    "file_path",
    "file_tensors",
    "folders_of",
    "forget_between_samplings",
    "forget_passes",
    "has_room_to_decode",
    "inference_memory",
    "io",
    "is_file",
    "kept_folder",
    "key_patches",
    "layer_of",
    "literal_tokens",
    "merge_loss",
    "merge_obstacle",
    "merges_in_every_pass",
    "output_path",
    "own_weights",
    "patched_weight",
    "patcher_of",
    "picture_folder",
    "picture_folders",
    "plain",
    "progress",
    "quantised_layer",
    "rough_picture",
    "rounding_seed",
    "sampled",
    "show_again",
    "shown_path",
    "shown_pictures",
    "shown_text",
    "tell_page",
    "user_text",
    "weight_of",
    "weight_shapes",
    "workflow_metadata",
    "wrap_passes",
]


def file_names(folder: str, endings: Sequence[str]) -> list[str]:
    """The files with these endings in one of the host's model folders, as its own loaders list them."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(tuple(endings))]


def folders_of(folder: str) -> list[str]:
    """The places on the disk that one of the host's model folders stands for."""
    return folder_paths.get_folder_paths(folder)


def is_file(folder: str, name: str) -> bool:
    """Whether there is a file of this name in one of the host's model folders."""
    return folder_paths.get_full_path(folder, name) is not None


def file_path(folder: str, name: str) -> str:
    """The full path of a file in one of the host's model folders. Raises LycorisError if it is not there."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise LycorisError(
            "the file is not there any more" if name else "no file is chosen",
            file=name,
            expected=f"a file in a folder for {folder}",
            hint="Put it back, or press R to refresh the lists of files and choose another",
        )
    return path


def user_text(name: str) -> str | None:
    """The text of a file in the host's user folder; None where there is none.

    Raises LycorisError for a file that is no text.
    """
    path = Path(folder_paths.get_user_directory()) / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise LycorisError("the file cannot be read as text", file=str(path), got=str(error)) from error


def weight_of(patcher: Any, key: str) -> torch.Tensor:
    """A weight or bias of a loaded model as floats, without what patches will make of it."""
    return plain(comfy.utils.get_attr(patcher.model, key)).detach().float().cpu()


def output_path(prefix: str, ending: str) -> Path:
    """The path for a file in the output folder: the prefix, the next free number, the ending.

    The number is counted as by the host's own save nodes: `loras/adapter_00001_.safetensors`. Raises
    WriteError for a prefix that names no file, leaves the output folder or cannot be a name on the disk.
    """
    check_name(prefix)
    # The host checks this too, but its error does not say what to do.
    root = Path(os.path.realpath(folder_paths.get_output_directory()))
    # Path.resolve would raise an error of its own for a link to itself.
    wanted = Path(os.path.realpath(root / prefix))
    outside = not wanted.is_relative_to(root)
    if outside or wanted == root or prefix.endswith(("/", "\\")):
        raise WriteError(
            "the file name leaves the output folder" if outside else "the file name is empty",
            file=prefix,
            got=str(wanted),
            expected=f"a name below {root}",
            hint="Use a relative name such as checkpoints/merged",
        )
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    except OSError as error:
        raise WriteError(
            "there is no folder for the file, and none can be made",
            file=prefix,
            got=str(error.strerror),
            hint="Use a relative name such as checkpoints/merged",
        ) from error
    return Path(folder) / f"{name}_{counter:05}_{ending}"


def picture_folders() -> list[str]:
    """The folders in the host's input folder, by their paths there.

    Links that are in it are followed, which the host's own list does not do: they are how a user says that
    a folder elsewhere may be read.
    """
    home = folder_paths.get_input_directory()
    found: list[str] = []
    # The real folders on the way to each one: a link to one of these would never end.
    ways = {home: {os.path.realpath(home)}}
    for here, folders, _ in os.walk(home, followlinks=True):
        way = ways.pop(here)
        for name in sorted(folders):
            path = os.path.join(here, name)
            real = os.path.realpath(path)
            if name.startswith(".") or real in way:
                folders.remove(name)
            else:
                ways[path] = {*way, real}
                found.append(Path(path).relative_to(home).as_posix())
    return sorted(found)


def picture_folder(name: str) -> Path:
    """The full path of one of `picture_folders`. Raises LycorisError for any other folder."""
    home = Path(folder_paths.get_input_directory())
    if name not in picture_folders():
        raise LycorisError(
            "there is no such folder of pictures" if name else "no folder is chosen",
            file=name,
            expected=f"a folder in {home}",
            hint="Put the folder there, or a link to it, press R, and choose it",
        )
    return home / name


def kept_folder() -> Path:
    """Where what was encoded is kept. The host gives nothing out of folders that begin so."""
    return Path(folder_paths.get_user_directory()) / "__lycoris" / "encoded"


def shown_path(path: str | Path) -> str:
    """A path in one of the host's folders, from there on: `output/loras/mine.safetensors`.

    The folders have the names that they have in the host's API, wherever they are. Any other path is shown in
    full.
    """
    shown = shown_text(str(path))
    # As it is written first: links within a folder may lead out of it.
    return Path(shown if shown != str(path) else shown_text(os.path.realpath(path))).as_posix()


def shown_text(text: str) -> str:
    """A text for users, with the names of the host's folders in place of where they are on this machine."""
    names = _folder_names()
    places = "|".join(re.escape(place) for place in sorted(names, key=len, reverse=True))
    # As a whole path or as its beginning: /data is no part of my/data, nor of /database.
    return re.sub(rf"(?<![^\s\"'`(\[:,;=])(?:{places})(?![\w-])", lambda found: names[found[0]], text)


def _folder_names() -> dict[str, str]:
    """The names of the host's folders, by where they are. One of models that is elsewhere has its kind's."""
    named = {
        folder_paths.base_path: "ComfyUI",
        folder_paths.models_dir: "models",
        folder_paths.get_temp_directory(): "temp",
        folder_paths.get_input_directory(): "input",
        folder_paths.get_user_directory(): "user",
        folder_paths.get_output_directory(): "output",
    }
    for kind, (folders, *_) in folder_paths.folder_names_and_paths.items():
        elsewhere = [one for one in folders if not any(Path(one).is_relative_to(home) for home in named)]
        named |= dict.fromkeys(elsewhere, kind)
    real = {os.path.realpath(place): name for place, name in named.items()}
    found = {**real, **named}
    # In what Python quotes, backslashes are twice.
    return {**{place.replace("\\", "\\\\"): name for place, name in found.items()}, **found}


def show_again(node: Any) -> None:
    """Have the host send what a node shows in every run, also where it takes the result from its cache.

    ComfyUI before 0.20 cannot: there the page looks into the history.
    """
    node.HAS_INTERMEDIATE_OUTPUT = True


def tell_page(event: str, hidden: Any, **data: Any) -> None:
    """Send an event about the running node to the page that has queued it, if it was a page."""
    if hidden is not None and (client := PromptServer.instance.client_id) is not None:
        PromptServer.instance.send_sync(event, {"node": hidden.unique_id, **data}, client)


def encoded_picture(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What a VAE makes of a picture (1, H, W, 3) from 0 to 1, as the host's VAE Encode gives it."""
    return vae.encode(pixels)


def encoded_text(clip: Any, text: str) -> list[Any]:
    """The conditioning of a text, as the host's CLIP Text Encode gives it, with parentheses as they are."""
    return clip.encode_from_tokens_scheduled(literal_tokens(clip, text))


def literal_tokens(clip: Any, text: str) -> Any:
    """The tokens of a text with parentheses as they are, which the host would take for weights of words."""
    return clip.tokenize(re.sub(r"\\?([()])", r"\\\1", text))


def own_weights(patchable: Any) -> tuple[dict[str, torch.Tensor], list[str]] | None:
    """The weights of a VAE or text encoder, and how it computes, in words.

    The weights are without what other users of the same module have patched into them, and without those
    that nothing reads. None where this one has patches, hooks or injections of its own.
    """
    patcher = patcher_of(patchable)
    own = ("patches", "injections", "hook_patches", "forced_hooks", "weight_wrapper_patches")
    # The host sets the dtype that is computed in as if it patched the module.
    settings = dict(patcher.object_patches)
    if any(getattr(patcher, name, None) for name in own):
        return None
    if not all(isinstance(value, torch.dtype) for value in settings.values()):
        return None
    kept = patcher.backup
    weights: dict[str, torch.Tensor] = patcher.model_state_dict()
    # Files have none, so that the values are whatever was in memory.
    unused = {
        f"{path}.transformer.text_projection.weight"
        for path, module in patcher.model.named_modules()
        if getattr(module, "return_projected_pooled", True) is False
    }
    whole = {
        key: kept[key].weight if key in kept else weight
        for key, weight in weights.items()
        if key not in unused
    }
    return whole, [f"{name} {value}" for name, value in sorted(settings.items())]


def patcher_of(patchable: Any) -> Any:
    """The host's patcher of a model or text encoder: a MODEL is one, a CLIP has one."""
    return getattr(patchable, "patcher", patchable)


def weight_shapes(patcher: Any) -> dict[str, tuple[int, ...]]:
    """Every key of a loaded model with its shape, that of a quantised weight as if it were unpacked."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in patcher.model_state_dict().items():
        # The parameter itself: the state dict of a quantised weight holds its packed data.
        weight = _parameter(patcher, key) if key.endswith(".weight") else None
        shapes[key] = tuple((value if weight is None else weight).shape)
    return shapes


def _parameter(patcher: Any, key: str) -> Any:
    """What the model holds under a key. None for a key that only its state dict has: other packs add some."""
    layer, _, name = key.rpartition(".")
    try:
        return getattr(comfy.utils.get_attr(patcher.model, layer), name)
    except AttributeError:
        return None


def merge_obstacle(patcher: Any, key: str) -> str | None:
    """Why the host cannot merge a change into this weight correctly, in words; None where it can.

    Packed weights are an obstacle, but not with ComfyUI-GGUF's own patcher: this unpacks a weight in every
    forward pass and calls the patches then (city96/ComfyUI-GGUF, ops.py and nodes.py).
    """
    weight = _parameter(patcher, key)
    if weight is None:
        return None
    if not weight.is_floating_point() and type(patcher).__name__ != "GGUFModelPatcher":
        return f"it is packed as {weight.dtype} in a {type(weight).__name__}, which ComfyUI cannot patch"
    if _parameter(patcher, f"{key.removesuffix('.weight')}.pre_quant_scale") is not None:
        return "it is stored divided by factors that its layer multiplies its input with (pre_quant_scale)"
    return None


def plain(weight: Any) -> Any:
    """A weight as floats. The host hands over a quantised one where its layer cannot unpack it itself."""
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def key_patches(patcher: Any) -> dict[str, list[Any]]:
    """Of each key the original weight with the host's function that unpacks it, then its patches."""
    return patcher.get_key_patches()


def patched_weight(parts: Sequence[Any], key: str) -> torch.Tensor:
    """A weight in float32 on the CPU, unpacked and with its patches, from what `key_patches` gives of it."""
    (weight, convert), *patches = parts
    values = plain(convert(weight.detach(), inplace=False)).to("cpu", torch.float32, copy=True)
    if patches:
        values = comfy.lora.calculate_weight(patches, values, key, intermediate_dtype=torch.float32)
    return values


def compute_device() -> torch.device:
    """The device that the host computes on."""
    return comfy.model_management.get_torch_device()


def add_patches(patched: Any, patches: Mapping[str, WeightAdapterBase]) -> None:
    """Hand one patch per weight to the host, which applies it when it loads the model.

    Raises LycorisError where the host cannot merge correctly (see `merge_obstacle`), and where it refuses
    a patch, which it would otherwise drop in silence.
    """
    for key in patches:
        reason = merge_obstacle(patcher_of(patched), key)
        if reason is not None:
            raise LycorisError(
                "a weight cannot be merged into",
                key=key,
                got=reason,
                hint="Set the mode to bypass, which leaves weights as they are",
            )
    taken = set(patched.add_patches(patches, 1.0, 1.0))
    refused = sorted(set(patches) - taken)
    if refused:
        raise LycorisError(
            "ComfyUI did not accept the change of a weight; please report this",
            key=refused[0],
            got=f"{len(refused)} of {len(patches)} changes refused",
            expected="every change accepted",
        )


def layer_of(patcher: Any, path: str) -> Any:
    """The module at a path of the model, None where there is none."""
    try:
        found = comfy.utils.get_attr(patcher.model, path)
    except AttributeError:
        return None
    return found if isinstance(found, torch.nn.Module) else None


def enlarged_by_patches(patcher: Any, key: str) -> bool:
    """Whether the patches that a weight already has give it another shape."""
    weight, patches = _parameter(patcher, key), patcher.patches.get(key, [])
    return bool(patches) and tuple(comfy.lora.calculate_shape(patches, weight, key)) != tuple(weight.shape)


def merge_loss(patcher: Any, key: str) -> str | None:
    """Why a merge into this weight loses precision or is repeated in every pass; None for plain floats."""
    weight = _parameter(patcher, key)
    if not isinstance(weight, torch.Tensor):
        return None
    kind = getattr(weight, "tensor_type", None)
    if kind is not None:  # ComfyUI-GGUF's tensors
        name = getattr(kind, "name", str(kind))
        plain_float = name in ("F32", "F16", "BF16")
        return None if plain_float else f"kept as GGUF {name}, and a merge would be added again in every step"
    if isinstance(weight, QuantizedTensor):
        layer = layer_of(patcher, key.rpartition(".")[0])
        name = getattr(layer, "quant_format", None) or type(weight).__name__
    # A float8 weight without scales is an ordinary tensor.
    elif weight.dtype.itemsize == 1:
        name = dtype_name(weight.dtype)
    else:
        return None
    return f"kept as {name}, and a merge would round the sum to that format"


def merges_in_every_pass(patcher: Any) -> bool:
    """Whether the host is short of memory and would merge again each time that a weight is used.

    It does not do so on a CPU, nor with "dynamic VRAM", where weights are loaded one by one as they are used.
    """
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    if dynamic or comfy.model_management.is_device_cpu(patcher.load_device):
        return False
    # The host sets `model_lowvram` on a model that it has loaded only in part.
    states = comfy.model_management.VRAMState
    return (
        comfy.model_management.vram_state in (states.LOW_VRAM, states.NO_VRAM)
        or bool(getattr(patcher.model, "model_lowvram", False))
        or patcher.model_size() > comfy.model_management.get_total_memory(patcher.load_device)
    )


def add_injection(patcher: Any, name: str, injections: list[PatcherInjection]) -> None:
    """Set the injections that a patcher has under a name.

    The host calls `inject` when it has loaded the model and `eject` before it unloads it. Every clone is
    marked as not injected. The host would copy the mark of a loaded model: when such a clone is deleted, it
    would eject hooks that it never injected, from the model that is in use.
    """
    patcher.set_injections(name, injections)
    patcher.is_injected = False
    if not patcher.get_callbacks(CallbacksMP.ON_CLONE, name):
        patcher.add_callback_with_key(CallbacksMP.ON_CLONE, name, _not_injected)


def wrap_passes(
    patcher: Any, name: str, wrapper: Callable[..., Any], *, in_place_of: Callable[..., Any] | None
) -> None:
    """Have a wrapper called around each pass of a patcher's model, (run, x, sigma, ...), under a name.

    `in_place_of` is the wrapper under that name that it replaces.
    """
    kept = [found for found in patcher.get_wrappers(WrappersMP.APPLY_MODEL, name) if found != in_place_of]
    patcher.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, name)
    for found in (*kept, wrapper):
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, name, found)


def forget_passes(model: Any) -> None:
    """Let a model forget what it keeps of a pass for the next one.

    HiDream-O1 keeps the keys and values of a text, and does not notice that its weights are others.
    """
    forget = getattr(getattr(model, "diffusion_model", None), "clear_kv_cache", None)
    if forget:
        forget()


def forget_between_samplings(patcher: Any) -> None:
    """Have the model of a patcher forget its passes before and after each sampling with this patcher."""
    if not hasattr(getattr(patcher.model, "diffusion_model", None), "clear_kv_cache"):
        return
    for time in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP):
        if not patcher.get_callbacks(time, "lycoris"):
            patcher.add_callback_with_key(time, "lycoris", _forget)


def _forget(patcher: Any) -> None:
    forget_passes(patcher.model)


def _not_injected(patcher: Any, clone: Any) -> None:
    clone.is_injected = False


class HostReader:
    """Reads a layer's weight and bias as its forward pass sees them: unpacked, with the host's patches.

    It is the `Reader` of a `Bypass`.
    """

    def forward(self, module: Any) -> Callable[..., torch.Tensor]:
        """The layer's own `forward`, below the host's own bypass, which replaces that method."""
        found: Any = module.forward
        while isinstance(hook := getattr(found, "__self__", None), BypassForwardHook):
            found = hook.original_forward
        return found

    def weight(self, module: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The weight that acts on the layer's input, (O, I, *kernel), in a dtype and on a device."""
        weight = self._read(module, dtype, device)[0]
        # The layer multiplies its input with these factors (I,), and its weight is stored divided by them.
        scale = getattr(module, "pre_quant_scale", None)
        return weight if scale is None else weight * scale.to(device, dtype)

    def bias(self, module: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        return None if module.bias is None else self._read(module, dtype, device)[1]

    def _read(
        self, module: Any, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF
            weight, bias, *_ = module.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)
        elif hasattr(module, "comfy_cast_weights"):
            weight, bias, stream = comfy.ops.cast_bias_weight(
                module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
            )
            # On a GPU the host may return a buffer that it overwrites with the next layer.
            copy = not comfy.model_management.is_device_cpu(device)
            held, beside = weight, bias
            weight = plain(weight).to(dtype, copy=copy)
            bias = None if bias is None else bias.to(dtype, copy=copy)
            comfy.ops.uncast_bias_weight(module, held, beside, stream)
        else:
            weight, bias = plain(module.weight), module.bias
        return tuple(  # type: ignore[return-value]
            None if value is None else value.detach().to(device, dtype) for value in (weight, bias)
        )


QUANT_FORMATS: dict[str, torch.dtype] = {name: algo["storage_t"] for name, algo in QUANT_ALGOS.items()}
"""The host's formats of quantised weights, with the dtypes that their data is stored in."""


@cache
def _quantised_ops() -> Any:
    return comfy.ops.mixed_precision_ops(compute_dtype=torch.float32)


def quantised_layer(
    shape: Sequence[int], tensors: Mapping[str, torch.Tensor], mark: Mapping[str, Any]
) -> Any:
    """The host's own layer for a quantised weight (O, I), loaded from the tensors that a file holds of it.

    `mark` is what the file says of the format. The layer unpacks by `convert_weight(weight)` and packs by
    `set_weight(values, seed=, return_weight=True)`, as the host does when it patches.
    """
    rows, columns = shape
    layer = _quantised_ops().Linear(columns, rows, bias=False, device="cpu", dtype=torch.float32)
    # From this tensor the layer reads the format when it is loaded.
    said = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
    layer.load_state_dict({**tensors, "comfy_quant": said})
    return layer


def rounding_seed(key: str) -> int:
    """The seed with which the host rounds the patched weight of a key."""
    return comfy.utils.string_to_seed(key)


class Progress(Protocol):
    """Shows what is done of what there is in all, with a picture if there is one."""

    def __call__(self, done: int, of: int, picture: Image | None = None, /) -> None: ...


def end_if_interrupted() -> None:
    """End the work, by the host's own exception, when the user has interrupted the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def progress(total: int) -> Progress:
    """A progress bar on the running node.

    A call of it also ends the work, by the host's own exception, when the user has interrupted the run.
    """
    bar = comfy.utils.ProgressBar(total)

    def update(done: int, of: int, picture: Image | None = None, /) -> None:
        end_if_interrupted()
        bar.update_absolute(done, of, None if picture is None else ("JPEG", picture, max(picture.size)))

    return update


def shown_pictures(pictures: torch.Tensor, node: type[io.ComfyNode]) -> dict[str, Any]:
    """What makes the front end show pictures (B, H, W, 3) on a node after it has run."""
    return ui.PreviewImage(pictures, cls=node).as_dict()


def file_tensors(path: str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, as the host's own nodes hand them on."""
    found: Any = comfy.utils.load_torch_file(path, safe_load=True)
    return found


def inference_memory(patcher: Any, shape: Sequence[int]) -> float:
    """The host's estimate of the bytes that a pass of a model takes for latents (B, C, ...)."""
    return float(patcher.model.memory_required(list(shape)))


def sampled(
    patcher: Any, latent: torch.Tensor, positive: Any, negative: Any, *, cfg: float, steps: int, seed: int
) -> torch.Tensor:
    """What the host's sampler (euler, simple) makes of noise in the shape of a latent (1, C, ...)."""
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        patcher,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        positive,
        negative,
        torch.zeros_like(latent),
        disable_pbar=True,
        seed=seed,
    )


def rough_picture(patcher: Any, latent: torch.Tensor) -> Image | None:
    """A rough picture of a latent, by the host's own way of previews if one is on, else by its colours.

    None where the host knows no colours for these latents.
    """
    kind = patcher.model.latent_format
    previewer = latent_preview.get_previewer(patcher.load_device, kind)
    if previewer is None and kind.latent_rgb_factors is not None:
        factors = (kind.latent_rgb_factors, kind.latent_rgb_factors_bias, kind.latent_rgb_factors_reshape)
        previewer = latent_preview.Latent2RGBPreviewer(*factors)
    if previewer is None:
        return None
    shown = patcher.model.process_latent_in(latent.to(patcher.load_device))
    return previewer.decode_latent_to_preview_image("JPEG", shown)[1]


def has_room_to_decode(vae: Any, shape: Sequence[int]) -> bool:
    """Whether a VAE can be loaded and decode a latent (1, C, ...) while no other model leaves its device."""
    manager: Any = comfy.model_management
    device = vae.device
    if manager.is_device_cpu(device):
        return True
    needed = vae.memory_used_decode(tuple(shape), vae.vae_dtype) + manager.extra_reserved_memory()
    needed = max(needed, manager.minimum_inference_memory())
    return needed + 1.1 * vae.patcher.model_size() <= manager.get_free_memory(device)


def decoded_picture(vae: Any, latent: torch.Tensor) -> Image:
    """The picture of a latent (1, C, ...), of a video its first frame."""
    pixels = vae.decode(latent)
    first = pixels.reshape(-1, *pixels.shape[-3:])[0].float().clamp(0, 1).cpu()
    return fromarray((255 * first).round().to(torch.uint8).numpy())


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The workflow as the host's own save nodes write it, or nothing if the user turned metadata off."""
    if args.disable_metadata or hidden is None:
        return {}
    values = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {key: json.dumps(value) for key, value in values.items() if value is not None}


class Answer(NamedTuple):
    """What a route answers: the status of HTTP, the type of the content, and the content."""

    status: int
    kind: str
    content: bytes


def answer_get(path: str, answer: Callable[[Mapping[str, str]], Answer]) -> None:
    """Answer GET requests of a path, given their query. `answer` runs in a thread and may read files."""

    async def handle(request: web.Request) -> web.Response:
        return _response(await asyncio.to_thread(answer, request.query))

    _add_route(PromptServer.instance.routes.get, path, handle)


def answer_post(path: str, answer: Callable[[str], Answer]) -> None:
    """Answer POST requests of a path, given the text that they send. `answer` runs in a thread."""

    async def handle(request: web.Request) -> web.Response:
        text = (await request.read()).decode("utf-8", "replace")
        return _response(await asyncio.to_thread(answer, text))

    _add_route(PromptServer.instance.routes.post, path, handle)


def _response(answer: Answer) -> web.Response:
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return web.Response(status=answer.status, content_type=answer.kind, body=answer.content, headers=headers)


def _add_route(add: Callable[[str], Callable[..., Any]], path: str, handle: Callable[..., Any]) -> None:
    # The pack may be loaded twice, and aiohttp refuses to start with a path that has two answers.
    if not any(getattr(route, "path", None) == path for route in PromptServer.instance.routes):
        add(path)(handle)
