"""The control adapters of Black Forest Labs for Flux.

Names have no prefix, norms are stored as new values, not as changes, and `img_in` has more inputs than in
Flux itself.

Source: the files of FLUX.1-Depth-dev-lora and FLUX.1-Canny-dev-lora, as diffusers (Apache-2.0) converts
them in `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from ...algorithms.lora import RESHAPE
from ...files.tensor_file import DerivedFile, TensorInfo
from .base import Dialect, Opened

WIDER = "img_in"
NORM = re.compile(r"_norm\.scale$")


def _recognises(keys: Mapping[str, object]) -> bool:
    return f"{WIDER}.lora_A.weight" in keys and any(NORM.search(key) for key in keys)


def _opened(read: Opened) -> Opened:
    """The file with the shape to which `img_in` is enlarged."""
    file = read.file
    if read.dialect is not DIALECT or f"{WIDER}.lora_B.weight" not in file.tensors:
        return read
    outputs, inputs = (file.tensors[f"{WIDER}.lora_{one}.weight"].shape for one in "BA")
    key, shape = f"{WIDER}.{RESHAPE}", torch.tensor([*outputs[:1], *inputs[1:]])
    return replace(
        read, file=DerivedFile(file, {**file.tensors, key: TensorInfo.of(shape)}, {}, {key: shape})
    )


DIALECT = Dialect(
    name="bfl control",
    prefixes=(),
    opened=_opened,
    recognises=_recognises,
    rename=lambda key: NORM.sub("_norm.set_weight", key),
)
