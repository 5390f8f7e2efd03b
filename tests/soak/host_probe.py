"""A node for the test of the host under load, linked into the host's `custom_nodes`.

It tells what only the host's own process can tell: whether the weights are those of the file when nothing is
loaded, whether hooks have stayed, and how much memory is in use.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
from typing import Any

import comfy.model_management
import psutil
import torch


def weights_hash(module: torch.nn.Module) -> str:
    """The SHA-256 of all weights and buffers of a module, with their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def hooked(module: torch.nn.Module) -> list[str]:
    """The paths of the modules that have hooks."""
    return [name for name, part in module.named_modules() if part._forward_hooks or part._forward_pre_hooks]


class SoakProbe:
    """Unload all models and show a JSON object: `weights`, `hooks`, and `memory` in bytes."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802 - the host's name
        # Not equal to itself, so that the host runs the node every time.
        return float("nan")

    def probe(self, model: Any, clip: Any) -> dict[str, Any]:
        comfy.model_management.unload_all_models()
        modules = (model.model, clip.cond_stage_model)
        found = {
            "weights": [weights_hash(module) for module in modules],
            "hooks": [name for module in modules for name in hooked(module)],
            "memory": memory(),
        }
        return {"ui": {"text": [json.dumps(found)]}}


def memory() -> int:
    """The bytes of this process that are in memory, after all that is unused has been given back."""
    gc.collect()
    # glibc keeps what was freed, and how much of it depends on the order of the prompts.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss


NODE_CLASS_MAPPINGS: dict[str, type] = {"SoakProbe": SoakProbe}
