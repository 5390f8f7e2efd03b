"""Tensors: dtypes to compute in, checks of values, and operations that several kinds of layers need.

Axes: O outputs, I inputs, r rank, K inputs and kernel flattened (I * prod(kernel)).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .divided import is_divided, whole

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

CPU = torch.device("cpu")
PIECE = 1 << 20
"""Number of elements that are taken at a time where a wider copy of them is needed."""

SEVERAL_IN_ONE: frozenset[Any] = frozenset({getattr(torch, "float4_e2m1fn_x2", None)})
"""Dtypes that torch counts as floating-point, though each of their elements packs two values."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a change of a weight of `dtype` is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest(device: torch.device) -> torch.dtype:
    """The dtype for what float32 rounds too much, such as sums of squares: float64 on the CPU.

    Accelerators keep float32: float64 is slow on most of them, and some have none. Small matrices are
    decomposed on the CPU in any case. docs/decisions/float32.md says how little the results differ.
    """
    return torch.float64 if device.type == "cpu" else torch.float32


def promoted(first: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype that holds all values of both. torch cannot promote float8; float16 holds its values."""
    if first != other:
        first, other = (torch.float16 if dtype.itemsize == 1 else dtype for dtype in (first, other))
    return torch.promote_types(first, other)


def narrowed(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values in `dtype` if it holds all of them exactly, else in the wider of `dtype` and float32."""
    own = exact.to(dtype)
    return own if torch.equal(own.double(), exact) else exact.to(promoted(dtype, torch.float32))


def times(tensor: Tensor, factor: float) -> Tensor:
    """The tensor times a number, in its own dtype where that holds every product exactly, else in float32."""
    return narrowed(tensor.double() * factor, tensor.dtype)


def largest(tensor: Tensor) -> float:
    """The largest absolute value; NaN where there is one, 0 for no values."""
    return float(largest_on_device(tensor))


def largest_of(tensors: Sequence[Tensor]) -> list[float]:
    """`largest` of each tensor, with one wait for each device.

    One pass without a copy: it costs about as much as a sum, a tenth of `isfinite().all()`.
    """
    devices: dict[torch.device, list[int]] = {}
    for number, tensor in enumerate(tensors):
        devices.setdefault(tensor.device, []).append(number)
    sizes = [0.0] * len(tensors)
    for numbers in devices.values():
        ends: Any = torch.stack([end for number in numbers for end in _ends(tensors[number])])
        for number, (low, high) in zip(numbers, ends.view(-1, 2).tolist(), strict=True):
            # Both are NaN where there is one.
            sizes[number] = max(high, -low)
    return sizes


def largest_on_device(tensor: Tensor) -> Tensor:
    """`largest` as a tensor without dimensions, without waiting for the device."""
    low, high = _ends(tensor)
    # `maximum` gives NaN where either is NaN.
    return torch.maximum(-low, high)


def _ends(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Two values of which the larger absolute one is `largest`, as tensors without dimensions."""
    flat = tensor.detach()
    if not flat.numel():
        zero = torch.zeros((), device=flat.device)
        return zero, zero
    if flat.itemsize > 1:
        return flat.aminmax()
    # torch compares no float8.
    flat = flat.reshape(-1)
    pieces = [flat[start : start + PIECE].float().abs().amax() for start in range(0, flat.numel(), PIECE)]
    top = torch.stack(pieces).amax()
    return top, top


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite."""
    return math.isfinite(largest(tensor))


def is_plain(value: Tensor) -> bool:
    """Whether a tensor holds its values as they are, whole, not packed, in a floating-point dtype."""
    own = type(value) in (Tensor, nn.Parameter)
    return own and value.is_floating_point() and value.dtype not in SEVERAL_IN_ONE


def unpacked(value: Tensor, scales: Tensor | None = None) -> Tensor | None:
    """The values of a packed or divided tensor; any other tensor itself.

    `scales` are the scales of its rows where a module of bitsandbytes holds them beside an int8 weight.
    Returns None where only the module knows how the tensor is packed. All processes of a divided tensor must
    call this.
    """
    if is_plain(value):
        return value
    if is_divided(value):
        return whole(value.detach())
    if _unpacks(value):
        return value.dequantize()
    return _of_bitsandbytes(value, scales)


def only_for_its_module(value: Tensor) -> bool:
    """Whether a weight is packed for its module, which cannot multiply by a plain weight in its place."""
    return not (is_plain(value) or is_divided(value) or _unpacks(value))


def _unpacks(value: Tensor) -> bool:
    """Whether the tensor's class unpacks it by its own `dequantize`, as torchao's and ComfyUI's classes do.

    The `dtype` of such a tensor is that of the unpacked values. `Tensor.dequantize` is only for torch's own
    quantised tensors.
    """
    return type(value).dequantize is not Tensor.dequantize and value.is_floating_point()


def _of_bitsandbytes(value: Any, scales: Tensor | None) -> Tensor | None:
    """The values of a bitsandbytes weight, by the package's own function; None for any other tensor.

    Before its first move to a device a weight is not yet quantised, and holds its values as they are.
    """
    package = sys.modules.get("bitsandbytes")
    if package is None or not type(value).__module__.startswith("bitsandbytes"):
        return None
    own: Any = package.functional
    if getattr(value, "quant_state", None) is not None:
        return own.dequantize_4bit(value.data, value.quant_state)
    own_scales = getattr(value, "SCB", None)
    scales = scales if own_scales is None else own_scales
    if scales is not None and value.dtype == torch.int8:
        return own.int8_vectorwise_dequant(value.data, scales)
    return value.data if value.is_floating_point() else None


def shaped(values: Tensor, shape: Sequence[int]) -> Tensor:
    """The values in a shape. If they have it already, no node is added to the autograd graph."""
    return values if values.shape == shape else values.reshape(shape)


def fold_core(core: Tensor, factor: Tensor) -> Tensor:
    """Fold a Tucker core into its input factor: out[m, j, ...] = sum_n core[m, n, ...] * factor[n, j].

    `core` is (r, r, *kernel), `factor` is (r, I). The result (r, I, *kernel), in float32 or wider, is an
    ordinary convolution factor, so that Tucker layers need no path of their own.
    Source: Yeh et al., "Navigating Text-To-Image Customization" (LyCORIS), appendix on Tucker.
    """
    dtype = promoted(torch.float32, promoted(core.dtype, factor.dtype))
    flat = factor.reshape(factor.shape[0], -1)
    return torch.einsum("mn...,nj->mj...", core.to(dtype), flat.to(dtype))


def kronecker(left: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product (l * k, i * j) of two matrices (l, i) and (k, j).

    `torch.kron` raises for some transposed matrices of one column.
    """
    blocks = left[:, None, :, None] * other[None, :, None, :]
    return blocks.reshape(len(left) * len(other), left.shape[1] * other.shape[1])


def wide(tensor: Tensor) -> Tensor:
    """The values in the `widest` dtype of their device, or in their own where that is wider."""
    return tensor.to(promoted(tensor.dtype, widest(tensor.device)))


def energy_of(tensor: Tensor) -> float:
    """The sum of all squares, with one wait for the device."""
    return float(energy(tensor))


def energy(tensor: Tensor) -> Tensor:
    """The sum of all squares, `wide` and without dimensions."""
    flat = tensor.detach().reshape(-1)
    total = flat.new_zeros((), dtype=widest(flat.device))
    # In pieces, so that no second copy of a large tensor is made.
    for start in range(0, flat.numel(), PIECE):
        total = total + wide(flat[start : start + PIECE]).square().sum()
    return total


def fetched(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU, with one wait for all of one device and dtype."""
    values = [tensor.detach() for tensor in tensors]
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, value in enumerate(values):
        if value.device.type != "cpu":
            kinds.setdefault((value.device, value.dtype), []).append(number)
    for numbers in kinds.values():
        own = [values[number] for number in numbers]
        # torch has no type for `split`.
        joined: Any = (
            torch.cat([tensor.reshape(-1) for tensor in own]).cpu() if len(own) > 1 else own[0].cpu()
        )
        chunks = joined.reshape(-1).split([tensor.numel() for tensor in own])
        for number, value, chunk in zip(numbers, own, chunks, strict=True):
            # A chunk would keep all of them in memory.
            values[number] = (chunk.clone() if len(own) > 1 else chunk).reshape(value.shape)
    return values


def norm(tensor: Tensor, *dims: int) -> Tensor:
    """The Euclidean norm over `dims`, which stay as dimensions of size 1; without `dims`, of all values."""
    return _linalg.vector_norm(tensor, dim=dims or None, keepdim=bool(dims))


def padded(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of `shape` that holds the weight in its first rows, columns and so on, and zeros elsewhere."""
    larger = weight.new_zeros(shape)
    larger[tuple(slice(size) for size in weight.shape)] = weight
    return larger
