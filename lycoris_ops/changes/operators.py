"""Changes that depend on the weight they meet, as operators on its outputs and on its inputs.

A layer states its operators once. Both its change of a weight (patch) and its change of a module's output
beside an unchanged weight (bypass) derive from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from ..maths.scaling import scaled
from .forms import Additive, add_up, plus

T = TypeVar("T")


class Operator(Protocol):
    """A square matrix M that is never formed."""

    @property
    def size(self) -> int:
        """n, for M (n, n)."""
        ...

    def change(self, vectors: Tensor) -> Tensor:
        """(M - 1) v for each vector v of `vectors` (..., n).

        The change is computed directly: M v - v would lose digits by cancellation.
        """
        ...

    def product(self, vectors: Tensor) -> Tensor:
        """M v for each vector v of `vectors` (..., n)."""
        ...

    def transposed(self) -> Operator:
        """The operator of M^T."""
        ...


@dataclass(frozen=True)
class Diagonal:
    """M = 1 + diag(extra), extra (n,)."""

    extra: Tensor

    @property
    def size(self) -> int:
        return self.extra.numel()

    def change(self, vectors: Tensor) -> Tensor:
        return vectors * self.extra

    def product(self, vectors: Tensor) -> Tensor:
        return scaled(vectors, self.extra, None)

    def transposed(self) -> Diagonal:
        return self


@dataclass(frozen=True)
class BlockDiagonal:
    """M = 1 + blockdiag(extra), extra (n, b, b)."""

    extra: Tensor

    @property
    def size(self) -> int:
        return self.extra.shape[0] * self.extra.shape[1]

    def change(self, vectors: Tensor) -> Tensor:
        count, size, _ = self.extra.shape
        cut = vectors.view(*vectors.shape[:-1], count, size)
        return torch.einsum("kij,...kj->...ki", self.extra, cut).flatten(-2)

    def product(self, vectors: Tensor) -> Tensor:
        count, size, _ = self.extra.shape
        cut = vectors.reshape(-1, count, size).transpose(0, 1)
        return torch.baddbmm(cut, cut, self.extra.transpose(1, 2)).transpose(0, 1).reshape(vectors.shape)

    def transposed(self) -> BlockDiagonal:
        return BlockDiagonal(self.extra.transpose(1, 2))


@dataclass(frozen=True)
class Product:
    """M = 1 + scale * left @ right, left (n, r) and right (r, n)."""

    left: Tensor
    right: Tensor
    scale: float

    @property
    def size(self) -> int:
        return self.left.shape[0]

    def change(self, vectors: Tensor) -> Tensor:
        return ((vectors @ self.right.T) * self.scale) @ self.left.T

    def product(self, vectors: Tensor) -> Tensor:
        flat = vectors.reshape(-1, self.size)
        product = torch.addmm(flat, flat @ self.right.T, self.left.T, alpha=self.scale)
        return product.view(vectors.shape)

    def transposed(self) -> Product:
        return Product(self.right.T, self.left.T, self.scale)


@dataclass(frozen=True)
class Permuted:
    """M = P^T inner P, where P moves component order[i] of a vector to place i; order (n,)."""

    order: Tensor
    inner: Operator
    inverse: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inverse", torch.argsort(self.order))

    @property
    def size(self) -> int:
        return self.order.numel()

    def change(self, vectors: Tensor) -> Tensor:
        return self._around(self.inner.change, vectors)

    def product(self, vectors: Tensor) -> Tensor:
        return self._around(self.inner.product, vectors)

    def _around(self, run: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        # The gradient of `index_select` is a scatter-add. Indexing has one that sorts first on accelerators.
        return run(vectors.index_select(-1, self.order)).index_select(-1, self.inverse)

    def transposed(self) -> Permuted:
        return Permuted(self.order, self.inner.transposed())


@dataclass(frozen=True)
class Chain:
    """M = steps[-1] ... steps[1] steps[0]: the first is applied first."""

    steps: tuple[Operator, ...]

    @property
    def size(self) -> int:
        return self.steps[0].size

    def change(self, vectors: Tensor) -> Tensor:
        total = self.steps[0].change(vectors)
        # Each step meets the vectors as the steps before it have changed them.
        for step in self.steps[1:]:
            total = total + step.change(vectors + total)
        return total

    def product(self, vectors: Tensor) -> Tensor:
        for step in self.steps:
            vectors = step.product(vectors)
        return vectors

    def transposed(self) -> Chain:
        return Chain(tuple(step.transposed() for step in reversed(self.steps)))


@dataclass(frozen=True)
class Sides:
    """W' = outputs @ (W + inside) @ inputs + beside.

    W is (O, K). `outputs` has the size O. `inputs` has the size K, or the size I: then it acts on the input
    channels alone, in the same way at every position of the kernel. None stands for the identity, an empty
    `inside` or `beside` for zero.
    """

    outputs: Operator | None = None
    inputs: Operator | None = None
    inside: tuple[Additive, ...] = ()
    beside: tuple[Additive, ...] = ()

    def change(self, weight: Tensor) -> Tensor:
        """W' - W in the weight's shape, for a float32 or float64 weight.

        The change of each step is added up: a subtraction of W at the end would lose digits.
        """
        total = _dense(self.inside, weight)
        turned = None if self.inputs is None else self.inputs.transposed()
        for apply, operator in ((_on_inputs, turned), (_on_outputs, self.outputs)):
            if operator is not None:
                met = weight if total is None else weight + total
                change = apply(operator.change, operator.size, met)
                total = change if total is None else total + change
        beside = _dense(self.beside, weight)
        if total is None or beside is None:
            kept = beside if total is None else total
            return torch.zeros_like(weight) if kept is None else kept
        return total + beside

    def changed(self, weight: Tensor) -> Tensor:
        """W' in the weight's shape, for a float32 or float64 weight."""
        total = plus(weight, self.inside)
        if self.inputs is not None:
            turned = self.inputs.transposed()
            total = _on_inputs(turned.product, turned.size, total)
        if self.outputs is not None:
            total = _on_outputs(self.outputs.product, self.outputs.size, total)
        return plus(total, self.beside)


def _on_outputs(run: Callable[[Tensor], Tensor], size: int, weight: Tensor) -> Tensor:
    """What `run` makes of the columns of a weight, in the weight's shape."""
    # Contiguous as W is: BLAS may round a product with a transposed weight in another way.
    return run(weight.reshape(size, -1).T).T.contiguous().view(weight.shape)


