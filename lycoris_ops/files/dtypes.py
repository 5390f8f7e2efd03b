"""The dtypes of tensors in files, by the names of the safetensors format."""

from __future__ import annotations

import torch

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    **({"F8_E8M0": torch.float8_e8m0fnu} if hasattr(torch, "float8_e8m0fnu") else {}),  # torch 2.7
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes that can be read into tensors: safetensors' names, each with torch's dtype."""

DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
"""The reverse of `DTYPES`: torch's dtypes, each with its name in the safetensors format."""

ITEM_BITS: dict[str, int] = {
    **{name: 8 * dtype.itemsize for name, dtype in DTYPES.items()},
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "C64": 64,
    # Listed here too: with an older torch `DTYPES` lacks it.
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
"""Bits per element of every dtype that a file may hold. A dtype that `DTYPES` lacks can be copied as bytes,
but not read into a tensor."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes that weights and factors can be written in. Quantised dtypes are not among them, because
quantised values cannot be read without their scales."""

FLOAT8 = ("F8_E4M3", "F8_E5M2")
"""The 8-bit floats. Their values are plain numbers unless the file has a scale for them."""

WRITABLE: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtypes that users can choose for the factors or weights of a written file, by torch's names."""


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name without the package, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")
