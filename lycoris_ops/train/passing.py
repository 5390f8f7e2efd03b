"""Refuse a backward pass through a packed layer that lets no gradient through to what comes before it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import TrainError
from ..maths.divided import is_divided
from ..maths.tensors import is_plain
from ..modules.named import named_modules


def watch(module: nn.Module) -> list[RemovableHandle]:
    """Watch the packed layers of a model until these handles are removed.

    A layer whose output has no graph, though its input has one, raises TrainError in the backward pass, once
    a gradient reaches that input by another way. Without a backward pass, and in graphs of torch.compile,
    nothing is raised.
    """
    return [
        layer.register_forward_hook(partial(_look, path), with_kwargs=True)
        for path, layer in named_modules(module)
        if _packed(layer) is not None
    ]


def _packed(module: nn.Module) -> Tensor | None:
    held: Mapping[str, Tensor | None] = cast("Any", module)._parameters
    return next(
        (
            value
            for value in held.values()
            if value is not None and not (is_plain(value) or is_divided(value))
        ),
        None,
    )


def _look(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    if isinstance(y, Tensor) and not y.requires_grad:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor) and x.requires_grad:
                # torch has no type hints for its arguments.
                cast("Any", x).register_hook(partial(_refuse, path, module))


def _refuse(path: str, module: nn.Module, gradient: Tensor) -> None:
    raise TrainError("E-layer-without-backward", weight=path, name=type(_packed(module)).__name__)
