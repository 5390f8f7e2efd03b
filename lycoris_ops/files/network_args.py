"""What the metadata of kohya-ss and LyCORIS tells of how a file's layers are to be read.

`ss_network_args` is a JSON table of the options the network was made with, all values texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

ARGS, DIM = "ss_network_args", "ss_network_dim"
SPLIT_ENDS = ("_qkv", "_linear1", ".qkv", ".linear1")


def network_options(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Options of the algorithms that the network's arguments hold: T-LoRA's `sig_type`.

    LyCORIS trains T-LoRA on the principal singular vectors unless told otherwise, and on a random
    matrix with `use_data_init` off: then nothing can rebuild it.
    """
    args = _args(metadata)
    if args.get("algo", "").lower() != "tlora" or args.get("use_data_init", "True").lower() == "false":
        return {}
    return {"sig_type": args.get("sig_type", "principal")}


def split_qkv_parts(metadata: Mapping[str, str], layer: str, rank: int | None) -> int | None:
    """How many parts kohya's `split_qkv` joined into a layer, None where it is an ordinary one.

    Its Flux network trains q, k, v (and the MLP of a single block) apart, each with alpha / r, and
    writes them as one layer of rank 3 r or 4 r with a block-diagonal up and alpha unchanged: alpha /
    rank is then 3 or 4 times too small. Source: networks/lora_flux.py of kohya-ss sd-scripts
    (Apache-2.0).
    """
    if _args(metadata).get("split_qkv", "").lower() != "true" or not layer.endswith(SPLIT_ENDS):
        return None
    dim = metadata.get(DIM, "")
    if rank is None or not dim.isdecimal() or int(dim) == 0 or rank % int(dim):
        return None
    parts = rank // int(dim)
    return parts if parts in (3, 4) else None


def _args(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        table: Any = json.loads(metadata.get(ARGS, "{}"))
    except ValueError:
        # Other tools write free text here; it holds nothing that is needed.
        return {}
    if not isinstance(table, dict):
        return {}
    return {str(key): str(value) for key, value in cast("dict[Any, Any]", table).items()}
