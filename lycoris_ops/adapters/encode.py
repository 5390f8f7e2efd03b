"""What each dialect can hold of a layer, and the tensors and configuration that it is written as.

kohya, comfy and lycoris hold every kind, each tensor under the algorithms' own suffix. diffusers holds LoRA
alone, its scale in the up factor. PEFT holds the kinds that its classes can make again from a
configuration, which also has the scale.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import ALPHA, DIFF_B, scale, shapes_of
from ..algorithms.boft_peft import BoftPeft
from ..algorithms.factored import DORA, SPARSE
from ..algorithms.ia3 import Ia3
from ..algorithms.loha import Loha
from ..algorithms.lokr import Lokr
from ..algorithms.lora import BIAS, DOWN, EMBEDDING_UP, MID, RESHAPE, UP, Lora
from ..algorithms.oft import BLOCKS, Oft
from ..algorithms.oftv2 import SCALED, OftV2
from ..errors import LayerError
from ..layers.fuse import times
from ..maths.dora import magnitude_axis
from ..maths.shapes import factorization
from ..names.written import Written

PEFT_SUFFIXES = {
    DOWN: "lora_A.weight",
    UP: "lora_B.weight",
    DORA: "lora_magnitude_vector",
}
"""What PEFT and diffusers call the tensors of a LoRA layer."""
OPTIONAL = ("dora",)
"""Options that only choose how to compute with the very same tensors."""
PEFT_TYPES: dict[type[Layer], str] = {
    Lora: "LORA",
    Loha: "LOHA",
    Lokr: "LOKR",
    OftV2: "OFT",
    BoftPeft: "BOFT",
    Ia3: "IA3",
}
OFT_EPS = 6e-5
"""PEFT's default, which counts only with coft."""
SERIES_SINCE = "0.18.0"
"""The release from which on PEFT's OFT counts the last term of its series once."""


@dataclass(frozen=True)
class Encoded:
    """A layer as a dialect writes it."""

    name: str
    """What stands before the suffixes: the layer's name, but where several share one."""
    tensors: Mapping[str, Tensor]
    """By the suffix that is written."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What PEFT's configuration must say of this layer."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the file's metadata must say of it."""


def encode(layer: Layer, options: Mapping[str, Any], dialect: Written, name: str) -> Encoded:
    """The layer in a dialect. Raises LayerError where the dialect cannot hold it.

    `options` are those that no tensor tells, as in `LayerInfo`.
    """
    if dialect == "diffusers":
        return _diffusers(layer, name)
    if dialect == "peft":
        return _peft(layer, name)
    return _own(layer, options, name, numbered=dialect == "kohya")


def _own(layer: Layer, options: Mapping[str, Any], name: str, *, numbered: bool) -> Encoded:
    """Every kind, as the algorithm itself names its tensors."""
    said: dict[str, Any] = {}
    defaults = {field.name: field.default for field in dataclasses.fields(layer)}
    for option, value in options.items():
        if option in OPTIONAL or value == defaults[option] or _is_told(layer, option):
            continue
        if option != "sig_type":
            raise _cannot(f"has no place for {option}", f"{option} = {value}")
        said[option] = value
    tensors = layer.dump()
    tensors.pop(ALPHA, None)
    alpha = alpha_of(layer)
    if alpha is not None:
        tensors[ALPHA] = torch.tensor(alpha, dtype=torch.float32)
    if DORA in tensors:
        tensors[DORA] = _shaped(layer, tensors[DORA])
    if numbered and isinstance(layer, Oft) and (match := re.fullmatch(r"(.+)\.(\d+)", name)):
        # kohya-ss numbers the parts of a fused layer in its suffix: see `grouping`.
        name = match[1]
        tensors[f"{BLOCKS}.{match[2]}"] = tensors.pop(BLOCKS)
    return Encoded(name, tensors, options=said)


def _is_told(layer: Layer, option: str) -> bool:
    """Whether the shape of a tensor says it too: which side a two-dimensional ia3_l is for."""
    return option == "feedforward" and (
        not isinstance(layer, Ia3) or layer.ia3_l is None or layer.ia3_l.ndim == 2
    )


def alpha_of(layer: Layer) -> float | None:
    """The alpha for which alpha / rank is the layer's scale; None where it has none to write.

    A LoKr layer of two full factors has the scale 1 whatever alpha says, but readers expect one.
    """
    if not layer.scaled_by_alpha:
        return layer.alpha
    rank = layer.rank
    if rank is None:
        return layer.alpha if layer.alpha is not None and math.isfinite(layer.alpha) else 1.0
    return scale(layer.alpha, rank) * rank


