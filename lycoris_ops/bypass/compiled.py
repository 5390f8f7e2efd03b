"""A bypass as operations that torch.compile does not look into, so that nothing of it is part of a graph.

A graph gets the number of a bypass as a tensor, so that it serves any bypass with the same hooks. Strengths,
masks, moments and layers are read in each pass: changing them recompiles nothing. The same holds for the
blend of a cross-attention's outputs. The results are those without torch.compile, bit by bit. torch runs
graphs without autocast, so each operation also gets the autocast dtype that was set when its graph was
traced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any, cast
from weakref import WeakValueDictionary
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import LycorisError
from .forwards.forward import narrowed, outliving, recorded

_acting: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = count()


def numbered(acting: object) -> Tensor:
    """Register a `Bypass`, for its `fed` and `changed`, or a `Blend`, for its `blended`.

    Returns its number, by which graphs find it.
    """
    number = next(_numbers)
    _acting[number] = acting
    with outliving():
        return torch.tensor(number, device="cpu")


def see_hooks() -> None:
    """Make torch.compile notice hooks that are added to modules: by default it reuses its older graphs."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()


def keep_id(module: nn.Module, handle: RemovableHandle) -> None:
    """Give a forward hook with `always_call` the same id in all modules.

    Graphs depend on the id of such a hook, and torch gives each hook a new one.
    """
    known: Any = module
    for held in (known._forward_hooks, known._forward_hooks_with_kwargs, known._forward_hooks_always_called):
        held[_ID] = held.pop(handle.id)
    handle.id = _ID


traced = torch.compiler.is_dynamo_compiling
"""Whether torch.compile is tracing. Not `is_compiling`, which is true in all threads while one compiles."""


def stands_apart(*tensors: Tensor) -> bool:
    """Whether torch.compile is tracing and the bypass of this pass stays out of the graph.

    It stays out unless gradients are recorded, or `torch.export` traces, which keeps no bypass.
    """
    if not traced() or recorded(*tensors):
        return False
    # Missing before torch 2.7.
    exporting: Callable[[], bool] | None = getattr(torch.compiler, "is_exporting", None)
    return exporting is None or not exporting()


def _at(number: Tensor, x: Tensor) -> Any:
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise LycorisError("E-bypass-in-cuda-graph")
    return _acting[int(number)]


def _fed(x: Tensor, number: Tensor, dtype: torch.dtype | None) -> Tensor:
    with narrowed(x.device, dtype):
        fed = _at(number, x).fed(x)
    return x.clone(memory_format=torch.contiguous_format) if fed is x else fed.contiguous()


def _change(x: Tensor, fed: Tensor | None, y: Tensor, number: Tensor, dtype: torch.dtype | None) -> None:
    with narrowed(x.device, dtype):
        changed = _at(number, x).changed(x, fed, y)
    if changed is not y:
        y.copy_(changed)


def _apart(
    x: Tensor, fed: Tensor | None, y: Tensor, number: Tensor, dtype: torch.dtype | None, copies: int
) -> Tensor:
    with narrowed(x.device, dtype):
        # A copy already: each of the copies of y is changed in memory of its own.
        return _at(number, x).changed(x, fed, y)


def _blend(total: Tensor, base: Tensor, other: Tensor, number: Tensor, index: int) -> Tensor:
    return _at(number, base).blended(total, base, other, index).contiguous()


# torch has few types for making operations.
_torch = cast("Any", torch)
# A second copy of this library, under another name, has operations of its own.
_ID = -crc32(__name__.encode())
_SPACE = re.sub(r"\W", "_", __name__) + str(-_ID)
_operations = _torch.library.Library(_SPACE, "FRAGMENT")


def _untraced(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function that torch.compile does not trace. The compiler is loaded in the first call and not here:
    it takes seconds, and most programs compile nothing."""

    @cache
    def disabled() -> Callable[..., Any]:
        return _torch.compiler.disable(run)

    def first(*arguments: Any) -> Any:
        return disabled()(*arguments)

    return first


def _operation(schema: str, run: Callable[..., Any], form: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operation of `run` for graphs; `form` returns an empty tensor in the shape of its result."""
    # Inductor leaves operations with this mark out of CUDA graphs. Older versions of torch do not know it.
    mark = getattr(_torch.Tag, "cudagraph_unsafe", None)
    _operations.define(schema, tags=() if mark is None else (mark,))
    name = schema.partition("(")[0]
    _operations.impl(name, _untraced(run), "CompositeExplicitAutograd")
    _torch.library.register_fake(f"{_SPACE}::{name}", form, lib=_operations)
    return getattr(getattr(_torch.ops, _SPACE), name)


def _form_of_apart(x: Tensor, fed: Tensor | None, y: Tensor, *rest: Any) -> Tensor:
    return y.new_empty((rest[-1] * y.shape[0], *y.shape[1:]))


def _form_of_first(first: Tensor, *rest: Any) -> Tensor:
    return first.new_empty(first.shape)


fed = _operation("fed(Tensor x, Tensor number, ScalarType? dtype) -> Tensor", _fed, _form_of_first)
"""What a module is fed in place of x. Here and below, `dtype` is what `narrowing` returned in tracing."""
change = _operation(
    "change(Tensor x, Tensor? fed, Tensor(a!) y, Tensor number, ScalarType? dtype) -> ()",
    _change,
    lambda *_: None,
)
"""Change the output y of a module."""
apart = _operation(
    "apart(Tensor x, Tensor? fed, Tensor y, Tensor number, ScalarType? dtype, int copies) -> Tensor",
    _apart,
    _form_of_apart,
)
"""The output of a module with `Bypass.apart`, for samples in this many copies: see `BoundPlan`."""
blend = _operation(
    "blend(Tensor total, Tensor base, Tensor other, Tensor number, int index) -> Tensor",
    _blend,
    _form_of_first,
)
"""total + factor * (other - base): see `Blend`."""