def _on_inputs(run: Callable[[Tensor], Tensor], size: int, weight: Tensor) -> Tensor:
    """What `run` makes of the rows of a weight, in the weight's shape. With the size I it runs on the input
    channels alone, at each position of the kernel.

    Operators act on vectors, and a row w of W becomes w M, which is M^T applied to w.
    """
    flat = weight.reshape(weight.shape[0], -1)
    if size == flat.shape[1]:
        return run(flat).reshape(weight.shape)
    return run(flat.view(len(flat), size, -1).transpose(1, 2)).transpose(1, 2).reshape(weight.shape)


def moved(value: T, device: torch.device, dtype: torch.dtype | None = None) -> T:
    """An operator, form or tuple of these with its tensors on `device`; the same object if they are there.

    Floating-point tensors are converted to `dtype`, if it is given; indices keep theirs. Outside of inference
    mode none of them is an inference tensor, except while torch.compile traces.
    """
    if isinstance(value, Tensor):
        narrow = dtype if value.is_floating_point() else None
        there = value.to(device, narrow or value.dtype)
        # torch.compile cannot trace the last two.
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not there.is_inference():
            return there  # type: ignore[return-value]
        return there.clone()  # type: ignore[return-value]
    if isinstance(value, tuple):
        held = cast("tuple[object, ...]", value)
        items = tuple(moved(item, device, dtype) for item in held)
        # torch.compile cannot compare tuples for identity.
        kept = not torch.compiler.is_compiling() and all(map(is_, items, held))
        return value if kept else items  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known: Any = value
        # A field that is not an argument, such as `Permuted.inverse`, is computed again from the others.
        fields = {
            entry.name: moved(getattr(known, entry.name), device, dtype)
            for entry in dataclasses.fields(known)
            if entry.init
        }
        if torch.compiler.is_compiling():
            return replace(known, **fields)
        changed = {name: field for name, field in fields.items() if field is not getattr(known, name)}
        return replace(known, **changed) if changed else known
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """A tensor itself, or the tensors in a tuple, a list or the fields of an object."""
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, (int, float)):
        return []
    many = isinstance(value, (tuple, list))
    inner = cast("Iterable[Any]", value if many else getattr(value, "__dict__", {}).values())
    return [tensor for each in inner for tensor in tensors_of(each)]


def _dense(forms: Sequence[Additive], weight: Tensor) -> Tensor | None:
    return add_up(forms, weight.dtype, weight.device).reshape(weight.shape) if forms else None