def _shaped(layer: Layer, magnitude: Tensor) -> Tensor:
    """A DoRA magnitude in as many dimensions as the weight, for readers that take one for inputs."""
    shape = _shape(layer)
    if magnitude.ndim > 1 or magnitude_axis(magnitude.shape, shape) != 0:
        return magnitude
    return magnitude.reshape(-1, *(1 for _ in shape[1:]))


def _shape(layer: Layer) -> tuple[int, ...]:
    return tuple(size or 1 for size in layer.shape(shapes_of(layer.dump())))


def _cannot(why: str, got: str) -> LayerError:
    """Without the dialect's name: the caller knows it, and which others can."""
    return LayerError(why, got=got)


def _diffusers(layer: Layer, name: str) -> Encoded:
    """LoRA with its scale in a factor, for readers that know no alpha.

    In `lora_B` where its dtype holds the product exactly, else in `lora_A` where that does, else in
    `lora_B` in float32.
    """
    tensors = _lora(layer)
    if EMBEDDING_UP in tensors:
        raise _cannot("holds no LoRA of an embedding", EMBEDDING_UP)
    assert isinstance(layer, Lora) and layer.lora_up is not None and layer.lora_down is not None
    rank = int(layer.lora_up.shape[1])
    factor = scale(layer.alpha, rank)
    up, down = times(layer.lora_up, factor), layer.lora_down
    if up.dtype != layer.lora_up.dtype and (scaled := times(down, factor)).dtype == down.dtype:
        up, down = layer.lora_up, scaled
    written = {**tensors, PEFT_SUFFIXES[UP]: up, PEFT_SUFFIXES[DOWN]: down}
    if BIAS in written:
        written[BIAS] = times(written[BIAS], factor)
    return Encoded(name, written, {"peft_type": "LORA", "r": rank, "alpha": float(rank), **_of_lora(written)})


def _peft(layer: Layer, name: str) -> Encoded:
    kind = PEFT_TYPES.get(type(layer))
    if kind is None:
        raise _cannot(f"holds no {layer.algorithm}", layer.algorithm)
    if kind != "LORA":
        _refuse(layer, DIFF_B, DORA, *SPARSE)
    config: dict[str, Any] = {"peft_type": kind}
    if isinstance(layer, Lora):
        tensors = _lora(layer)
        config |= {"r": layer.rank, "alpha": alpha_of(layer), **_of_lora(tensors)}
        return Encoded(name, tensors, config)
    tensors = layer.dump()
    tensors.pop(ALPHA, None)
    if isinstance(layer, Loha | Lokr):
        core = layer.hada_t1 if isinstance(layer, Loha) else layer.lokr_t2
        if core is not None and core.ndim > 4:
            raise _cannot("holds no Tucker core of a three-dimensional kernel", str(list(core.shape)))
        if core is not None and core.ndim == 3:
            tensors = {suffix: _as_2d(suffix, tensor) for suffix, tensor in tensors.items()}
        config |= {"tucker": core is not None}
    if isinstance(layer, Loha):
        config |= {"r": layer.rank, "alpha": alpha_of(layer)}
    elif isinstance(layer, Lokr):
        config |= _of_lokr(layer)
    elif isinstance(layer, OftV2):
        if layer.oft_r_scaled_oft is not None:
            raise _cannot("holds no scaled OFT", SCALED)
        rotation = (layer.terms, layer.last, layer.constraint)
        config |= {"block": layer.rank, "blocks": layer.oft_r.shape[0], "rotation": rotation}
    elif isinstance(layer, BoftPeft):
        config |= {"block": layer.rank, "stages": layer.boft_r.shape[0]}
    elif isinstance(layer, Ia3):
        layer = layer.by_factor()
        if layer.ia3_l is None:
            raise _cannot("scales the bias with the outputs, and LyCORIS' IA3 does not", "on_input = 0")
        tensors = layer.dump()
        inputs = layer.ia3_l.shape[0] == 1 if layer.ia3_l.ndim == 2 else bool(layer.feedforward)
        config |= {"feedforward": inputs}
    return Encoded(name, tensors, config)


def _as_2d(suffix: str, tensor: Tensor) -> Tensor:
    """PEFT writes the core of a one-dimensional kernel as one of (k, 1)."""
    return tensor.unsqueeze(-1) if suffix.endswith(("_t1", "_t2")) else tensor


def _refuse(layer: Layer, *suffixes: str) -> None:
    held = shapes_of(layer.dump())
    if found := next((suffix for suffix in suffixes if suffix in held), None):
        raise _cannot(f"has no place for {found}", found)


