"""Options for reading the layers of a file, from the metadata of kohya-ss and LyCORIS.

`ss_network_args` is a JSON table of the options that the network was made with. All its values are texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from ..files.json_text import parse_json

ARGS = "ss_network_args"


def network_options(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The options of the algorithm that the metadata state: only T-LoRA's `sig_type` is read.

    By default LyCORIS starts T-LoRA from the principal singular vectors of the base weight. With
    `use_data_init` off it starts from a random matrix, which cannot be rebuilt, so the result is empty.
    """
    args = args_of(metadata)
    if args.get("algo", "").lower() != "tlora" or args.get("use_data_init", "True").lower() == "false":
        return {}
    return {"sig_type": args.get("sig_type", "principal")}


def plain_args(metadata: Mapping[str, str], options: Mapping[str, str]) -> dict[str, str]:
    """The metadata entry of the network's arguments, for a file whose alphas are corrected already.

    It has the `options` of layers and the arguments in `metadata`, without `split_qkv`, which would have the
    alphas corrected again. Empty if that changes nothing.
    """
    args = args_of(metadata)
    wanted = {key: value for key, value in args.items() if key != "split_qkv"} | dict(options)
    if "sig_type" in options:
        # `network_options` reads it for this algorithm only.
        wanted["algo"] = "tlora"
    return {ARGS: json.dumps(wanted)} if wanted != args else {}


def args_of(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The network's arguments by name; {} where the metadata have none."""
    return _parsed(metadata[ARGS]) if ARGS in metadata else {}


@lru_cache(maxsize=64)
def _parsed(text: str) -> dict[str, str]:
    try:
        table: Any = parse_json(text)
    except ValueError:
        # Other tools write free text here, which is not needed.
        return {}
    if not isinstance(table, dict):
        return {}
    return {str(key): str(value) for key, value in cast("dict[Any, Any]", table).items()}
