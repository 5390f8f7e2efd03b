"""Adapters written by the software that users train with.

A recipe names the software and its options; `write_adapter` lets it write a file with random factors for the
default model of `base.write_base`. That the library computes of such files what the software does is for the
tests of conformance.

The writing libraries are imported on first use, so that naming a recipe costs nothing.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

# LyCORIS's fused kernels round to the precision of a GPU. It reads the variable once, when it is imported.
os.environ["LYCORIS_KERNEL_BACKEND"] = "torch"

Component = Literal["unet", "te"]
Algorithm = Literal["lora", "loha", "lokr"]


class LayerName(NamedTuple):
    """A layer by its path in diffusers' UNet ("unet") or transformers' text model ("te").

    Equal to the plain pair, as in ("te", "text_model.encoder.layers.0.self_attn.q_proj").
    """

    component: str
    path: str


@dataclass(frozen=True)
class Recipe:
    """What to write: `alpha` differs from `rank`, so that a lost or doubled scale shows."""

    name: str
    software: Literal["lycoris", "peft"]
    algorithm: Algorithm
    components: tuple[Component, ...]
    rank: int = 4
    alpha: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keywords of `lycoris.kohya.create_network` or of PEFT's config class."""


def _lycoris(name: str, algorithm: Algorithm, **options: Any) -> Recipe:
    """A LyCORIS recipe with its own alpha for convolutions with a kernel."""
    options = {"conv_dim": 4, "conv_alpha": 3} | options
    return Recipe(name, "lycoris", algorithm, ("unet", "te"), options=options)


def _peft(name: str, algorithm: Algorithm, component: Component, **options: Any) -> Recipe:
    """A PEFT recipe; alpha stands in `adapter_config.json` only."""
    return Recipe(name, "peft", algorithm, (component,), options=options)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _lycoris("lora", "lora"),
        _lycoris("lora_tucker", "lora", use_tucker=True),
        _lycoris("loha", "loha"),
        _lycoris("loha_tucker", "loha", use_tucker=True),
        _lycoris("lokr", "lokr", factor=8),
        _lycoris("lokr_full", "lokr", factor=8, full_matrix=True),
        _lycoris("lokr_both", "lokr", decompose_both=True),
        _lycoris("lokr_tucker", "lokr", factor=8, use_tucker=True),
        _peft("peft_unet_lora", "lora", "unet"),
        _peft(
            "peft_unet_patterns",
            "lora",
            "unet",
            use_rslora=True,
            rank_pattern={"to_q": 6},
            alpha_pattern={"conv1": 5},
        ),
        _peft("peft_te_lora", "lora", "te"),
        _peft("peft_loha", "loha", "unet"),
        _peft("peft_lokr", "lokr", "unet", decompose_both=True, use_effective_conv2d=True),
    )
}

LYCORIS_PRESET = """
enable_conv = true
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
text_encoder_target_name = []
"""
"""LyCORIS's preset "full" for SD1.5. Its own, in 4.1.3, lists diffusers' `TimestepEmbedding` as a
module as well as by name, and stops at the time embedding with "duplicated lora name"."""

PEFT_TARGETS: dict[Component, str] = {
    "unet": r"(down_blocks|mid_block|up_blocks)\..*\.(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2"
    r"|proj_in|proj_out|conv|conv1|conv2|conv_shortcut|time_emb_proj)",
    "te": r"text_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
}

SIZE = 0.125
"""Norm of each change relative to the weight it changes: visible, and far from blowing up."""

PROBES = 32
"""Random inputs from which the norm of a change is estimated."""


class Adapted(NamedTuple):
    """One layer with its adapter: what it computes, its weight's shape, the adapter's factors."""

    forward: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    factors: list[nn.Parameter]


Layers = dict[LayerName, Adapted]


