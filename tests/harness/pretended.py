"""A pretended device, for any machine: the CPU holds its tensors, but they cannot be mixed with the CPU's.

It needs a process of its own, since torch takes one such device only, and keeps it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration as registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
# torch has no type hints for any of this.
TORCH: Any = torch
# For the id of each storage of the device: the storage, kept so that its id is not used again, and the CPU's
# tensor behind it.
held: dict[int, tuple[Any, Tensor]] = {}
VIEWS = (
    *(
        "transpose.int",
        "permute",
        "t",
        "select.int",
        "slice.Tensor",
        "expand",
        "unsqueeze",
        "squeeze",
        "squeeze.dim",
    ),
    *("squeeze.dims", "view.dtype", "split.Tensor", "split_with_sizes", "unbind.int", "diagonal", "unfold"),
)
"""Operators that make views. torch would make them by strides, which it does not pass on to this device."""
MADE = ("eye", "eye.m", "abs")
"""Operators whose result torch would resize, without passing the size on to this device."""
CAST = ("layer_norm", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
crossed: list[tuple[int, ...]] = []
"""The shapes of tensors that went from one device to another."""
blocking: list[tuple[int, ...]] = []
"""The shapes of those that the program waited for, or would have, had they been in pinned memory."""


def on(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def inner(value: Any) -> Any:
    return held[value.untyped_storage()._cdata][1] if on(value) else value


def run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator of the device on the CPU, on the tensors behind its arguments."""
    name, tensors = operator.name(), [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    mixed = len({x.device.type for x in tensors if x.ndim or on(x)}) > 1
    given, named = tree_map(inner, (args, kwargs))
    # On the way here torch turns a tensor of one value into a number: make it a tensor again.
    wanted = [argument.type.kind() == "TensorType" for argument in operator._schema.arguments]
    given: Any = [
        torch.tensor(value) if is_tensor and isinstance(value, (bool, int, float)) else value
        for value, is_tensor in zip(given, wanted, strict=False)
    ]
    if name == "aten::_copy_from":
        crossed.extend([tuple(args[0].shape)] * mixed)
        waits = mixed and True not in (*args[2:], kwargs.get("non_blocking"))
        blocking.extend([tuple(args[0].shape)] * waits)
        given[1].copy_(given[0])
        return args[1]
    if mixed or ("as_strided" in name and not given[0].is_contiguous()):
        raise RuntimeError(f"{name} refuses {len(tensors)} tensors: several devices, or not contiguous")
    if "device" in named:
        named["device"] = torch.device("cpu")
    # The device's tensors pass for contiguous ones.
    views = ("aten::view", "aten::_reshape_alias")
    made = given[0].reshape(given[1]) if name in views else operator(*given, **named)
    known = {id(inner(x)): x for x in tensors if on(x)}

    return tree_map(
        lambda value: (
            known[id(value)] if id(value) in known else shown(value) if isinstance(value, Tensor) else value
        ),
        made,
    )


def shown(value: Tensor) -> Tensor:
    """A tensor of the device, with one of the CPU behind it."""
    tensor: Tensor = TORCH._C._acc.create_empty_tensor(value.shape, value.dtype)
    held[tensor.untyped_storage()._cdata] = tensor.untyped_storage(), value
    return tensor


def squeeze(x: Tensor, dim: int) -> Tensor:
    """Squeeze in place: the tensor itself gets another shape."""
    x.data = shown(inner(x).squeeze(dim))
    return x


def cast(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator under autocast."""
    keys = TORCH._C.DispatchKeySet(TORCH._C.DispatchKey.AutocastPrivateUse1)
    with TORCH._C._ExcludeDispatchKeyGuard(keys):
        dtype = torch.float32 if operator.name() == "aten::layer_norm" else torch.get_autocast_dtype(NAME)
        return operator(*tree_map(lambda x: x.to(dtype) if on(x) else x, args), **kwargs)


class Module(registration._DummyBackendModule):  # type: ignore[misc]
    """What torch asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def registered() -> list[Any]:
    """Register the device, for as long as the returned objects live."""
    TORCH.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    # accelerate empties the device's cache of memory; there is none, and torch asserts that there is.
    TORCH._C._accelerator_isAllocatorInitialized = lambda: False
    whole, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    whole.fallback(run, "PrivateUse1")
    whole.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, function, key in ((VIEWS + MADE, run, "PrivateUse1"), (CAST, cast, "AutocastPrivateUse1")):
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(TORCH.ops.aten, packet), overload or "default")
            aten.impl(name, partial(function, operator), key)
    aten.impl("squeeze_.dim", squeeze, "PrivateUse1")
    return [whole, aten]
