"""mlx-lm's adapters: `<path>.lora_a` (I, r) and `lora_b` (r, O), the scale in `adapter_config.json`.

delta = scale * (lora_a @ lora_b)^T, and for DoRA `m` (O,) is the norm of each output. Both factors are
transposed to those of LoRA; alpha is scale * r. On an embedding (V, D), known by its name, lora_a (V, r) and
lora_b (r, D) are LoRA's up and down: delta = scale * lora_a @ lora_b. Other tools' lower-case factors, (r, I)
and (O, r), are read by their shapes.
Source: `tuner/lora.py`, `tuner/dora.py` and `load_adapters` of mlx-lm 0.32 (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ...algorithms import Layer
from ...algorithms.axes import ALPHA
from ...algorithms.base import alpha_of
from ...algorithms.factored import DORA
from ...algorithms.lora import DOWN, UP, Lora
from ...errors import FileFormatError, LayerError
from ...files.tensor_file import DerivedFile, TensorFile, TensorInfo
from ...messages import phrase
from ...peft import ConfigFile
from ...peft.config import ConfiguredLayer, Module, RankedConfig, WantedRank, common
from ...peft.fields import Fields
from .base import Asked, Dialect, Encoded, Opened, Prefix, Write, by_any

A, B = ".lora_a", ".lora_b"
END = re.compile(r"\.(lora_a|lora_b|m)$")
EMBEDDING = re.compile(r"(?:^|\.)(?:embed|embed_(?:tokens|in|positions)|\w*embeddings?|w[tp]e)$")
"""The end of the name of an embedding in the models of mlx-lm."""
SUFFIXES = {"lora_a": "lora_down.weight", "lora_b": "lora_up.weight", "m": "dora_scale"}


def _opened(read: Opened) -> Opened:
    """The file with transposed factors and, where a configuration gives the scale, with alphas."""
    if read.dialect is not DIALECT:
        return read
    file = read.file
    names = [
        key[: -len(A)] for key in file.tensors if key.endswith(A) and f"{key[: -len(A)]}{B}" in file.tensors
    ]
    scale = _scale(read.config) if read.config else None
    tensors = dict(file.tensors)
    transposed: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
    added: dict[str, Tensor] = {}
    for name in names:
        if not _transposed(file, name, known=scale is not None):
            continue
        for key, other in ((name + A, name + B), (name + B, name + A)):
            source = other if EMBEDDING.search(name) else key
            whole = file.tensors[source]
            tensors[key] = TensorInfo(whole.dtype, whole.shape if source == other else whole.shape[::-1])
            transposed[key] = (source, _same if source == other else _turned)
        if scale is not None and (alpha := f"{name}.{ALPHA}") not in tensors:
            added[alpha] = torch.tensor(scale * file.tensors[name + A].shape[1], dtype=torch.float64)
            tensors[alpha] = TensorInfo.of(added[alpha])
    return replace(read, file=DerivedFile(file, tensors, transposed, added)) if transposed else read


def _turned(factor: Tensor) -> Tensor:
    return factor.T.contiguous()


def _same(factor: Tensor) -> Tensor:
    return factor


def _transposed(file: TensorFile, name: str, *, known: bool) -> bool:
    """Whether a layer's factors are (I, r) and (r, O), not (r, I) and (O, r) as in other tools.

    With a scale of mlx-lm's they are `known` to be.
    """
    a, b = file.tensors[name + A].shape, file.tensors[name + B].shape
    if len(a) == len(b) == 3 and (a[0], a[1]) == (b[0], b[2]):
        raise FileFormatError("E-mlx-joined-experts", file=file.path, key=name + A, a=list(a), b=list(b))
    if not len(a) == len(b) == 2 or a[1] != b[0]:
        return False
    if a[0] == b[1] and not known:
        raise FileFormatError("E-rank-axis-ambiguous", file=file.path, key=name + A, a=list(a), b=list(b))
    return True


def _scale(config: ConfigFile) -> float | None:
    """`scale` of mlx-lm's configuration; None where the configuration is another tool's."""
    configured: Any = config.table.get("lora_parameters")
    if not isinstance(configured, dict):
        return None
    fields = Fields(cast("dict[str, Any]", configured), config.path, "lora_parameters.")
    if "scale" not in fields:
        raise fields.error("scale", phrase("R-missing"), None, phrase("R-finite-number"))
    return fields.number("scale")


@dataclass(frozen=True, kw_only=True)
class WantedMlx(WantedRank):
    dora: bool


@dataclass(frozen=True, kw_only=True)
class MlxConfig(RankedConfig[WantedMlx]):
    """mlx-lm's configuration, which has one rank and one scale for all layers."""

    peft_type: ClassVar[str] = ""
    algorithm: ClassVar[type[Layer]] = Lora

    dora: bool = False

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedMlx]:
        tensors = layer.dump()
        tensors.pop(ALPHA, None)
        if not isinstance(layer, Lora) or not {DOWN, UP} <= tensors.keys() <= {DOWN, UP, DORA}:
            refused = sorted(tensors.keys() - {DOWN, UP, DORA})
            raise LayerError("E-dialect-plain-lora-only", got=", ".join(refused) or layer.algorithm)
        if layer.start is not None or tensors[DOWN].ndim != 2 or tensors[UP].ndim != 2:
            raise LayerError("E-dialect-linear-only", got=layer.start or str(list(tensors[DOWN].shape)))
        if DORA in tensors and layer.magnitude_axis() != 0:
            raise LayerError("E-dialect-without-input-dora", got=str(list(tensors[DORA].shape)))
        written = {"lora_a": _turned(tensors[DOWN]), "lora_b": _turned(tensors[UP])}
        if DORA in tensors:
            written["m"] = tensors[DORA].flatten()
        rank = len(tensors[DOWN])
        alpha = alpha_of(layer)
        return written, WantedMlx(r=rank, alpha=float(rank) if alpha is None else alpha, dora=DORA in tensors)

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedMlx]], module: Module) -> MlxConfig:
        return cls(
            r=common(members, "one rank for all layers", lambda wanted: wanted.r),
            alpha=common(members, "one scale for all layers", lambda wanted: wanted.alpha),
            dora=common(members, "DoRA in every layer, or in none", lambda wanted: wanted.dora),
            target_modules=sorted(member.path for member in members),
        )

    def table(self) -> dict[str, Any]:
        """The fields that mlx-lm reads: no number of blocks, but the whole paths of the layers."""
        parameters = {
            "rank": self.r,
            "scale": self.alpha / self.r,
            "dropout": 0.0,
            "keys": self.target_modules,
        }
        return {
            "fine_tune_type": "dora" if self.dora else "lora",
            "num_layers": -1,
            "lora_parameters": parameters,
        }


def _renamed(spoken: str | None, prefix: Prefix, path: str) -> str | None:
    return path if spoken in (None, "peft") else None


def _tensors(layer: Layer, asked: Asked) -> Encoded:
    tensors, wanted = MlxConfig.encoded(layer)
    if EMBEDDING.search(asked.name):
        tensors |= {"lora_a": _turned(tensors["lora_b"]), "lora_b": _turned(tensors["lora_a"])}
    return Encoded(asked.name, tensors, configured=(MlxConfig, wanted))


DIALECT = Dialect(
    name="mlx",
    prefixes=(),
    opened=_opened,
    recognises=by_any(re.compile(r"\.lora_a$")),
    rename=lambda key: END.sub(lambda match: f".{SUFFIXES[match[1]]}", key),
    file="adapters",
    write=Write(
        "",
        order=6,
        tensors=_tensors,
        renamed=_renamed,
        holds=lambda kind, takes_lokr: kind is Lora,
        configuration="beside",
        in_comfy="ComfyUI's own loader knows no names of mlx-lm",
    ),
)
