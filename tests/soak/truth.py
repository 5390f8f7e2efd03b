"""The change that a layer makes of a weight, in float64, by a plain closed form for each kind.

The formulas are written from those of lycoris-lora and PEFT, with numpy alone, and share no code with the
library. Axes: O outputs, I inputs, r rank, K inputs and kernel flattened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
Tensors = Mapping[str, Array]
STEEP = 1e3
"""The largest entry of a skew-symmetric matrix, and the largest ratio of a DoRA's direction to what it is the
rest of, for which a result is compared. Above it, float64 itself has too few digits."""


class UnknownError(Exception):
    """There is no closed form for a layer, or its values are such that no result can be compared."""


@dataclass(frozen=True)
class Changed:
    """What a layer makes of a weight and of the bias beside it."""

    delta: Array | None
    """The change of the weight, in the shape of the weight afterwards; None where it is not changed."""
    bias: Array | None
    """The change of the bias (O,); None where it is not changed."""
    size: float
    """The largest term of the sums, which rounding errors are relative to."""
    impossible: str = ""
    """Why no change can be computed at all, where the shapes do not go together."""


def plain(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).numpy()


def change(
    tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None, options: Mapping[str, Any]
) -> Changed:
    """The change of a weight and its bias by a layer's tensors, which are named by their suffixes.

    `options` are what no tensor says: `sig_type` of T-LoRA, `start` of PiSSA, `terms`, `last` and
    `constraint` of OFTv2, `feedforward` of IA3, `scale` of PEFT's LoKr, and `magnitude_of` where a
    magnitude's place is fixed by the tool that wrote it. Raises UnknownError where nothing can be compared,
    and whatever numpy raises where the shapes do not go together.
    """
    held = {suffix: plain(tensor) for suffix, tensor in tensors.items()}
    met = plain(weight)
    beside = None if bias is None else plain(bias)
    if not all(np.isfinite(values).all() for values in held.values()):
        raise UnknownError("values that are not finite")
    kind = next((form for names, form in FORMS if names <= set(held)), None)
    if kind is None:
        raise UnknownError(f"no closed form for {sorted(held)}")
    # A layer that has values of the bias changes these, and not those of the model.
    own = held["set_bias"].reshape(-1) if "set_bias" in held else None
    with np.errstate(all="ignore"):
        found = kind(held, met, beside if own is None else own, options)
        if own is not None and beside is not None:
            found = replace(found, bias=own - beside + (0 if found.bias is None else found.bias))
    if not all(np.isfinite(part).all() for part in (found.delta, found.bias) if part is not None):
        raise UnknownError("a result that is not finite")
    return found if found.bias is None else replace(found, size=max(found.size, _largest(found.bias)))


def _scale(t: Tensors, rank: int) -> float:
    return float(t["alpha"].reshape(-1)[0]) / rank if "alpha" in t else 1.0


def _flat(values: Array) -> Array:
    return values.reshape(values.shape[0], -1)


def _largest(values: Array) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


# LoRA, LoHa and LoKr: a product, and what may be around it.


def _lora(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    if "lora_embedding_A" in t:
        scale = _scale(t, t["lora_embedding_A"].shape[0])
        up, down = t["lora_embedding_A"].T, t["lora_embedding_B"].T
    else:
        down = t["lora_down.weight"]
        scale = _scale(t, down.shape[0])
        up = _flat(t["lora_up.weight"])
        if "lora_mid.weight" in t:
            down = np.einsum("mn...,nq->mq...", t["lora_mid.weight"], _flat(down))
        down = _flat(down)
        if "lora_E" in t:
            down = np.diag(t["lora_E"].reshape(-1)) @ down
    own = _vector(t, "lora_B.bias")
    size = abs(scale) * _largest(abs(up) @ abs(down))
    found = _around(t, scale * (up @ down), size, weight, options, None if own is None else scale * own)
    if options.get("start") != "pissa":
        return found
    # The factors started from the largest singular triples of the base, which PEFT took out of it.
    u, s, v = np.linalg.svd(_flat(weight), full_matrices=False)
    rank = len(down)
    taken = (u[:, :rank] @ np.diag(s[:rank]) @ v[:rank]).reshape(weight.shape)
    assert found.delta is not None
    return Changed(found.delta - taken, found.bias, found.size + _largest(s))


def _loha(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    scale = _scale(t, t["hada_w1_b"].shape[0])
    product, size = np.ones(()), abs(scale)
    for n in ("1", "2"):
        # Sizes of 1 may follow those of a matrix.
        a, b = _flat(t[f"hada_w{n}_a"]), _flat(t[f"hada_w{n}_b"])
        if f"hada_t{n}" in t:
            a, b = a.T, _flat(np.einsum("ij...,jq->iq...", t[f"hada_t{n}"], b))
        product = product * (a @ b)
        size *= _largest(abs(a) @ abs(b))
    return _around(t, scale * product, size, weight, options)


def _lokr(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    ranks = [t[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in t]
    scale = _scale(t, ranks[0]) if ranks else options.get("scale", 1.0)
    first = t["lokr_w1"] if "lokr_w1" in t else _flat(t["lokr_w1_a"]) @ _flat(t["lokr_w1_b"])
    if "lokr_w2" in t:
        second = t["lokr_w2"]
    elif "lokr_t2" in t:
        # Sizes of 1 may follow those of a matrix.
        pair = _flat(t["lokr_w2_a"]), _flat(t["lokr_w2_b"])
        second = np.einsum("ij...,ip,jq->pq...", t["lokr_t2"], *pair)
    else:
        second = _flat(t["lokr_w2_a"]) @ _flat(t["lokr_w2_b"])
    (rows, columns), second = first.reshape(first.shape[0], -1).shape, _flat(second)
    first = first.reshape(rows, columns)
    # Entry (p, q) of the outer factor times the whole inner factor is block (p, q) of the product.
    product = np.einsum("pq,kj->pkqj", first, second).reshape(rows * len(second), -1)
    return _around(t, scale * product, abs(scale) * _largest(first) * _largest(second), weight, options)


def _around(
    t: Tensors,
    product: Array,
    size: float,
    weight: Array,
    options: Mapping[str, Any],
    bias: Array | None = None,
) -> Changed:
    """The product with a sparse remainder, a DoRA magnitude, a larger weight and a change of the bias."""
    if "reshape_weight" in t:
        larger = np.zeros([int(size) for size in t["reshape_weight"]])
        larger[tuple(slice(size) for size in weight.shape)] = weight
        weight = larger
    delta = product.reshape(weight.shape).copy()
    if "bias_values" in t:
        # The places are int16, in which those above 32767 are negative.
        places = t["bias_indices"].astype(np.int64) % (1 << 16)
        shape = tuple(int(n) for n in t["bias_size"].astype(np.int64) % (1 << 16))
        sparse = np.zeros(shape)
        np.add.at(sparse, tuple(places), t["bias_values"])
        delta = delta + sparse.reshape(weight.shape)
        size = max(size, _largest(t["bias_values"]))
    if "diff_b" in t:
        added = t["diff_b"].reshape(-1)
        bias = added if bias is None else bias + added
    if "dora_scale" in t:
        delta, size = _dora(t["dora_scale"], weight, delta, max(size, _largest(weight)), options)
    return Changed(delta, bias, size)


def _dora(
    magnitude: Array, weight: Array, product: Array, size: float, options: Mapping[str, Any]
) -> tuple[Array, float]:
    """m * V / norm(V) - W with V = W + product; the norm is over all axes but the magnitude's."""
    of = options.get("magnitude_of")
    if of is None:
        inputs_first = magnitude.ndim > 1 and magnitude.shape[0] == 1
        order = (1, 0) if inputs_first else (0, 1)
        of = next(axis for axis in order if weight.shape[axis] == magnitude.size)
    direction = weight + product
    others = tuple(axis for axis in range(weight.ndim) if axis != of)
    length = np.sqrt((direction**2).sum(others, keepdims=True))
    shape = [1] * weight.ndim
    shape[of] = -1
    if (length < size / STEEP).any():
        raise UnknownError("a direction that is the small rest of large terms")
    factor = magnitude.reshape(shape) / length
    return direction * factor - weight, max(size, _largest(factor) * size)


