"""kohya-ss sd-scripts and musubi-tuner. Their suffixes are the algorithms' own, but for a bias."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.axes import ALPHA
from ...algorithms.lora import BIAS, UP
from ...algorithms.oft import BLOCKS, Oft
from ..layouts import Layers, Names
from ..network_args import args_of
from . import plain
from .base import Asked, Dialect, Encoded, Groups, Held, Prefix, Write
from .pipelines import UNET, Components

ENCODERS = {"clip_l": 1, "clip_h": 1, "clip_g": 2, "t5xxl": 3}
"""kohya-ss numbers encoders by their kind: T5 is the third in Flux too, which has no second."""
LDM_PATH = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.")


NUMBERED = {f"{BLOCKS}.{number}": str(number) for number in range(16)}
"""The suffixes of the parts of OFT of a fused layer, with the parts' numbers. Flux' layers have up to 4."""
SPLIT = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}
"""Ends of the names of Flux' fused layers, with the relative numbers of rows of their parts: q, k and v, and
in `linear1` the MLP."""


def _restated(held: Held) -> Mapping[str, Tensor]:
    """The corrected alpha of a layer whose parts were trained apart, with kohya's `split_qkv`.

    With it kohya-ss' network for Flux trains q, k, v (and the MLP of a single block) each at the scale
    alpha / r. It writes them as one layer of rank 3 r or 4 r, with a block-diagonal up and an unchanged
    alpha, so that alpha / rank of that layer is 3 or 4 times too small.
    Source: networks/lora_flux.py of kohya-ss sd-scripts (Apache-2.0).
    """
    up, alpha = held.tensors.get(UP), held.tensors.get(ALPHA)
    shares = next((shares for end, shares in SPLIT.items() if held.name.endswith(end)), ())
    if up is None or alpha is None or not shares or up.shape[1] % len(shares):
        return {}
    if args_of(held.metadata).get("split_qkv", "").lower() != "true" or not _is_block_diagonal(up, shares):
        return {}
    return {ALPHA: alpha.double() * len(shares)}


def _is_block_diagonal(up: Tensor, shares: Sequence[int]) -> bool:
    """Whether `up` (O, n r) is zero outside of n blocks, each of its share of the rows and of r columns.

    Once a tool has changed the rank of the file, `up` has no such blocks, and alpha is right as it is.
    """
    unit, rank = up.shape[0] // sum(shares), up.shape[1] // len(shares)
    rest, first = up.clone(), 0
    for number, share in enumerate(shares):
        rest[first : first + share * unit, number * rank : (number + 1) * rank] = 0
        first += share * unit
    return not bool(rest.any())


def _by_number(grouped: Groups) -> Groups:
    """Make each numbered part of a fused layer in kohya-ss' OFT a layer by itself.

    For a fused layer of Flux the file holds `oft_blocks.0`, `oft_blocks.1`, ...; each rotates one part of the
    rows. All parts share the layer's alpha. They are named `<layer>.0`, `<layer>.1`, ...; a single part keeps
    the layer's name. A layer stays as it is if it also has blocks without a number, or if a part would get
    another layer's name: no algorithm reads these.
    Source: networks/oft_flux.py of kohya-ss sd-scripts (Apache-2.0).
    """
    if all(map(NUMBERED.keys().isdisjoint, grouped.values())):
        return grouped
    parted: Groups = {}
    for name, keys in grouped.items():
        numbers = {suffix: NUMBERED[suffix] for suffix in keys if suffix in NUMBERED}
        names = {suffix: f"{name}.{n}" if len(numbers) > 1 else name for suffix, n in numbers.items()}
        shared = {suffix: key for suffix, key in keys.items() if suffix not in numbers}
        if (
            not numbers
            or BLOCKS in shared
            or any(numbered in grouped for numbered in {*names.values()} - {name})
        ):
            parted[name] = keys
            continue
        for suffix, own in names.items():
            parted[own] = {**shared, BLOCKS: keys[suffix]}
    return parted


def _prefix(component: str, components: Components) -> str:
    prior = "prior_" if components.layout.component == "prior" else ""
    if component == UNET:
        return f"lora_{prior}unet_"
    # kohya-ss does not number a model's only text encoder.
    number = "" if len(components.encoders) == 1 else ENCODERS.get(component, components.number(component))
    return f"lora_{prior}te{number}_"


def _layout(layers: Layers) -> Names:
    known = layers.model is not None and layers.model.layout.kohya_has_diffusers
    return layers.diffusers() if known else layers.own()


def _renamed(spoken: str | None, prefix: Prefix, path: str) -> str | None:
    # The numbers of text encoders depend on the model, and so does a UNet's layout.
    if spoken != "comfy" or prefix.component != UNET or LDM_PATH.match(path):
        return None
    return "lora_unet_" + path.replace(".", "_")


def _tensors(layer: Layer, asked: Asked) -> Encoded:
    encoded = plain.encode(layer, asked)
    match = re.fullmatch(r"(.+)\.(\d+)", asked.name)
    if match is None or not isinstance(layer, Oft):
        return encoded
    # kohya-ss numbers the parts of a fused layer in the suffix, not in the name: see `_by_number`.
    numbered = {f"{BLOCKS}.{match[2]}" if s == BLOCKS else s: tensor for s, tensor in encoded.tensors.items()}
    return replace(encoded, name=match[1], tensors=numbered)


DIALECT = Dialect(
    name="kohya",
    prefixes=(
        Prefix("lora_unet_", "unet"),
        # VideoX-Fun (Wan Fun) joins with one more underscore.
        Prefix("lora_unet__", "unet"),
        Prefix("lora_te_", "te", 0),
        Prefix("lora_te1_", "te", 1),
        Prefix("lora_te2_", "te", 2),
        Prefix("lora_te3_", "te", 3),
        # Stable Cascade.
        Prefix("lora_prior_unet_", "unet"),
        Prefix("lora_prior_te_", "te", 0),
        # OFT networks have prefixes of their own.
        Prefix("oft_unet_", "unet"),
        Prefix("oft_te_", "te", 0),
        Prefix("oft_te1_", "te", 1),
        Prefix("oft_te2_", "te", 2),
    ),
    suffixes={"lora_up.bias": BIAS, **dict(zip(NUMBERED, NUMBERED, strict=True))},
    regrouped=_by_number,
    restated=_restated,
    write=Write(
        _prefix,
        order=1,
        tensors=_tensors,
        layout=_layout,
        flat=True,
        renamed=_renamed,
        embeddings=True,
        hashes=True,
    ),
)
