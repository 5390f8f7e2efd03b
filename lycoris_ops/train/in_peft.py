"""The layers of a network in the forms that PEFT has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..algorithms import Layer
from ..algorithms.axes import DIFF_B, SET_BIAS
from ..algorithms.boft_peft import BoftPeft
from ..algorithms.checks import a_layer, scale
from ..algorithms.full import DIFF, SET, Full
from ..algorithms.ia3 import Ia3
from ..algorithms.loha import Loha
from ..algorithms.lokr import Lokr
from ..algorithms.lora import Lora
from ..algorithms.norm import Norm
from ..algorithms.oftv2 import OftV2
from ..bypass.hook import values_of
from ..errors import LycorisError
from ..maths.divided import is_divided
from ..maths.tensors import compute_dtype
from ..messages import phrase
from ..modules.experts import expert_weights
from ..modules.named import named_modules
from ..modules.sites import Site
from ..peft.parameters import REPLACED, of_expert
from .member import layer_seed

BIASED = (Lora, OftV2, BoftPeft)
"""The kinds for which PEFT can also store the values of a bias, by its option `bias`."""


def path_in_peft(site: Site) -> str:
    """The path of a site in PEFT.

    The input projection of torch's attention has the path of the attention.
    """
    inside = isinstance(site.module, nn.MultiheadAttention)
    return site.path.rpartition(".")[0] if inside else site.path


def for_peft(layer: Layer, site: Site) -> Layer:
    """A site's layer in PEFT's form. Raises LycorisError where PEFT has none."""
    if isinstance(site.used_by, nn.MultiheadAttention):
        of_input = site.used_by is site.module
        if not of_input or not isinstance(layer, Lora) or layer.dora_scale is not None:
            raise LycorisError(
                "E-peft-attention-layer",
                key=site.path,
                got=a_layer(layer.algorithm)
                + f" {phrase('R-dora')}" * (of_input and isinstance(layer, Lora)),
            )
    _check_held(layer, site)
    if isinstance(layer, BIASED) and layer.diff_b is not None and site.has_bias:
        layer = _valued(layer, site)
    if isinstance(layer, Lora):
        # In PEFT an embedding's factors have names of their own.
        return layer.of_embedding() if site.kind == "embedding" else layer
    if isinstance(layer, Norm):
        layer = Full(diff=layer.w_norm, diff_b=layer.b_norm)
    if isinstance(layer, Full):
        # PEFT keeps the values of a whole module, not their change.
        return _valued(layer, site)
    return layer


def _check_held(layer: Layer, site: Site) -> None:
    """Raise LycorisError for a layer that PEFT refuses to load or, as OFT on an embedding, never uses."""
    groups = site.geometry.groups if site.geometry else 1
    for lacking, where, expected in (
        (
            site.transposed and not isinstance(layer, (Lora, Ia3)),
            "a weight that is stored transposed",
            "lora or ia3",
        ),
        (site.kind == "embedding" and not isinstance(layer, (Lora, Full)), "an embedding", "lora or full"),
        (groups > 1 and isinstance(layer, Lora), "a grouped convolution", "loha or lokr"),
        (
            len(site.shape) == 5 and isinstance(layer, (Loha, Lokr)),
            "a convolution of three dimensions",
            "lora",
        ),
    ):
        if lacking:
            raise LycorisError(
                "E-peft-kind-absent",
                key=site.path,
                where=where,
                got=a_layer(layer.algorithm),
                expected=expected,
            )


def on_modules(layers: Mapping[str, Layer], sites: Sequence[Site], model: nn.Module) -> set[str]:
    """The paths of the layers that PEFT can put on modules. It needs the others on parameters.

    Where a model has experts, PEFT takes some names of linear layers for names of experts, see `REPLACED`.
    """
    # Layers that are not in PEFT's form keep a name of their own where PEFT has another.
    paths = layers.keys() & {path_in_peft(site) for site in sites if not site.on_parameter}
    taken = {path for path in paths if isinstance(layers[path], Lora) and path.rpartition(".")[2] in REPLACED}
    mixture = taken and any(expert_weights(path, module) for path, module in named_modules(model))
    return paths - taken if mixture else paths


def all_experts(layers: Mapping[str, Layer], sites: Sequence[Site]) -> dict[str, Layer]:
    """The layers, completed: if one expert of a parameter has a layer, all get one of the same rank and
    scale.

    PEFT has one pair of factors for all experts. The added layers and components change nothing, but can be
    trained: only their `up` is zero.

    Raises LycorisError for experts with anything but the two factors of LoRA.
    """
    completed = dict(layers)
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        if site.expert is not None:
            stacks.setdefault(site.parameter, []).append(site)
    for parameter, own in stacks.items():
        by_number: dict[int, Lora] = {}
        for site in own:
            layer = layers[site.path]
            if not isinstance(layer, Lora) or layer.tensors().keys() != {"lora_up", "lora_down"}:
                raise LycorisError(
                    "E-peft-expert-kind", key=site.path, got=", ".join(sorted(layer.tensors()))
                )
            by_number[site.expert or 0] = layer
        rank = max(layer.rank or 1 for layer in by_number.values())
        scales = {scale(layer.alpha, layer.rank or 1) for layer in by_number.values()}
        common = scales.pop() if len(scales) == 1 else 1.0
        rows, columns = own[0].shape
        for number in range(len(getattr(own[0].module, own[0].weight))):
            path = of_expert(parameter, number)
            up = torch.zeros(rows, rank)
            down = Lora.init((rows, columns), rank, rank, seed=layer_seed(0, path)).lora_down
            assert down is not None
            if layer := by_number.get(number):
                assert layer.lora_up is not None and layer.lora_down is not None
                size = len(layer.lora_down)
                up[:, :size] = layer.lora_up * (scale(layer.alpha, size) / common)
                down[:size] = layer.lora_down
            completed[path] = Lora(lora_up=up, lora_down=down, alpha=common * rank)
    return completed


def _valued(layer: Layer, site: Site) -> Layer:
    """A layer with values of the weight or bias in place of differences from them."""
    held: dict[str, Tensor | None] = dict(layer.tensors())
    for changed, kept, name in ((DIFF, SET, site.weight), (DIFF_B, SET_BIAS, site.bias)):
        difference = held.get(changed)
        if difference is None:
            continue
        own = getattr(site.module, name)
        if is_divided(own):
            raise LycorisError("E-peft-divided-module", key=site.path, algorithm=layer.algorithm, name=name)
        held |= {kept: _own(site, name) + difference, changed: None}
    if held.get(SET) is not None and held.get(SET_BIAS) is None and site.has_bias:
        # PEFT reads all tensors of a whole module, also those that were not trained.
        held[SET_BIAS] = _own(site, site.bias)
    return layer.with_tensors(held)


def _own(site: Site, name: str) -> Tensor:
    """The model's own values of a weight or bias, in float32 or float64."""
    value = values_of(site.module, name, site.path).detach().cpu()
    return value.to(compute_dtype(value.dtype), copy=True)
