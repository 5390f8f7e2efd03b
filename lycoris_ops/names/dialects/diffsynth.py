"""DiffSynth-Studio's adapters for MiniMax-H3, which order the rows of query, key and value head by head.

DiffSynth-Studio trains the original weights, in which the rows of `attn.qkv_proj` are ordered
[head 0: q k v, head 1: q k v, ...]. All other tools, and the host, have [all of q; all of k; all of v]. The
shapes are the same. Such a file is recognised by names of this model with PEFT's word `default` in them: no
other tool for MiniMax-H3 writes it.

Source: diffusers (Apache-2.0), `_convert_non_diffusers_minimax_h3_lora_to_diffusers` in
`loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ...errors import LayerError
from ...files.tensor_file import DerivedFile
from .base import Dialect, Opened

ENDS = (".lora_A.default.weight", ".lora_B.default.weight")
BLOCK = r"(?:.*\.)?(?:token_refiner\.)?blocks\.\d+\."
QKV = re.compile(rf"{BLOCK}attn\.qkv_proj$")
LAYER = re.compile(
    rf"{BLOCK}(?:attn\.(?:qkv|out)_proj|mlp\.fc[12]|adaln_proj\.linear)$"
    r"|(?:.*\.)?(?:(?:video|audio)_patch_proj|condition_proj|time_embedder\.proj_(?:in|out))$"
    r"|(?:.*\.)?final_layer\.(?:adaln_proj\.linear|(?:video|audio)_out)$"
)
"""The linear layers of MiniMax-H3, by their original names, perhaps after a prefix."""
HEAD = 128
"""Rows of one head in each of query, key and value, in every published size of the model."""


def _recognises(keys: Mapping[str, object]) -> bool:
    layers = {key[: -len(ENDS[0])] for key in keys if key.endswith(ENDS)}
    return any(map(QKV.match, layers)) and all(map(LAYER.match, layers))


def _opened(read: Opened) -> Opened:
    """The file with the rows of query, key and value in the host's order."""
    file = read.file
    if read.dialect is not DIALECT:
        return read
    ups = [key for key in file.tensors if key.endswith(ENDS[1]) and QKV.match(key[: -len(ENDS[1])])]
    for key in ups:
        shape = file.tensors[key].shape
        if shape and shape[0] % (3 * HEAD):
            raise LayerError("E-heads-not-whole", file=file.path, key=key, shape=shape[0], head=HEAD)
    return replace(read, file=DerivedFile(file, file.tensors, {key: (key, _by_projection) for key in ups}))


def _by_projection(up: Tensor) -> Tensor:
    """Rows [head 0: q k v, head 1: q k v, ...] as [all of q; all of k; all of v]."""
    return up.reshape(-1, 3, HEAD, *up.shape[1:]).transpose(0, 1).reshape(up.shape)


DIALECT = Dialect(name="diffsynth", prefixes=(), opened=_opened, recognises=_recognises)
