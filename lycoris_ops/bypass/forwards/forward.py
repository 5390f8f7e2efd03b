"""What the forward passes of all forms share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ...changes.operators import tensors_of
from ...maths.recompute import by_torch_func
from ...maths.scratch import scratch
from ...maths.shapes import Shape

Strengths = Sequence[float]
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One form of one layer, added at strength `strengths[slot]`."""

    form: Any
    slot: int


class Forward(Protocol):
    """All forms of one kind that change the same outputs of a module."""

    @property
    def reads(self) -> Sequence[Tensor] | None:
        """See `Prepared`."""
        ...

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> Tensor:
        """These outputs y with the change added; y may be written over and returned.

        For a linear layer x is (tokens, inputs) and y (tokens, outputs). For a convolution both have the
        channels second, and x is padded already where padding is not by zeros.
        """
        ...


class Prepared(Generic[T]):
    """What passes compute from the forms of layers: once, or in each pass if a tensor of the forms learns.

    Even then it is computed only once if the result holds only the forms' own tensors, without a conversion:
    their values are always current.

    `reads` holds the tensors of all forms if at least one of them learns, because each pass sees their
    current values. Else it is None. `make` must hold no tensors, so that a copied model uses its own.
    """

    def __init__(self, items: Sequence[Item], make: Callable[[Sequence[Item]], T]) -> None:
        tensors = [tensor for item in items for tensor in tensors_of(item.form)]
        learns = any(tensor.requires_grad for tensor in tensors)
        self.reads: Sequence[Tensor] | None = tensors if learns else None
        self._make = make
        # Kept only where needed: tensors that `make` moved to a device would be in memory twice.
        self._items = items if learns else ()
        self._made = None if learns else make(items)
        self._kinds: Sequence[tuple[torch.dtype, torch.device]] = ()
        """The dtypes and devices of `reads` at the last call. `_made` is None if it cannot be kept."""

    def __call__(self) -> T:
        if self.reads is None:
            assert self._made is not None
            return self._made
        for one, kind in zip(self.reads, self._kinds, strict=False):
            if (one.dtype, one.device) != kind:
                self._kinds = ()
                break
        if self._kinds:
            return self._make(self._items) if self._made is None else self._made
        made, self._kinds = self._make(self._items), [(one.dtype, one.device) for one in self.reads]
        own_tensors = tensors_of(made)
        own = bool(own_tensors) and all(
            any(tensor is other for other in self.reads) for tensor in own_tensors
        )
        self._made = made if own else None
        return made


@contextmanager
def outliving() -> Generator[None]:
    """A context that makes no inference tensors, so that later passes with gradients can use its results.

    Gradients are recorded inside as they are outside. This function is itself a generator, because torch 2.7
    does not compile a function that returns one.
    """
    # torch.compile cannot trace `is_inference_mode_enabled`.
    if not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
        yield
        return
    # Leaving inference mode turns gradients on, so that they have to be set again.
    recording = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(recording):
        yield


def in_own_dtypes(device: torch.device) -> AbstractContextManager[Any]:
    """A context where a product has the dtype of its factors.

    Autocast would narrow some results, and these cannot be added in place to wider tensors.
    """
    kind = device.type
    # Without `narrowing`, because each call takes long beside a small layer.
    if kind in ("cpu", "cuda") and not torch.is_autocast_enabled(kind):
        return nullcontext()
    return nullcontext() if narrowing(device) is None else torch.autocast(kind, enabled=False)


def narrowing(device: torch.device) -> torch.dtype | None:
    """The dtype to which autocast narrows the factors of products on a device; None where it is off."""
    kind = device.type
    # Some devices, such as meta, have no autocast. To ask takes long beside a small layer.
    if not (kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def narrowed(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which autocast narrows to this dtype on a device; None leaves autocast as it is."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def recorded(*tensors: Tensor) -> bool:
    """Whether gradients are recorded through any of these; then no result of them may be written over."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor.requires_grad:
            return True
    return by_torch_func()


def plus_product(y: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
    """y + alpha * left @ right, for matrices or for a batch of them.

    It is written into y unless gradients are recorded: y is usually a view, and for each write into a view
    the backward pass copies the whole gradient, fills another one with zeros and adds the two.
    """
    anew = left.requires_grad or recorded(y, left, right)
    if y.ndim == 3:
        run = torch.baddbmm if anew else Tensor.baddbmm_
    else:
        run = torch.addmm if anew else Tensor.addmm_
    return run(y, left, right, alpha=alpha)


def joined(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Several tensors as one along an axis; a single one as it is, without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), axis)


def buffer(use: str, shape: Shape, like: Tensor) -> Tensor:
    """An uninitialised tensor for one product, in the dtype and on the device of `like`.

    It is a buffer that all layers use in turn. Where gradients are recorded through `like` it is fresh
    memory, because autograd keeps it for the backward pass.
    """
    if recorded(like):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    return scratch(f"bypass {use}", shape, like.dtype, like.device)
