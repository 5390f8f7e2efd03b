"""The host's formats of quantised weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import comfy.ops
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS

KNOWN = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise", "convrot_w4a4")
"""The host's formats whose tensors in files are known here. Newer hosts have more (`asym_w4a8_int8`,
`awq_w4a16`, `svdquant_w4a4`), with further tensors and other packings."""
QUANT_FORMATS: dict[str, torch.dtype] = {
    name: QUANT_ALGOS[name]["storage_t"] for name in KNOWN if name in QUANT_ALGOS
}
"""Those of them that this host has, with the dtypes that their data is stored in."""


@cache
def _quantised_ops() -> Any:
    return comfy.ops.mixed_precision_ops(compute_dtype=torch.float32)


def quantised_layer(
    shape: Sequence[int], tensors: Mapping[str, torch.Tensor], mark: Mapping[str, Any]
) -> Any:
    """The host's own layer for a quantised weight (O, I), loaded from its tensors in a file.

    `mark` is the file's description of the format. The layer unpacks by `convert_weight(weight)` and packs by
    `set_weight(values, seed=, return_weight=True)`, as the host does when it patches.
    """
    rows, columns = shape
    layer = _quantised_ops().Linear(columns, rows, bias=False, device="cpu", dtype=torch.float32)
    # The layer reads its format from this tensor.
    said = torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8)
    layer.load_state_dict({**tensors, "comfy_quant": said})
    return layer


def rounding_seed(key: str) -> int:
    """The seed with which the host rounds the patched weight of a key."""
    return comfy.utils.string_to_seed(key)
