"""Files of tensors, written and read by hand, so that a fault of the library's own code shows.

Source of the layouts: the format description of the safetensors project, and `torch.save`.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

METADATA = "__metadata__"
NAMES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The common dtypes of torch, by their names in safetensors files."""
OF_DTYPE = {dtype: name for name, dtype in NAMES.items()}


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, row by row."""
    # A copy, because a tensor of one value counts as contiguous whatever its stride is.
    flat = tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def described(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], bytes]:
    """The header, as a table, and the data of a safetensors file with these tensors."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    data = b""
    for name, tensor in tensors.items():
        values = raw(tensor)
        header[name] = {
            "dtype": OF_DTYPE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    return header, data


def joined(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    """A safetensors file made of a header and data.

    `header` is a table, or the header's text or bytes. `length` is written as the header's length in place of
    the true one.
    """
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """A safetensors file of these tensors."""
    return joined(*described(tensors, metadata))


def apart(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, as a table, and the data of a safetensors file."""
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def pickled(content: object) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def read(blob: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, except those whose dtype is not in `NAMES`."""
    header, data = apart(blob)
    found: dict[str, Tensor] = {}
    for name, entry in header.items():
        if name == METADATA or entry["dtype"] not in NAMES:
            continue
        start, stop = entry["data_offsets"]
        values = torch.frombuffer(bytearray(data[start:stop]), dtype=torch.uint8) if stop > start else None
        flat = torch.empty(0, dtype=torch.uint8) if values is None else values
        found[name] = flat.view(NAMES[entry["dtype"]]).reshape(entry["shape"])
    return found
