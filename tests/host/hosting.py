"""The real host in this process, and short forms of what tests do with it."""

from __future__ import annotations

import asyncio
import importlib
import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from safetensors.torch import load_file, save_file

from tests.harness import zoo
from tests.harness.adapters import RECIPES, Recipe
from tests.harness.assets import adapter_file, assets
from tests.harness.launch import loaded_pack

STEPS, SIZE, SEED = 2, 16, 7
LORA, LOKR = "lora.safetensors", "lokr.safetensors"


def needs(architecture: str) -> None:
    """Skip the test where the host has no such architecture."""
    if not zoo.supported(architecture):
        pytest.skip(f"this host has no {architecture}")


@dataclass(frozen=True)
class Patched:
    """A model and text encoder, as they come from a loader or from Apply."""

    model: Any
    clip: Any
    report: str = ""

    def patcher_of(self, key: str) -> Any:
        """The patcher that has a key: the diffusion model's or the text encoder's."""
        return self.model if key.startswith("diffusion_model.") else self.clip.patcher

    @property
    def patches(self) -> dict[str, Any]:
        """All patches of the model and of the text encoder, by key."""
        return {**self.model.patches, **(self.clip.patcher.patches if self.clip is not None else {})}


@dataclass(frozen=True)
class Host:
    """The host's node registry, and short forms of what tests do with it."""

    base: Path
    nodes: types.ModuleType

    def run(self, node: str, *args: Any, **kwargs: Any) -> Any:
        """Execute a V3 node, and return its outputs."""
        return self.nodes.NODE_CLASS_MAPPINGS[node].execute(*args, **kwargs).args

    @cached_property
    def pack(self) -> types.ModuleType:
        """The pack, as the host has loaded it."""
        return loaded_pack(self.base)

    @cached_property
    def ops(self) -> types.ModuleType:
        """`lycoris_ops` as the nodes see it."""
        return self.module("lycoris_ops")

    def module(self, name: str) -> types.ModuleType:
        """A module of the pack as the host has loaded it."""
        return importlib.import_module(f"{self.pack.__name__}.{name}")

    def checkpoint(self, name: str = "base.safetensors") -> Patched:
        model, clip, *_ = self.nodes.CheckpointLoaderSimple().load_checkpoint(name)
        return Patched(model, clip)

    def file(self, recipe: Recipe | str) -> str:
        """The name of a recipe's adapter in the loader's list."""
        known = RECIPES[recipe] if isinstance(recipe, str) else recipe
        return adapter_file(known)

    def stack(self, *entries: tuple[str, float, float]) -> Any:
        """A stack of (recipe or file, model strength, text-encoder strength), loaded one after the other."""
        stack = self.ops.Stack()
        for name, strength, strength_clip in entries:
            file = self.file(name) if name in RECIPES else name
            (stack,) = self.run("LycorisLoadAdapter", file, strength, strength_clip, stack)
        return stack

    def apply(
        self, on: Patched, stack: Any, *, mode: str = "merge", strict: bool = True, clip: bool = True
    ) -> Patched:
        """Run Apply LyCORIS Stack on a model and a text encoder.

        With `clip` off the node gets no CLIP.
        """
        return Patched(
            *self.run(
                "LycorisApplyStack",
                on.model,
                stack,
                mode=mode,
                strict=strict,
                clip=on.clip if clip else None,
            )
        )

    def unet(self, name: str, dtype: str = "default") -> Patched:
        """A diffusion model from a file of its own, as the host loads it."""
        return Patched(self.nodes.UNETLoader().load_unet(name, dtype)[0], None)

    def scheduled(self, stack: Any, curve: str, **options: Any) -> Any:
        return self.run("LycorisSchedule", stack, curve, **options)[0]

    def written(self, report: str) -> Path:
        """The file that the last line of a report names."""
        return self.base / report.splitlines()[-1]

    def sampled(self, model: Any, steps: int = 1, size: int = 64) -> torch.Tensor:
        """The latent that KSampler makes with a diffusion model alone, from a random conditioning."""
        draw = torch.Generator().manual_seed(3)
        condition = [[torch.randn(1, 77, 768, generator=draw), {}]]
        (empty,) = self.nodes.EmptyLatentImage().generate(size, size)
        sample = self.nodes.KSampler().sample
        (found,) = sample(model, SEED, steps, 1.0, "euler", "normal", condition, condition, empty)
        return found["samples"].clone()

    def latent(self, patched: Patched) -> torch.Tensor:
        """The latent that KSampler makes from a fixed prompt and seed."""
        encode = self.nodes.CLIPTextEncode().encode
        (positive,), (negative,) = encode(patched.clip, "a cat on a mat"), encode(patched.clip, "")
        (empty,) = self.nodes.EmptyLatentImage().generate(8 * SIZE, 8 * SIZE)
        (sampled,) = self.nodes.KSampler().sample(
            patched.model, SEED, STEPS, 4.0, "euler", "normal", positive, negative, empty
        )
        return sampled["samples"].clone()


