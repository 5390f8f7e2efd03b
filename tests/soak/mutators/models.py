"""Changes of the checkpoint that an adapter is matched with and merged into."""

from __future__ import annotations

import json
import random
from functools import cache

import torch

from ..case import Case
from ..containers import packed
from ..seeds import CONFIG, Seed, base_of
from . import keys, raw, tables, values

MARKS = (
    *(b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{", b"[" * 3000, b"\xff\xfe", b'{"format": null}'),
    *(b'{"format": "float8_e4m3fn"}', b'{"format": "nvfp4"}', b'{"format": ["x"]}', b'{"format": "\\ud800"}'),
)
"""Contents of a tensor, or of metadata, that says how a weight is quantised."""
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64)


@cache
def _base(model: str) -> Seed:
    return Seed(f"base/{model}/safetensors", base_of(model), metadata={"format": "pt"}, model=model)


def _case(name: str, seed: Seed, blob: bytes) -> Case:
    adapter = f"adapter_model{seed.ending}"
    files = {adapter: seed.blob, "base.safetensors": blob}
    if seed.config is not None:
        files[CONFIG] = json.dumps(dict(seed.config)).encode()
    return Case(f"models_{name} under {seed.name}", files, adapter, seed.model, "base.safetensors", seed)


def _as_an_adapter(rng: random.Random, seed: Seed) -> Case | None:
    """A mutation of adapters, done to the checkpoint."""
    mutations = rng.choice((raw.MUTATIONS, tables.MUTATIONS[:6], keys.MUTATIONS, values.MUTATIONS))
    found = rng.choice(mutations)(rng, _base(seed.model))
    return None if found is None else _case(found.name, seed, found.files[found.adapter])


def _quantised(rng: random.Random, seed: Seed) -> Case:
    """Weights in few bits or other dtypes, with and without what belongs to them."""
    tensors, metadata = dict(base_of(seed.model)), {"format": "pt"}
    for key in [key for key in tensors if key.endswith(".weight") and rng.random() < 0.5]:
        layer = key.removesuffix(".weight")
        tensors[key] = tensors[key].to(rng.choice((*DTYPES, torch.int8, torch.uint8, torch.bool)))
        for name in ("weight_scale", "scale_weight", "comfy_quant", "weight_scale_2", "input_scale", "x"):
            if rng.random() < 0.3:
                mark = torch.tensor(list(rng.choice(MARKS)), dtype=torch.uint8)
                scale = torch.ones(rng.choice(((), (1,), (0,), (len(tensors[key]),), (2, 2))))
                tensors[f"{layer}.{name}"] = mark if name == "comfy_quant" else scale
    if rng.random() < 0.3:
        tensors[rng.choice(("scaled_fp8", "x.scaled_fp8", ".scaled_fp8"))] = torch.zeros(rng.choice((0, 2)))
    if rng.random() < 0.5:
        metadata["_quantization_metadata"] = rng.choice(MARKS).decode("latin-1")
    return _case("quantised", seed, packed(tensors, metadata))


def _dtypes(rng: random.Random, seed: Seed) -> Case:
    tensors = {
        key: tensor.to(rng.choice(DTYPES)) if rng.random() < 0.5 else tensor
        for key, tensor in base_of(seed.model).items()
    }
    return _case("dtypes", seed, packed(tensors))


MUTATIONS = [_as_an_adapter, _as_an_adapter, _as_an_adapter, _quantised, _dtypes]
