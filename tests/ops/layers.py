"""Random adapter layers of every kind, for tests that go over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lycoris_ops.algorithms import ALGORITHMS, Layer

WEIGHTS: dict[str, tuple[int, ...]] = {
    "linear": (12, 18),
    # No size is a multiple of 2, so blocks and tiles do not end where the weight does.
    "linear-odd": (35, 21),
    "conv1d": (12, 18, 3),
    "conv2d": (12, 18, 3, 3),
    "conv2d-1x1": (12, 18, 1, 1),
    "conv2d-wide": (10, 6, 1, 5),
    "conv3d": (12, 18, 3, 1, 2),
}
"""The shape (O, I, *kernel) of one weight of each kind of layer that adapters exist for."""

Factors = dict[str, Tensor]


def rand(*shape: int) -> Tensor:
    """Normal random values, divided by the square root of the last size so that products stay small."""
    return torch.randn(*shape) / math.sqrt(shape[-1])


def lora(shape: tuple[int, ...], rank: int) -> Factors:
    ones = tuple(1 for _ in shape[2:])
    return {
        "lora_up.weight": rand(shape[0], rank, *ones),
        "lora_down.weight": rand(rank, *shape[1:]),
    }


def lora_tucker(shape: tuple[int, ...], rank: int) -> Factors:
    ones = tuple(1 for _ in shape[2:])
    return {
        "lora_up.weight": rand(shape[0], rank, *ones),
        "lora_mid.weight": rand(rank, rank, *shape[2:]),
        "lora_down.weight": rand(rank, shape[1], *ones),
    }


def loha(shape: tuple[int, ...], rank: int) -> Factors:
    flat = math.prod(shape[1:])
    return {
        "hada_w1_a": rand(shape[0], rank),
        "hada_w1_b": rand(rank, flat),
        "hada_w2_a": rand(shape[0], rank),
        "hada_w2_b": rand(rank, flat),
    }


def loha_tucker(shape: tuple[int, ...], rank: int) -> Factors:
    return {
        "hada_t1": rand(rank, rank, *shape[2:]),
        "hada_w1_a": rand(rank, shape[0]),
        "hada_w1_b": rand(rank, shape[1]),
        "hada_t2": rand(rank, rank, *shape[2:]),
        "hada_w2_a": rand(rank, shape[0]),
        "hada_w2_b": rand(rank, shape[1]),
    }


def split(size: int) -> tuple[int, int]:
    """The two whole factors of a size that are closest to each other. The smaller one comes first."""
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small


def lokr(shape: tuple[int, ...], rank: int, *, first: str, second: str) -> Factors:
    (outer, k), (i, j) = split(shape[0]), split(shape[1])
    kernel = shape[2:]
    factors: Factors = {}
    if first == "full":
        factors["lokr_w1"] = rand(outer, i)
    else:
        factors |= {"lokr_w1_a": rand(outer, rank), "lokr_w1_b": rand(rank, i)}
    if second == "full":
        factors["lokr_w2"] = rand(k, j, *kernel)
    elif second == "low":
        factors |= {"lokr_w2_a": rand(k, rank), "lokr_w2_b": rand(rank, j * math.prod(kernel))}
    else:
        factors |= {
            "lokr_t2": rand(rank, rank, *kernel),
            "lokr_w2_a": rand(rank, k),
            "lokr_w2_b": rand(rank, j),
        }
    return factors


def glora(shape: tuple[int, ...], rank: int) -> Factors:
    ones = tuple(1 for _ in shape[2:])
    return {
        "a1.weight": rand(shape[1], rank, *ones),
        "a2.weight": rand(rank, shape[1], *ones),
        "b1.weight": rand(shape[0], rank, *ones),
        "b2.weight": rand(rank, *shape[1:]),
    }


def glora_core(shape: tuple[int, ...], rank: int) -> Factors:
    ones = tuple(1 for _ in shape[2:])
    b2 = rand(rank, shape[1], *ones)
    return {**glora(shape, rank), "b2.weight": b2, "bm.weight": rand(rank, rank, *shape[2:])}


def ia3(shape: tuple[int, ...], rank: int) -> Factors:
    ones = tuple(1 for _ in shape[2:])
    weight = rand(1, shape[0], *ones) if ones else rand(shape[0])
    return {"weight": weight, "on_input": torch.tensor(0)}


def ia3_peft(shape: tuple[int, ...], rank: int) -> Factors:
    return {"ia3_l": 1 + rand(shape[0], 1)}


def oft(shape: tuple[int, ...], rank: int) -> Factors:
    count, size = split(shape[0])
    return {"oft_blocks": rand(count, size, size)}


def boft(shape: tuple[int, ...], rank: int) -> Factors:
    return {"oft_blocks": rand(1, shape[0] // 2, 2, 2)}


def oftv2(shape: tuple[int, ...], rank: int) -> Factors:
    flat = math.prod(shape[1:])
    size = next(n for n in range(2, flat + 1) if flat % n == 0)
    return {"oft_R.weight": rand(flat // size, size * (size - 1) // 2)}


def boft_peft(shape: tuple[int, ...], rank: int) -> Factors:
    flat = math.prod(shape[1:])
    size = next(n for n in range(2, flat + 1) if flat % n == 0)
    return {"boft_R": rand(1, flat // size, size, size), "boft_s": 1 + rand(shape[0], 1)}


def tlora(shape: tuple[int, ...], rank: int) -> Factors:
    return {
        "q_layer.weight": rand(rank, *shape[1:]),
        "p_layer.weight": rand(shape[0], rank),
        "lambda_layer": rand(1, rank),
    }


def singlora(shape: tuple[int, ...], rank: int) -> Factors:
    return {"singlora_A": rand(max(shape[0], math.prod(shape[1:])), rank)}


def vera(shape: tuple[int, ...], rank: int) -> Factors:
    """The shared tensors are for more outputs and inputs than the layer has."""
    return {
        "vera_lambda_b": rand(shape[0]),
        "vera_lambda_d": rand(rank),
        "vera_B": rand(shape[0] + 5, rank),
        "vera_A": rand(rank, shape[1] + 7),
    }


@dataclass(frozen=True)
class Kind:
    """One set of tensors that an algorithm accepts: how to make it, and properties of its change."""

    algorithm: str
    make: Callable[[tuple[int, ...], int], Factors]
    """Makes random tensors by key suffix, without alpha, from the shape of a weight and a rank."""
    needs_kernel: bool = False
    """Whether the kind exists only for weights of more than two dimensions."""
    linear: bool = False
    """Whether the kind exists only for linear layers."""
    flat: bool = False
    """Whether the kind is for weights of one dimension."""
    options: dict[str, str] = field(default_factory=dict)
    """Options that the layer needs, and that a file does not hold."""
    scaled: bool = True
    """Whether alpha / rank scales the change."""
    additive: bool = True
    """Whether the change does not depend on the weight."""
    row_by_row: bool = False
    """Whether each row of the change depends only on the same row of the weight, where it depends on it."""


def _lokr(first: str, second: str) -> Callable[[tuple[int, ...], int], Factors]:
    return lambda shape, rank: lokr(shape, rank, first=first, second=second)


def _dora(make: Callable[[tuple[int, ...], int], Factors], axis: int) -> Callable[..., Factors]:
    """Add a DoRA magnitude to a kind: one for each output (axis 0) or for each input (axis 1)."""

    def made(shape: tuple[int, ...], rank: int) -> Factors:
        size = [1] * len(shape)
        size[axis] = shape[axis]
        return {**make(shape, rank), "dora_scale": 1 + torch.rand(size)}

    return made


def _sparse(shape: tuple[int, ...], rank: int) -> Factors:
    """A LoRA with a sparse remainder of five values, in the layout of LyCORIS's extraction."""
    places = torch.stack([torch.randint(0, size, (5,)) for size in shape])
    return {
        **lora(shape, rank),
        "bias_indices": places.to(torch.int16),
        "bias_values": rand(5),
        "bias_size": torch.tensor(shape),
    }