def _lora(layer: Layer) -> dict[str, Tensor]:
    """A LoRA layer's tensors as PEFT names them, not scaled."""
    if not isinstance(layer, Lora):
        raise _cannot(f"holds no {layer.algorithm}", layer.algorithm)
    _refuse(layer, MID, DIFF_B, RESHAPE, *SPARSE)
    tensors = layer.dump()
    tensors.pop(ALPHA, None)
    if DORA in tensors:
        shape = _shape(layer)
        # That of an embedding is for its features, which a layer of words has as inputs.
        wanted = 1 if EMBEDDING_UP in tensors else 0
        if magnitude_axis(tensors[DORA].shape, shape) != wanted:
            raise _cannot("holds no DoRA magnitude of the inputs", str(list(tensors[DORA].shape)))
        # One dimension, but on a convolution as the outputs of a batch: (1, O, 1, ...).
        ones = tuple(1 for _ in shape[2:])
        tensors[DORA] = tensors[DORA].reshape(1, -1, *ones) if ones else tensors[DORA].flatten()
    return {PEFT_SUFFIXES.get(suffix, suffix): tensor for suffix, tensor in tensors.items()}


def _of_lora(tensors: Collection[str]) -> dict[str, Any]:
    return {"use_dora": PEFT_SUFFIXES[DORA] in tensors, "lora_bias": BIAS in tensors}


