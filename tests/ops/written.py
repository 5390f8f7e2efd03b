"""Adapters in files and in memory, and what they change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import lycoris_ops as lyc

Shapes = Mapping[str, tuple[int, ...]]
Layers = Mapping[str, Mapping[str, Tensor]]
"""For each layer, by its name: its tensors by their suffixes."""


def adapter(
    folder: Path, layers: Layers, name: str = "source", metadata: dict[str, str] | None = None
) -> lyc.Adapter:
    """An adapter from a file with these layers."""
    tensors = {f"{layer}.{suffix}": t for layer, found in layers.items() for suffix, t in found.items()}
    return read(folder, tensors, name, metadata)


def read(
    folder: Path, tensors: Mapping[str, Tensor], name: str = "x", metadata: dict[str, str] | None = None
) -> lyc.Adapter:
    """An adapter from a file with these tensors by their keys."""
    path = folder / f"{name}.safetensors"
    # The safetensors package writes contiguous tensors only.
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return lyc.load_adapter(path)


def configured(folder: Path, tensors: Mapping[str, Tensor], config: Any) -> lyc.Adapter:
    """An adapter from a file in this folder, beside PEFT's configuration, given as a table or as text."""
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return read(folder, tensors, "adapter_model")


def in_memory(name: str, layers: Mapping[str, lyc.Layer]) -> lyc.Adapter:
    """An adapter of these layers; their names are given without kohya's prefix."""
    return lyc.Adapter.of({f"lora_unet_{path}": layer for path, layer in layers.items()}, name=name)


def change(layer: lyc.Layer, shape: tuple[int, ...]) -> Tensor:
    """What a layer adds to a weight of zeros, in float64."""
    return layer.delta(torch.zeros(shape, dtype=torch.float64))


def error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference as a share of what is wanted."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def close(
    found: Tensor | Mapping[str, Tensor], wanted: Tensor | Mapping[str, Tensor], tolerance: float = 1e-6
) -> None:
    """Assert that changes in float64 are the wanted ones, up to the rounding of float32 factors."""
    wanted = wanted.double() if isinstance(wanted, Tensor) else {key: t.double() for key, t in wanted.items()}
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def resolved(found: lyc.Adapter, model: Shapes) -> lyc.Resolution:
    return lyc.resolve(lyc.Stack([lyc.Entry(found)]), model)


def patched(found: lyc.Adapter | lyc.Stack, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Patched copies of those weights and biases of a model that an adapter or a stack changes.

    Every layer must be applied, or repeat another.
    """
    stack = found if isinstance(found, lyc.Stack) else lyc.Stack([lyc.Entry(found)])
    resolution = lyc.resolve(stack, {key: tuple(weight.shape) for key, weight in weights.items()})
    resolution.check(strict=True)
    return {
        key: lyc.patch_(
            weights[key].detach().clone(),
            [(match.read(entry.adapter), match.strength) for entry, match in pairs],
        )
        for key, pairs in resolution.pairs().items()
    }


def changes(found: lyc.Adapter, model: Shapes) -> dict[str, Tensor]:
    """The change of each weight and bias that an adapter changes, in float64.

    The weights are random, and the same at every call. Where a weight is enlarged, each new value
    counts in whole as a change.
    """
    weights = {
        key: torch.randn(shape, generator=torch.Generator().manual_seed(len(key))).double()
        for key, shape in model.items()
    }
    made = patched(found, weights)
    for key, weight in made.items():
        weight[tuple(slice(size) for size in model[key])] -= weights[key]
    return made