KINDS: dict[str, Kind] = {
    "lora": Kind("lora", lora),
    "lora-tucker": Kind("lora", lora_tucker, needs_kernel=True),
    "lora-sparse": Kind("lora", _sparse),
    "loha": Kind("loha", loha),
    "loha-tucker": Kind("loha", loha_tucker, needs_kernel=True),
    **{
        f"lokr-{first}-{second}": Kind(
            "lokr", _lokr(first, second), second == "tucker", scaled=(first, second) != ("full", "full")
        )
        for first in ("full", "low")
        for second in ("full", "low", "tucker")
    },
    **{
        f"{name}-dora-{axis}": Kind(
            name, _dora(make, n), scaled=False, additive=False, row_by_row=axis == "out"
        )
        for name, make in (("lora", lora), ("loha", loha), ("lokr", _lokr("full", "low")))
        for n, axis in enumerate(("out", "in"))
    },
    "glora": Kind("glora", glora, additive=False, row_by_row=True),
    "glora-core": Kind("glora", glora_core, needs_kernel=True, additive=False, row_by_row=True),
    "ia3": Kind("ia3", ia3, scaled=False, additive=False, row_by_row=True),
    "ia3-peft": Kind("ia3", ia3_peft, scaled=False, additive=False, row_by_row=True),
    "oft": Kind("oft", oft, scaled=False, additive=False),
    "boft": Kind("boft", boft, scaled=False, additive=False),
    "oftv2": Kind("oftv2", oftv2, scaled=False, additive=False, row_by_row=True),
    "boft-peft": Kind("boft_peft", boft_peft, scaled=False, additive=False, row_by_row=True),
    "tlora": Kind("tlora", tlora, options={"sig_type": "principal"}, additive=False),
    "singlora": Kind("singlora", singlora, additive=False),
    "vera": Kind("vera", vera, linear=True, scaled=False, additive=False),
    "full": Kind("full", lambda shape, rank: {"diff": rand(*shape)}, scaled=False),
    "full-set": Kind(
        "full",
        lambda shape, rank: {"set_weight": rand(*shape)},
        scaled=False,
        additive=False,
        row_by_row=True,
    ),
    "norm": Kind("norm", lambda shape, rank: {"w_norm": rand(*shape)}, flat=True, scaled=False),
}
"""Every set of tensors that an algorithm accepts for a weight, by a readable name."""