def _of_lokr(layer: Lokr) -> dict[str, Any]:
    shapes = shapes_of(layer.dump())
    w1 = shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
    outputs, inputs, *kernel = layer.plain_shape(shapes)
    inner = (outputs // w1[0], inputs // w1[1])
    if "lokr_w2_b" in shapes and layer.lokr_t2 is None:
        # Its columns are the inputs and the kernel in one, whose sizes nothing tells apart.
        kernel = [0]
    rank = layer.rank
    return {
        "r": max(w1[0], w1[1], *inner) if rank is None else rank,
        "alpha": float(max(w1[0], w1[1], *inner)) if rank is None else alpha_of(layer),
        "outer": (w1[0], w1[1]),
        "inner": inner,
        "full": (layer.lokr_w1 is not None, layer.lokr_w2 is not None),
        "folded": kernel == [0],
    }


# The configuration of a whole file, from what its layers ask of it.


@dataclass(frozen=True)
class Member:
    """A layer of one PEFT configuration."""

    name: str
    """In the file."""
    path: str
    """In its module."""
    config: Mapping[str, Any]


class ConflictError(LayerError):
    """Layers that no one configuration can describe; `member` is the one that differs."""

    def __init__(self, why: str, member: Member, got: str) -> None:
        super().__init__(why, got=got)
        self.member = member


def peft_config(
    members: Sequence[Member], known: Collection[str], kernels: Mapping[str, int]
) -> dict[str, Any]:
    """The configuration for these layers, as PEFT's classes read it.

    `known` are all paths of the module as far as they are known, `kernels` the sizes of its layers'
    kernels. Raises ConflictError where no configuration makes these very layers.
    """
    kind = _common(members, "peft_type", "one kind in a file")
    paths = [member.path for member in members]
    table: dict[str, Any] = {
        "peft_type": kind,
        "target_modules": _modules(paths, known),
        "inference_mode": True,
    }
    if kind in ("LORA", "LOHA", "LOKR"):
        table |= _ranks(members, "lora_alpha" if kind == "LORA" else "alpha")
    if kind == "LORA":
        bias = _common(members, "lora_bias", "lora_B.bias in every layer, or in none")
        dora = _common(members, "use_dora", "DoRA in every layer, or in none")
        return {**table, "use_dora": dora, "use_rslora": False, "lora_bias": bias, "bias": "none"}
    if kind in ("LOHA", "LOKR"):
        table["use_effective_conv2d"] = _tucker(members, kernels)
    if kind == "LOKR":
        return {**table, **_lokr_factors(members)}
    if kind == "OFT":
        return {**table, **_oft(members)}
    if kind == "BOFT":
        size = _common(members, "block", "one size of block")
        stages = _common(members, "stages", "one number of stages")
        return {**table, "boft_block_size": size, "boft_block_num": 0, "boft_n_butterfly_factor": stages}
    if kind == "IA3":
        inputs = [member.path for member in members if member.config["feedforward"]]
        modules = table["target_modules"]
        fed = _modules(inputs, known) if isinstance(modules, list) else _expression(inputs)
        if isinstance(fed, str):
            table["target_modules"] = _expression(paths)
        return {**table, "feedforward_modules": fed}
    return table


def _common(members: Sequence[Member], option: str, wanted: str) -> Any:
    """The value that all layers have; what most have is right, for the message."""
    counts = Counter(member.config[option] for member in members)
    value = counts.most_common(1)[0][0]
    for member in members:
        if member.config[option] != value:
            raise ConflictError(f"needs {wanted}", member, f"{member.config[option]} beside {value}")
    return value


def _ranks(members: Sequence[Member], alpha: str) -> dict[str, Any]:
    ranks = {member.path: int(member.config["r"]) for member in members}
    alphas = {member.path: float(member.config["alpha"]) for member in members}
    rank, value = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    return {
        "r": rank,
        alpha: _number(value),
        "rank_pattern": {_pattern(path): found for path, found in ranks.items() if found != rank},
        "alpha_pattern": {_pattern(path): _number(found) for path, found in alphas.items() if found != value},
    }


def _pattern(path: str) -> str:
    """An expression for this path alone, where PEFT would take it for the end of any other as well."""
    return f"^{re.escape(path)}"


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _modules(paths: Sequence[str], known: Collection[str]) -> list[str] | str:
    """The paths as a list, which PEFT takes for ends of paths; as one expression where some path of the
    module ends like that, or the module's paths are not known."""
    ends = {path[match.end() :] for path in known for match in re.finditer(r"\.", path)}
    return sorted(paths) if known and not ends.intersection(paths) else _expression(paths)


def _expression(paths: Sequence[str]) -> str:
    return "|".join(re.escape(path) for path in sorted(paths)) if paths else "^$"


def _tucker(members: Sequence[Member], kernels: Mapping[str, int]) -> bool:
    """PEFT makes a core for each kernel above 1, or for none."""
    tucker = any(member.config["tucker"] for member in members)
    for member in members:
        kernel = kernels.get(member.path, 1)
        if (
            tucker
            and kernel > 1
            and not member.config["tucker"]
            and not all(member.config.get("full", [False]))
        ):
            raise ConflictError("needs a Tucker core in every kernel, or in none", member, "no core")
    return tucker


def _lokr_factors(members: Sequence[Member]) -> dict[str, Any]:
    """The options by which PEFT cuts the sizes of a layer as these are cut."""
    sizes = {size for member in members for size in (*member.config["outer"], *member.config["inner"])}
    best: Member | None = None
    for both in (False, True):
        for factor in (-1, *sorted(sizes)):
            wrong = next((member for member in members if not _makes(member.config, factor, both)), None)
            if wrong is None:
                return {"decompose_both": both, "decompose_factor": factor}
            best = best or wrong
    assert best is not None
    outer, inner = best.config["outer"], best.config["inner"]
    shapes = f"factors of {list(outer)} and {list(inner)}"
    raise ConflictError("has no option that cuts every layer as these are cut", best, shapes)


def _makes(config: Mapping[str, Any], factor: int, both: bool) -> bool:
    (rows, columns), (k, j), rank = config["outer"], config["inner"], config["r"]
    if config["folded"]:
        # The columns are known with their kernel: any share of them may be the inputs.
        same = factorization(rows * k, factor, ordered=False) == (rows, k) and _may_fold(columns, j, factor)
    else:
        same = factorization(rows * k, factor, ordered=False) == (rows, k) and factorization(
            columns * j, factor, ordered=False
        ) == (columns, j)
    full = (not (both and rank < max(rows, columns) / 2), rank >= max(k, j) / 2)
    return same and (full == config["full"] or (config["folded"] and full[0] == config["full"][0]))


def _may_fold(columns: int, folded: int, factor: int) -> bool:
    """Whether some number of inputs that divides the folded columns is cut into the outer columns."""
    inner = (size for size in range(1, folded + 1) if folded % size == 0)
    return any(factorization(columns * size, factor, ordered=False) == (columns, size) for size in inner)


def _oft(members: Sequence[Member]) -> dict[str, Any]:
    size = _common(members, "block", "one size of block")
    terms, last, constraint = _common(members, "rotation", "one series in every layer")
    shared = all(member.config["blocks"] == 1 for member in members)
    table = {
        "r": 0,
        "oft_block_size": size,
        "block_share": shared,
        "coft": constraint is not None,
        "eps": OFT_EPS if constraint is None else constraint,
        "use_cayley_neumann": terms > 0,
        "num_cayley_neumann_terms": terms or 5,
        "bias": "none",
    }
    return {**table, "peft_version": SERIES_SINCE} if last == 1 else table
