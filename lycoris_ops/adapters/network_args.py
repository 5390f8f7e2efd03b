"""What the metadata of kohya-ss and LyCORIS tells of how a file's layers are to be read.

`ss_network_args` is a JSON table of the options the network was made with, all values texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from torch import Tensor

ARGS = "ss_network_args"
SPLIT = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}
"""Ends of the names of Flux' fused layers, and how their rows are shared out."""


def network_options(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Options of the algorithms that the network's arguments hold: T-LoRA's `sig_type`.

    LyCORIS trains T-LoRA on the principal singular vectors unless told otherwise, and on a random
    matrix with `use_data_init` off: then nothing can rebuild it.
    """
    args = _args(metadata)
    if args.get("algo", "").lower() != "tlora" or args.get("use_data_init", "True").lower() == "false":
        return {}
    return {"sig_type": args.get("sig_type", "principal")}


def split_parts(metadata: Mapping[str, str], layer: str, rank: int | None) -> tuple[int, ...]:
    """The shares of a layer's rows that kohya's `split_qkv` trained apart; () for an ordinary layer.

    Its Flux network trains q, k, v (and the MLP of a single block) each with alpha / r, and writes them
    as one layer of rank 3 r or 4 r with a block-diagonal up and alpha unchanged: alpha / rank is then 3
    or 4 times too small. Source: networks/lora_flux.py of kohya-ss sd-scripts (Apache-2.0).
    """
    if _args(metadata).get("split_qkv", "").lower() != "true":
        return ()
    shares = next((shares for end, shares in SPLIT.items() if layer.endswith(end)), ())
    return shares if shares and rank and rank % len(shares) == 0 else ()


def is_block_diagonal(up: Tensor, shares: Sequence[int]) -> bool:
    """Whether `up` (O, n r) joins n layers, each in its share of the rows and its own r columns.

    A file that was resized afterwards is not, and its alpha is what it says.
    """
    unit, rank = up.shape[0] // sum(shares), up.shape[1] // len(shares)
    rest, first = up.clone(), 0
    for number, share in enumerate(shares):
        rest[first : first + share * unit, number * rank : (number + 1) * rank] = 0
        first += share * unit
    return not bool(rest.any())


def plain_args(metadata: Mapping[str, str], options: Mapping[str, str]) -> dict[str, str]:
    """The network's arguments for a file whose alphas are what they say, with options that it needs.

    Empty where they are so already. A `sig_type` means nothing but for T-LoRA, so that is said too.
    """
    args = _args(metadata)
    wanted = {key: value for key, value in args.items() if key != "split_qkv"} | dict(options)
    if "sig_type" in options:
        wanted["algo"] = "tlora"
    return {ARGS: json.dumps(wanted)} if wanted != args else {}


def _args(metadata: Mapping[str, str]) -> Mapping[str, str]:
    return _parsed(metadata[ARGS]) if ARGS in metadata else {}


@lru_cache(maxsize=64)
def _parsed(text: str) -> dict[str, str]:
    try:
        table: Any = json.loads(text)
    except (ValueError, RecursionError):
        # Other tools write free text here; it holds nothing that is needed.
        return {}
    if not isinstance(table, dict):
        return {}
    return {str(key): str(value) for key, value in cast("dict[Any, Any]", table).items()}