def unload() -> None:
    """Let the host unload all models, which removes all patches and hooks."""
    import comfy.model_management

    comfy.model_management.unload_all_models()


def load(*patchers: Any) -> None:
    import comfy.model_management

    comfy.model_management.load_models_gpu(list(patchers))


def patcher(model: Any, device: str = "cpu") -> Any:
    """The host's patcher on a model, for a device."""
    from comfy.model_patcher import ModelPatcher

    return ModelPatcher(model, load_device=torch.device(device), offload_device=torch.device("cpu"))


def model_of(device: str = "cpu", **layers: Any) -> Patched:
    """A model of these layers under `diffusion_model`."""
    model = torch.nn.Module()
    model.diffusion_model = torch.nn.Module()
    for name, layer in layers.items():
        setattr(model.diffusion_model, name, layer)
    return Patched(patcher(model, device), None)


def clip_of(encoders: Any, tokenizer: Any = None) -> Any:
    """The host's CLIP around text encoders."""
    from comfy.sd import CLIP

    clip = CLIP(no_init=True)
    clip.cond_stage_model, clip.tokenizer, clip.patcher = encoders, tokenizer, patcher(encoders)
    clip.tokenizer_options = {}
    clip.layer_idx, clip.use_clip_schedule, clip.apply_hooks_to_conds = None, False, None
    return clip


def calculated(patches: Any, key: str, weight: torch.Tensor) -> torch.Tensor:
    """What the patches of a key make of a copy of a weight, called as the host does."""
    import comfy.lora

    return comfy.lora.calculate_weight(patches[key], weight.clone(), key)


def in_low_vram(patched: Patched, key: str) -> Any:
    """The patch of a weight as the host calls it in a forward pass where it is short of memory."""
    from comfy.model_patcher import LowVramPatch

    low = LowVramPatch(key, patched.patcher_of(key).patches)
    # Newer hosts move a patch's tensors to a buffer first.
    if hasattr(low, "memory_required"):
        low.prepare(torch.empty(low.memory_required(), dtype=torch.uint8), None)
    return low


def loaded_by_the_host(on: Patched, path: Path, strength: float = 1.0) -> Patched:
    """What the host's own loader makes of a model with a file."""
    import comfy.sd
    import comfy.utils

    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    return Patched(*comfy.sd.load_lora_for_models(on.model, on.clip, tensors, strength, strength))


def text(*rows: dict[str, Any]) -> str:
    """The rows of Load LoRA / LyCORIS (rows) as its input has them."""
    return json.dumps({"version": 1, "rows": rows})


def ask(path: str, body: str | None = None, language: str = "en", **query: str) -> tuple[int, str, bytes]:
    """The status, type and content that a route of the pack answers: to a POST with a body, else to a GET.

    `language` is that of the page.
    """
    from server import PromptServer

    async def answer() -> tuple[int, str, bytes]:
        app = web.Application()
        # The host adds the routes to its own application when it starts to listen.
        app.add_routes(
            [one for one in PromptServer.instance.routes if "/lycoris/" in getattr(one, "path", "")]
        )
        async with TestClient(TestServer(app)) as client:
            method = "GET" if body is None else "POST"
            spoken = {"Lycoris-Language": language}
            found = await client.request(method, path, params=query, data=body, headers=spoken)
            return found.status, found.content_type, await found.read()

    return asyncio.new_event_loop().run_until_complete(answer())


def told(**metadata: Any) -> Callable[[Path], None]:
    """A function that writes an adapter with these metadata to a path."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return lambda path: save_file(load_file(assets() / "loras" / "lora.safetensors"), path, texts)
