"""The real host in this process, and short forms of what tests do with it."""

from __future__ import annotations

import importlib
import types
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tests.harness.adapters import RECIPES, Recipe
from tests.harness.assets import adapter_file
from tests.harness.launch import loaded_pack

STEPS, SIZE, SEED = 2, 16, 7


@dataclass(frozen=True)
class Patched:
    """A model and text encoder, as they come from a loader or from Apply."""

    model: Any
    clip: Any
    report: str = ""

    def patcher_of(self, key: str) -> Any:
        """The patcher that has a key: that of the diffusion model or that of the text encoder."""
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

    def written(self, report: str) -> Path:
        """The file that the last line of a report names."""
        return self.base / report.splitlines()[-1]

    def latent(self, patched: Patched) -> torch.Tensor:
        """The latent that KSampler makes from a fixed prompt and seed."""
        encode = self.nodes.CLIPTextEncode().encode
        (positive,), (negative,) = encode(patched.clip, "a cat on a mat"), encode(patched.clip, "")
        (empty,) = self.nodes.EmptyLatentImage().generate(8 * SIZE, 8 * SIZE)
        (sampled,) = self.nodes.KSampler().sample(
            patched.model, SEED, STEPS, 4.0, "euler", "normal", positive, negative, empty
        )
        return sampled["samples"].clone()