class TextTree(nn.Module):
    """The text model under the name `text_model`, where transformers before 5 and all files have it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.text_model = getattr(model, "text_model", model)


def _unet() -> nn.Module:
    """diffusers' UNet in the architecture of `base.unet_layout()`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(320, 320),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def _text_model() -> nn.Module:
    """transformers' CLIP-L text model."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )
    return TextTree(CLIPTextModel(config))


def zero_tree(component: Component) -> nn.Module:
    """A module tree whose weights are float64 views of one zero, so that it takes no memory.

    Convolutions have their kernel as stride and no padding, so that an input gives one output.
    """
    with torch.device("meta"):
        tree = {"unet": _unet, "te": _text_model}[component]()
    for module in tree.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zero = torch.zeros((), dtype=torch.float64).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zero, requires_grad=False))
        if isinstance(module, nn.Conv2d):
            module.stride, module.padding = module.kernel_size, (0, 0)
    return tree


def _lycoris_network(recipe: Recipe) -> tuple[Any, Layers]:
    """A kohya network in float64 on zero trees, and its layers."""
    from lycoris.kohya import create_network

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    trees = {component: zero_tree(component) for component in recipe.components}
    with TemporaryDirectory() as folder:
        preset = Path(folder) / "preset.toml"
        preset.write_text(LYCORIS_PRESET)
        network = create_network(
            1.0,
            recipe.rank,
            recipe.alpha,
            None,
            trees.get("te"),
            trees.get("unet"),
            algo=recipe.algorithm,
            preset=str(preset),
            **recipe.options,
        )
    network.apply_to(trees.get("te"), trees.get("unet"), "te" in trees, "unet" in trees)
    network.double().eval().requires_grad_(False)
    names = {
        id(module): LayerName(component, path)
        for component, tree in trees.items()
        for path, module in tree.named_modules()
    }
    layers = {}
    for lora in network.loras:
        module = lora.org_module[0]
        shape = tuple(module.weight.shape)
        layers[names[id(module)]] = Adapted(lora.forward, shape, list(lora.parameters()))
    return network, layers


def _peft_config(recipe: Recipe) -> Any:
    """PEFT's config of the recipe's algorithm."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    config = {"lora": LoraConfig, "loha": LoHaConfig, "lokr": LoKrConfig}[recipe.algorithm]
    alpha = "lora_alpha" if recipe.algorithm == "lora" else "alpha"
    targets = PEFT_TARGETS[recipe.components[0]]
    return config(r=recipe.rank, target_modules=targets, **{alpha: recipe.alpha}, **recipe.options)


def _peft_layers(model: nn.Module, component: Component) -> Layers:
    """The adapted layers of a PEFT model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.eval().requires_grad_(False)
    layers = {}
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            shape = tuple(module.get_base_layer().weight.shape)
            factors = [p for n, p in module.named_parameters() if not n.startswith("base_layer.")]
            layers[LayerName(component, path)] = Adapted(module, shape, factors)
    return layers


def randomise(layers: Layers, seed: int) -> None:
    """Fill every factor with seeded noise, so that ||delta|| is about `SIZE` of a fan-in-scaled weight.

    A weight of variance 1 / fan_in has norm sqrt(O). E ||delta x||^2 over normal x is ||delta||^2. A change
    is linear in each of its n factors, so that each factor takes the n-th root of the correction. It is
    measured once for all layers of the same shapes, whose norms differ little.
    """
    generator = torch.Generator().manual_seed(seed)
    ratios: dict[tuple[tuple[int, ...], ...], float] = {}
    for forward, shape, factors in layers.values():
        for factor in factors:
            factor.normal_(generator=generator)
        shapes = (shape, *(tuple(factor.shape) for factor in factors))
        if shapes not in ratios:
            probes = torch.randn(PROBES, *shape[1:], generator=generator, dtype=torch.float64)
            norm = forward(probes).norm().item() / math.sqrt(PROBES)
            ratios[shapes] = (SIZE * math.sqrt(shape[0]) / norm) ** (1 / len(factors))
        for factor in factors:
            factor.mul_(ratios[shapes])


def _write_lycoris(recipe: Recipe, folder: Path, dtype: torch.dtype, seed: int) -> Path:
    """Write through LyCORIS, with the metadata that kohya's trainer hands to `save_weights`."""
    network, layers = _lycoris_network(recipe)
    randomise(layers, seed)
    arguments = {"algo": recipe.algorithm} | {k: str(v) for k, v in recipe.options.items()}
    metadata = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.alpha),
        "ss_network_args": json.dumps(arguments),
    }
    path = folder / f"{recipe.name}.safetensors"
    network.save_weights(str(path), dtype, metadata)
    return path


def _write_peft(recipe: Recipe, folder: Path, dtype: torch.dtype, seed: int) -> Path:
    """Write through PEFT into a folder of its own."""
    from peft import get_peft_model

    (component,) = recipe.components
    model = get_peft_model(zero_tree(component), _peft_config(recipe))
    layers = _peft_layers(model, component)
    randomise(layers, seed)
    for layer in layers.values():
        for factor in layer.factors:
            factor.data = factor.data.to(dtype)
    model.save_pretrained(folder / recipe.name)
    return folder / recipe.name / "adapter_model.safetensors"


@torch.no_grad()
def write_adapter(recipe: Recipe, folder: Path, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """Write `recipe` into `folder` and return the safetensors file.

    LyCORIS writes `<folder>/<name>.safetensors`; PEFT writes `<folder>/<name>/adapter_model.safetensors`
    with `adapter_config.json` beside it.
    """
    write = {"lycoris": _write_lycoris, "peft": _write_peft}[recipe.software]
    return write(recipe, folder, dtype, seed)
