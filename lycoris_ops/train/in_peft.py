"""The layers of a network in the forms that PEFT has for them."""

from __future__ import annotations

from torch import Tensor, nn

from ..algorithms import Layer
from ..algorithms.base import DIFF_B, SET_BIAS
from ..algorithms.boft_peft import BoftPeft
from ..algorithms.checks import a_layer
from ..algorithms.full import DIFF, SET, Full
from ..algorithms.lora import Lora
from ..algorithms.oftv2 import OftV2
from ..bypass.hook import values_of
from ..errors import LycorisError
from ..maths.tensors import compute_dtype, is_divided
from ..modules import Site

BIASED = (Lora, OftV2, BoftPeft)
"""The kinds with which PEFT holds the values of a bias beside an adapted weight, by `bias`."""


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
                "PEFT has no layer of this kind for torch's attention, or adds it twice",
                key=site.path,
                got=a_layer(layer.algorithm) + " with DoRA" * (of_input and isinstance(layer, Lora)),
                expected="lora on the projection of the input alone",
                hint="Save this layer in the dialect lycoris, and the others for PEFT by `include`",
            )
    if isinstance(layer, BIASED) and layer.diff_b is not None and site.has_bias:
        layer = _valued(layer, site)
    if isinstance(layer, Lora):
        # PEFT finds an embedding's factors by names of their own.
        return layer.of_embedding() if site.kind == "embedding" else layer
    if site.transposed:
        raise LycorisError(
            "PEFT has no layer of this kind for a weight that is stored transposed",
            key=site.path,
            got=a_layer(layer.algorithm),
            expected="lora",
            hint="Save it in the dialect lycoris, and go on from the file by a network",
        )
    if isinstance(layer, Full):
        # PEFT keeps the values of a whole module, not their change.
        return _valued(layer, site)
    return layer


def _valued(layer: Layer, site: Site) -> Layer:
    """A layer with values of the weight or bias in place of differences from them."""
    held: dict[str, Tensor | None] = dict(layer.tensors())
    for changed, kept, name in ((DIFF, SET, site.weight), (DIFF_B, SET_BIAS, site.bias)):
        difference = held.get(changed)
        if difference is None:
            continue
        own = getattr(site.module, name)
        if is_divided(own):
            raise LycorisError(
                "a module that is divided among processes cannot be written whole for PEFT",
                key=site.path,
                got=f"{layer.algorithm} on a divided {name}",
                expected="lora",
                hint="Save it in the dialect lycoris, or make LoRA of this module",
            )
        value = values_of(site.module, name, site.path).detach().cpu()
        held |= {kept: value.to(compute_dtype(value.dtype)) + difference, changed: None}
    return layer.with_tensors(held)