# Kinds that multiply the weight.


def _glora(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    a1, a2, b1, b2 = (t[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if "bm.weight" in t:
        b2 = np.einsum("mn...,nq->mq...", t["bm.weight"], _flat(b2))
        new = True
    else:
        new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
        old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
        new = new and not (old and a1.shape[0] < a1.shape[1])
    if new:
        scale, up, down, left, right = _scale(t, a1.shape[1]), _flat(b1), _flat(b2), _flat(a1), _flat(a2)
    else:
        scale, up, down, left, right = _scale(t, a1.shape[0]), _flat(b2), _flat(b1), _flat(a2), _flat(a1)
    kernel = weight.reshape(weight.shape[0], weight.shape[1], -1)
    turned = np.einsum("oik,ij->ojk", kernel, left @ right).reshape(weight.shape)
    size = abs(scale) * (
        _largest(abs(up) @ abs(down)) + _largest(weight) * _largest(abs(left) @ abs(right)) * len(left)
    )
    return Changed(scale * ((up @ down).reshape(weight.shape) + turned), _diff_b(t), size)


def _ia3(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    if "ia3_l" in t:
        factors = t["ia3_l"]
        inputs = factors.shape[1] > 1 if factors.ndim == 2 else options.get("feedforward")
        if inputs is None:
            raise UnknownError("nothing says whether the factors are for inputs")
        by = factors.reshape(-1) - 1
    else:
        by, inputs = t["weight"].reshape(-1), bool(t["on_input"].reshape(-1)[0])
    shape = [1] * weight.ndim
    shape[1 if inputs else 0] = -1
    # PEFT multiplies the output of the layer, and with it the bias.
    beside = None if inputs or "ia3_l" not in t or bias is None else by * bias
    return Changed(weight * by.reshape(shape), beside, (1 + _largest(by)) * _largest(weight))


def _oft(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    blocks = t["oft_blocks"]
    skew = blocks - np.swapaxes(blocks, -1, -2)
    if "alpha" in t and (limit := float(t["alpha"].reshape(-1)[0]) * len(weight)) > 0:
        length = math.sqrt((skew**2).sum())
        skew = skew * (limit / length) if length > limit else skew
    rotations, rows = _cayley(skew), _flat(weight)
    if blocks.ndim == 3:
        size = blocks.shape[1]
        parts = [rotation.T @ rows[n * size : (n + 1) * size] for n, rotation in enumerate(rotations)]
        turned = np.concatenate(parts)
    else:
        turned, size = rows, blocks.shape[2]
        for stage, matrices in enumerate(rotations):
            # The rows are counted by (run, half, place) and taken in the order (run, place, half).
            place = np.arange(len(rows)).reshape(-1, 2, size // 2 << stage).transpose(0, 2, 1).reshape(-1)
            moved = turned[place].reshape(-1, size, rows.shape[1])
            moved = np.einsum("nij,njk->nik", matrices, moved).reshape(rows.shape)
            turned = np.empty_like(moved)
            turned[place] = moved
    if "rescale" in t:
        turned = turned * t["rescale"].reshape(-1, 1)
    size_of = (1 + _largest(t.get("rescale", np.ones(1)))) * _largest(weight) * blocks.shape[-1]
    return Changed(turned.reshape(weight.shape) - weight, _diff_b(t), size_of * _steepness(skew))


def _oftv2(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    values = t["oft_R.weight"]
    size = round((1 + math.sqrt(1 + 8 * values.shape[1])) / 2)
    skew = np.zeros((len(values), size, size))
    row, column = np.triu_indices(size, 1)
    skew[:, row, column] = values
    skew -= np.swapaxes(skew, 1, 2)
    if "oft_R.scaled_oft" in t:
        skew = skew / (2 * math.sqrt(size - 1))
    if options.get("constraint") is not None:
        limit = options["constraint"] / math.sqrt(len(values))
        length = np.sqrt((skew**2).sum((1, 2), keepdims=True))
        skew = np.where(length > limit, skew * (limit / length), skew)
    terms, last, one = options.get("terms", 5), options.get("last", 1), np.eye(size)
    if _largest(skew) * size > STEEP:
        raise UnknownError("a rotation of more digits than float64 has")
    if terms == 0:
        rotations = _cayley(-skew)
    else:
        powers = [np.linalg.matrix_power(skew, n) for n in range(1, terms)]
        # PEFT adds the term of the third power to three terms as well.
        if terms == 3 and last == 1:
            powers.append(np.linalg.matrix_power(skew, 3))
        by = [2.0] * len(powers)
        if last == 1 and terms > 2:
            by[-1] = 1.0
        rotations = one + sum((f * power for f, power in zip(by, powers, strict=True)), np.zeros_like(skew))
    rows = _flat(weight)
    if len(values) == 1:
        rotations = np.repeat(rotations, rows.shape[1] // size, 0)
    parts = rows.reshape(len(rows), len(rotations), size)
    turned = np.einsum("onj,nij->oni", parts, rotations).reshape(weight.shape)
    return Changed(turned - weight, _diff_b(t), _largest(weight) * (1 + size * _largest(rotations)))


def _boft_peft(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    blocks, factors = t["boft_R"], t["boft_s"].reshape(-1, 1)
    stages, count, size, _ = blocks.shape
    inputs = count * size
    rotations = _cayley((np.swapaxes(blocks, -1, -2) - blocks) / 2)
    whole = np.eye(inputs)
    for stage in range(stages):
        matrix = np.zeros((inputs, inputs))
        for n in range(count):
            matrix[n * size : (n + 1) * size, n * size : (n + 1) * size] = rotations[stage, n]
        if stages > 1:
            halves = np.arange(inputs).reshape(count >> stage, -1, size // 2)
            order = np.concatenate([halves[:, 0::2], halves[:, 1::2]], 1).reshape(-1)
            permutation = np.eye(inputs)[order]
            matrix = permutation @ matrix @ permutation.T
        whole = matrix @ whole
    turned = factors * (_flat(weight) @ whole.T)
    # PEFT scales the rotated weight, and adds the bias after that.
    size_of = (1 + _largest(factors)) * _largest(weight) * inputs * _steepness(blocks)
    return Changed(turned.reshape(weight.shape) - weight, _diff_b(t), size_of)


def _steepness(skew: Array) -> float:
    """How much a Cayley transform may enlarge the rounding of its matrices."""
    return (1 + _largest(skew) * skew.shape[-1]) ** 2


def _cayley(skew: Array) -> Array:
    """(I + Q) (I - Q)^-1 of each matrix."""
    if _largest(skew) > STEEP:
        raise UnknownError("a rotation of more digits than float64 has")
    one = np.eye(skew.shape[-1])
    return (one + skew) @ np.linalg.inv(one - skew)


def _tlora(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    if "sig_type" not in options:
        raise UnknownError("nothing says which singular triples the layer started from")
    down, up = _flat(t["q_layer.weight"]), _flat(t["p_layer.weight"])
    rank = len(down)
    u, s, v = np.linalg.svd(_flat(weight), full_matrices=False)
    known = min(rank, len(s))
    first = {"principal": 0, "last": len(s) - known, "middle": (len(s) - known) // 2}[options["sig_type"]]
    kept = slice(first, first + known)
    before = u[:, kept] @ np.diag(s[kept]) @ v[kept]
    after = up @ np.diag(t["lambda_layer"].reshape(-1)) @ down
    scale = _scale(t, rank)
    size = abs(scale) * (_largest(abs(up) @ abs(down)) * (1 + _largest(t["lambda_layer"])) + _largest(s))
    return Changed(scale * (after - before).reshape(weight.shape), _diff_b(t), size)


# Changes that the file holds as they are.


def _full(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    if "set_weight" in t:
        values = t["set_weight"].reshape(weight.shape)
        return Changed(values - weight, _diff_b(t), _largest(values) + _largest(weight))
    values = t["diff"].reshape(weight.shape) if "diff" in t else None
    return Changed(values, _diff_b(t), max(_largest(t.get("diff", np.zeros(1))), 1e-30))


def _norm(t: Tensors, weight: Array, bias: Array | None, options: Mapping[str, Any]) -> Changed:
    values = t["w_norm"].reshape(weight.shape) if "w_norm" in t else None
    return Changed(values, _vector(t, "b_norm"), max(map(_largest, (t[n] for n in t if n.endswith("_norm")))))


def _diff_b(t: Tensors) -> Array | None:
    return _vector(t, "diff_b")


def _vector(t: Tensors, name: str) -> Array | None:
    """A change of a bias, whatever further dimensions of size 1 its tensor has."""
    return t[name].reshape(-1) if name in t else None


Form = Callable[[Tensors, Array, "Array | None", Mapping[str, Any]], Changed]
FORMS: list[tuple[frozenset[str], Form]] = [
    (frozenset({"lora_up.weight", "lora_down.weight"}), _lora),
    (frozenset({"lora_embedding_A", "lora_embedding_B"}), _lora),
    (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), _loha),
    *((frozenset({a, b}), _lokr) for a in ("lokr_w1", "lokr_w1_a") for b in ("lokr_w2", "lokr_w2_a")),
    (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}), _glora),
    (frozenset({"weight", "on_input"}), _ia3),
    (frozenset({"ia3_l"}), _ia3),
    (frozenset({"oft_blocks"}), _oft),
    (frozenset({"oft_R.weight"}), _oftv2),
    (frozenset({"boft_R", "boft_s"}), _boft_peft),
    (frozenset({"q_layer.weight", "p_layer.weight", "lambda_layer"}), _tlora),
    (frozenset({"diff"}), _full),
    (frozenset({"set_weight"}), _full),
    (frozenset({"w_norm"}), _norm),
    (frozenset({"b_norm"}), _norm),
    (frozenset({"diff_b"}), _full),
    (frozenset({"set_bias"}), _full),
]
"""The closed form of a layer that has these tensors."""


# PEFT's configuration, for files whose configuration no mutation has touched.


def configured(table: Mapping[str, Any], path: str, rank: int | None) -> dict[str, Any]:
    """What a PEFT configuration says of the layer at a path: `alpha`, and options as in `change`."""
    kind = table.get("peft_type", "LORA")
    if kind == "OFT":
        release = tuple(int(n) for n in re.findall(r"\d+", table.get("peft_version", ""))[:2])
        return {
            "terms": table.get("num_cayley_neumann_terms", 5) if table.get("use_cayley_neumann", True) else 0,
            "last": 1 if release >= (0, 18) else 2,
            "constraint": table["eps"] if table.get("coft") else None,
        }
    if kind == "ADALORA":
        return {"alpha": table["lora_alpha"] / (table["init_r"] + 1e-5) * (rank or 1)}
    if kind == "IA3":
        named = table.get("feedforward_modules") or []
        fed = re.fullmatch(named, path) if isinstance(named, str) else path.endswith(tuple(named))
        return {"feedforward": bool(fed)}
    alpha_name = "lora_alpha" if "lora_alpha" in table else "alpha"
    if alpha_name not in table:
        return {}

    def found(patterns: str, default: float) -> float:
        for pattern, value in (table.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", path):
                return value
        return default

    alpha, r = found("alpha_pattern", table[alpha_name]), found("rank_pattern", table["r"])
    by = math.sqrt(rank) if table.get("use_rslora") and rank else 1.0
    start = table.get("init_lora_weights")
    return {"alpha": float(alpha) * by, "scale": float(alpha) / r, "start": start}
