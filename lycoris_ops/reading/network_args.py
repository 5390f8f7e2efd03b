"""What the metadata of kohya-ss and LyCORIS say about reading the layers of a file.

`ss_network_args` is a JSON table of the options that the network was made with. All of its values are texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from torch import Tensor

from ..files.json_text import parse_json

ARGS = "ss_network_args"
SPLIT = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}
"""Ends of the names of Flux' fused layers, with the relative heights of the parts of their rows: q, k and v,
and in `linear1` the MLP."""


def network_options(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Options of the algorithms that the metadata state, which is T-LoRA's `sig_type` alone.

    LyCORIS starts T-LoRA from the principal singular vectors of the base weight unless told otherwise. With
    `use_data_init` off it starts from a random matrix, which nothing can rebuild, so the result is empty.
    """
    args = _args(metadata)
    if args.get("algo", "").lower() != "tlora" or args.get("use_data_init", "True").lower() == "false":
        return {}
    return {"sig_type": args.get("sig_type", "principal")}


def split_parts(metadata: Mapping[str, str], layer: str, rank: int | None) -> tuple[int, ...]:
    """Relative heights of the parts of a layer that kohya's `split_qkv` trained apart, or () without it.

    With it kohya-ss' network for Flux trains q, k, v (and the MLP of a single block) each at the scale
    alpha / r. It writes them as one layer of rank 3 r or 4 r, with a block-diagonal up and with alpha
    unchanged, so that alpha / rank of that layer is 3 or 4 times too small.
    Source: networks/lora_flux.py of kohya-ss sd-scripts (Apache-2.0).
    """
    if _args(metadata).get("split_qkv", "").lower() != "true":
        return ()
    shares = next((shares for end, shares in SPLIT.items() if layer.endswith(end)), ())
    return shares if shares and rank and rank % len(shares) == 0 else ()


def is_block_diagonal(up: Tensor, shares: Sequence[int]) -> bool:
    """Whether `up` (O, n r) is zero outside of n blocks, each of its share of the rows and of r columns.

    Once a tool has changed the rank of the file, `up` has no such blocks, and alpha is right as it is.
    """
    unit, rank = up.shape[0] // sum(shares), up.shape[1] // len(shares)
    rest, first = up.clone(), 0
    for number, share in enumerate(shares):
        rest[first : first + share * unit, number * rank : (number + 1) * rank] = 0
        first += share * unit
    return not bool(rest.any())


def plain_args(metadata: Mapping[str, str], options: Mapping[str, str]) -> dict[str, str]:
    """The metadata entry of the network's arguments for a file in which no alpha needs a correction.

    The arguments are those of `metadata` without `split_qkv`, and the `options` that layers need. The result
    is empty where nothing changes.
    """
    args = _args(metadata)
    wanted = {key: value for key, value in args.items() if key != "split_qkv"} | dict(options)
    if "sig_type" in options:
        # `network_options` reads it for this algorithm only.
        wanted["algo"] = "tlora"
    return {ARGS: json.dumps(wanted)} if wanted != args else {}


def _args(metadata: Mapping[str, str]) -> Mapping[str, str]:
    return _parsed(metadata[ARGS]) if ARGS in metadata else {}


@lru_cache(maxsize=64)
def _parsed(text: str) -> dict[str, str]:
    try:
        table: Any = parse_json(text)
    except ValueError:
        # Other tools write free text here, and nothing in it is needed.
        return {}
    if not isinstance(table, dict):
        return {}
    return {str(key): str(value) for key, value in cast("dict[Any, Any]", table).items()}