WEIGHTS["norm"] = (12,)
WITHOUT_RANK = ("norm",)


def _fit(spec: Kind, weight: str) -> bool:
    if spec.algorithm == "boft" and WEIGHTS[weight][0] % 2:
        # Every block of a BOFT has two halves.
        return False
    if spec.flat or weight in WITHOUT_RANK:
        return spec.flat and weight in WITHOUT_RANK
    return not (spec.linear if len(WEIGHTS[weight]) > 2 else spec.needs_kernel)


CASES = [(kind, weight) for kind, spec in KINDS.items() for weight in WEIGHTS if _fit(spec, weight)]
"""(kind, weight) of every combination that exists, by their names in KINDS and WEIGHTS."""


def home(kind: str) -> str:
    """The name of a weight that the kind fits."""
    return "norm" if KINDS[kind].flat else "linear" if KINDS[kind].linear else "conv2d"


FEW = [(kind, weight) for kind, weight in CASES if weight in ("linear-odd", home(kind))]
"""(kind, weight) with every kind on one linear layer and one convolution, for what does not depend on the
kernel: the dtype, the dialect, or how a weight is cut."""


def _in_turn() -> list[tuple[str, str]]:
    chosen: list[tuple[str, str]] = []
    for number, kind in enumerate(KINDS):
        others = [case for case in CASES if case[0] == kind and case not in FEW]
        chosen += others[number % len(others) : number % len(others) + 1] if others else []
    return chosen


MIXED = [case for case in CASES if case in FEW or case in _in_turn()]
"""The cases of FEW, and one more weight for each kind: the kinds take the other weights in turn.

They are for what depends on the kind and on the kernel, but not on both together."""


def base(weight: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random weight, the same at every call. A zero weight would hide changes that depend on it."""
    return torch.randn(WEIGHTS[weight], generator=torch.Generator().manual_seed(5)).to(dtype)


def factors(kind: str, weight: str, rank: int = 3, alpha: float | None = 2.0) -> Factors:
    """Random tensors of a kind for a weight, by key suffix. They include alpha unless it is None."""
    made = KINDS[kind].make(WEIGHTS[weight], rank)
    return made if alpha is None else {**made, "alpha": torch.tensor(alpha)}


def load(kind: str, weight: str, **options: object) -> Layer:
    """A random layer of a kind for a weight. The options are the arguments of `factors`."""
    algorithm = ALGORITHMS[KINDS[kind].algorithm]
    return algorithm.load(factors(kind, weight, **options), KINDS[kind].options)  # type: ignore[arg-type]
