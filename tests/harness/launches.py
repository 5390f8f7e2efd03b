"""What torch launches on a device while some code runs, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"})
"""Operations that run nothing, though they return no view."""
READING = frozenset(
    {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "_linalg_check_errors"}
)
"""Operations whose result, or its size, has to be known before the program goes on."""


class Launches(TorchDispatchMode):
    """Records the names of the operations that run on a device, but not of those that only make views.

    `waits` has the operations for which the program waits until an accelerator has finished its work, and
    `wide` those that make float64 on one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []
        self.wide: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        returned = [one.alias_info for one in func._schema.returns]
        views = any(one is not None and not one.is_write for one in returned)
        if not views and name not in EMPTY and func.namespace == "aten":
            self.names.append(name)
        found = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        made = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
        away = any(one.device.type != "cpu" for one in given)
        # A copy to the CPU waits, and so does an index of flags: their number decides the size of the result.
        fetched = away and any(one.device.type == "cpu" for one in made)
        flags = name == "index" and any(one.dtype == torch.bool for one in given)
        if away and (name in READING or fetched or flags):
            self.waits.append(name)
        self.wide += [name for one in made if one.device.type != "cpu" and one.dtype == torch.float64]
        return found


TOKENS = 8
Maker = Callable[[nn.Module], list[nn.Parameter]]
"""Adapts a module, and returns what is trained."""


def counted(work: Callable[[], object]) -> int:
    with Launches() as launches:
        work()
    return len(launches.names)


def works_of(
    size: int, device: str, makers: dict[str, Maker], tokens: int = TOKENS
) -> tuple[dict[str, dict[str, Callable[[], object]]], Callable[[str], None]]:
    """The passes and the steps of modules with layers, by what is done and by whose layer it is; and what
    forgets gradients."""
    x = torch.randn(tokens, size).to(device).requires_grad_()
    gradient = torch.randn(tokens, size).to(device)
    made: dict[str, tuple[nn.Module, list[nn.Parameter]]] = {}
    for name, make in makers.items():
        base = nn.Sequential(nn.Linear(size, size)).to(device).requires_grad_(False)
        made[name] = (base, make(base))

    def forward(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return module(x)

    def step(module: nn.Module) -> None:
        module(x).backward(gradient)

    def forget(name: str) -> None:
        for parameter in (*made[name][1], x):
            parameter.grad = None

    modules = {name: module for name, (module, _) in made.items()}
    works: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {name: partial(forward, module) for name, module in modules.items()},
        "step": {name: partial(step, module) for name, module in modules.items()},
    }
    return works, forget


def launches_of(size: int, device: str, makers: dict[str, Maker]) -> dict[str, list[int]]:
    """The launches of a pass and of a step, by whose layer it is."""
    found: dict[str, list[int]] = {name: [] for name in makers}
    works, forget = works_of(size, device, makers)
    for each in works.values():
        for name, work in each.items():
            # The first pass may prepare what is kept.
            work()
            forget(name)
            found[name].append(counted(work))
    return found
