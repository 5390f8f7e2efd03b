"""A device that is not the CPU, on any machine: its tensors are the CPU's, and it refuses to mix with them.

It needs a process of its own, since torch knows one such device and keeps it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration as registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
# Torch types none of this.
TORCH: Any = torch
# The CPU's tensors by the storages that stand for them, which are kept so that none is used again.
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
"""What torch makes of strides itself, which are not told here."""
MADE = ("eye", "eye.m", "abs")
"""What torch makes in a tensor that it resizes, whose size is not told here."""
CAST = ("layer_norm", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
crossed: list[tuple[int, ...]] = []
"""The shapes of tensors that went from one device to another."""


def on(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def inner(value: Any) -> Any:
    return held[value.untyped_storage()._cdata][1] if on(value) else value


def run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run every operator of the device on the CPU, on the tensors behind these."""
    name, tensors = operator.name(), [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    mixed = len({x.device.type for x in tensors if x.ndim or on(x)}) > 1
    given, named = tree_map(inner, (args, kwargs))
    # A number in the place of a tensor, which torch unpacks on the way here.
    wanted = [argument.type.kind() == "TensorType" for argument in operator._schema.arguments]
    given: Any = [
        torch.tensor(value) if is_tensor and isinstance(value, (bool, int, float)) else value
        for value, is_tensor in zip(given, wanted, strict=False)
    ]
    if name == "aten::_copy_from":
        crossed.extend([tuple(args[0].shape)] * mixed)
        given[1].copy_(given[0])
        return args[1]
    if mixed or ("as_strided" in name and not given[0].is_contiguous()):
        raise RuntimeError(f"{name} cannot be had for tensors of {len(tensors)} kinds")
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
    """In place, by which a tensor gets another shape."""
    x.data = shown(inner(x).squeeze(dim))
    return x


def cast(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator under autocast."""
    keys = TORCH._C.DispatchKeySet(TORCH._C.DispatchKey.AutocastPrivateUse1)
    with TORCH._C._ExcludeDispatchKeyGuard(keys):
        dtype = torch.float32 if operator.name() == "aten::layer_norm" else torch.get_autocast_dtype(NAME)
        return operator(*tree_map(lambda x: x.to(dtype) if on(x) else x, args), **kwargs)


class Module(registration._DummyBackendModule):  # type: ignore[misc]
    """What torch asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def registered() -> list[Any]:
    """The device's registrations, which end with them."""
    TORCH.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
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
