"""Components of a rank: the slices of a layer's tensors along the axes that count them.

A Tucker core (r, r, *kernel) has two such axes: a component is a row and a column of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..maths.decompositions import leading, leading_triples
from ..maths.tensors import fold_core

Axes = Mapping[str, tuple[int, ...]]
"""For each field of a layer that has components the axes that count them."""

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)


@dataclass(frozen=True, eq=False)
class Growth:
    """Components that a layer may get, the best first."""

    gains: tuple[float, ...]
    """The gain of the first 1, 2, ... of them."""
    components: Mapping[str, Tensor]
    """For each field in `Layer.rank_axes` a tensor of these components alone."""

    def first(self, count: int, axes: Axes) -> dict[str, Tensor]:
        """The first `count` of them."""
        return {name: chosen(tensor, axes[name], range(count)) for name, tensor in self.components.items()}


def running(gains: Tensor) -> tuple[float, ...]:
    """The sums of the first 1, 2, ... gains."""
    # torch types no `tolist`.
    return tuple(cast("list[float]", cast("Any", gains.double().cumsum(0)).tolist()))


def chosen(values: Tensor, axes: Sequence[int], kept: Sequence[int]) -> Tensor:
    """The values of some components."""
    places = torch.tensor(kept, dtype=torch.int64, device=values.device)
    for axis in axes:
        values = values.index_select(axis, places)
    return values


def beside(values: Tensor, others: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The components of two tensors in one. Where two axes count them it is zero between the two."""
    if len(axes) == 1:
        return torch.cat([values, others], axes[0])
    rest = tuple(size for axis, size in enumerate(values.shape) if axis not in axes)
    met = [tensor.movedim(axes, (0, 1)) for tensor in (values, others)]
    old, new = (len(tensor) for tensor in met)
    made = values.new_zeros(old + new, old + new, *rest)
    made[:old, :old], made[old:, old:] = met
    return made.movedim((0, 1), axes).contiguous()


def zeros(values: Tensor, axes: Sequence[int], count: int) -> Tensor:
    """A tensor of so many components that are zero, beside these values."""
    shape = [count if axis in axes else size for axis, size in enumerate(values.shape)]
    return values.new_zeros(shape)


def rows_beyond(matrix: Tensor, known: Tensor, most: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The leading singular values and right singular vectors of G (1 - P), G the matrix (m, n).

    P is the projection on the rows of `known` (r, n). There are at most `most` of each.
    """
    span = leading(known.detach().to(matrix).T)
    _, values, right = leading_triples(matrix - (matrix @ span) @ span.T, most, seed=seed)
    return values, right


def tucker_beyond(gradient: Tensor, known: Tensor, most: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gains (c,), right factors (c, I) and a core (c, c, *kernel) that is diagonal, the best first.

    Each makes a row d k^T of norm 1 from an input direction d and a kernel k: the one that is nearest to a
    row of `rows_beyond` of the gradient (m, I, *kernel). Its gain is ||G (d k^T)||^2.
    """
    flat, kernel = gradient.flatten(1), gradient.shape[2:]
    _, rows = rows_beyond(flat, known, most, seed=seed)
    left, _, right = _linalg.svd(rows.view(len(rows), gradient.shape[1], -1), full_matrices=False)
    inputs, kernels = left[:, :, 0], right[:, 0]
    gains = (flat @ (inputs[:, :, None] * kernels[:, None]).flatten(1).T).square().sum(0)
    order = gains.argsort(descending=True)
    core = torch.zeros(len(order), len(order), *kernel, dtype=rows.dtype, device=rows.device)
    core[range(len(order)), range(len(order))] = kernels[order].view(-1, *kernel)
    return gains[order], inputs[order], core


def right_beyond(
    gradient: Tensor, right: Tensor, core: Tensor | None, most: int, *, seed: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gains (c,), c new components of a right factor in its layout, and of its core (None without one).

    They are those of `rows_beyond`, or with a core of `tucker_beyond`, for the gradient (m, I, *kernel) and
    the rows that the factor has.
    """
    made: Tensor | None = None
    if core is None:
        values, rows = rows_beyond(gradient.flatten(1), right.flatten(1), most, seed=seed)
        gains = values.double().square()
    else:
        gains, rows, made = tucker_beyond(gradient, fold_core(core, right).flatten(1), most, seed=seed)
    return gains, rows.reshape(len(gains), *right.shape[1:]), made
