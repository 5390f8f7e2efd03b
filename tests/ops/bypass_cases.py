"""Modules and layers beside them, for the tests of the bypass and of its gradients."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from layers import KINDS, Factors
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Case:
    """A module, by the shape of its weight and the options of a convolution."""

    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    bias: bool = True
    leading: tuple[int, ...] = (2,)
    """Dimensions of the input before its channels."""

    @property
    def groups(self) -> int:
        return self.options.get("groups", 1)

    def module(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        out, inputs, *kernel = self.shape
        if not kernel:
            made: nn.Module = nn.Linear(inputs, out, bias=self.bias, dtype=dtype)
        else:
            made = CONVOLUTIONS[len(kernel) - 1](
                inputs * self.groups, out, tuple(kernel), bias=self.bias, dtype=dtype, **self.options
            )
        return made.requires_grad_(False)

    def input(self, dtype: torch.dtype = torch.float64) -> Tensor:
        # The sizes differ, so that exchanged axes show.
        places = (7, 6, 5)[: len(self.shape) - 2]
        return torch.randn(*self.leading, self.shape[1] * self.groups, *places).to(dtype)


MODULES = {
    "linear": Case((12, 18), leading=(2, 5)),
    # An input without a batch.
    "linear-flat": Case((12, 18), bias=False, leading=()),
    "linear-odd": Case((35, 21), leading=(3,)),
    "conv1d": Case((12, 18, 3), {"stride": 2, "padding": 1}),
    "conv1d-dilated": Case((12, 18, 3), {"dilation": 2, "padding": "same"}, bias=False),
    "conv2d": Case((12, 18, 3, 3), {"padding": 1}),
    "conv2d-strided": Case((12, 18, 3, 3), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    "conv2d-1x1": Case((12, 18, 1, 1), leading=()),
    # "reflect" is missing in torch 2.4 for float16 on the CPU.
    "conv2d-wide": Case((10, 6, 1, 5), {"padding": (0, 2), "padding_mode": "circular"}),
    "conv2d-groups": Case((12, 6, 3, 3), {"groups": 3, "padding": 1}),
    # Here blocks of a rotation of the outputs cross the groups.
    "conv2d-groups-crossed": Case((12, 9, 3, 3), {"groups": 2, "padding": 1}),
    "conv2d-depthwise": Case((12, 1, 3, 3), {"groups": 12, "padding": 1}),
    "conv3d": Case((12, 18, 3, 1, 2), {"padding": (1, 0, 1)}),
}
FACTS = [
    (kind, name)
    for (kind, spec), (name, case) in itertools.product(KINDS.items(), MODULES.items())
    if not spec.flat
    and not (spec.linear if len(case.shape) > 2 else spec.needs_kernel)
    # Every block of a BOFT has two halves.
    and (spec.algorithm != "boft" or case.shape[0] % 2 == 0)
]
"""(kind, module) of every combination that exists."""
LAYERS = ("linear", "conv1d", "conv2d", "conv2d-groups-crossed", "conv3d")
"""One module of each kind of layer. The others differ in their geometry, which is not a kind's affair."""

BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.06, torch.float16: 0.01}
"""The largest error that the rounding of a dtype explains, as a share of the largest value of the float64
result."""


def layer(kind: str, case: Case, rank: int = 3, **extra: Tensor) -> lyc.Layer:
    """A random layer of a kind for a module, with further tensors by key suffix."""
    spec = KINDS[kind]
    tensors: Factors = {**spec.make(case.shape, rank), "alpha": torch.tensor(2.0), **extra}
    return ALGORITHMS[spec.algorithm].load(tensors, spec.options)


def beside(layer: lyc.Layer) -> lyc.Part:
    """The part of a layer that changes the bias."""
    return lyc.Part(layer, parameter="bias")


def chained(case: Case, *stages: Any) -> Any:
    """A plan of stages. Each is (layers of the weight,) or (layers of the weight, parts for the bias)."""
    geometry = lyc.geometry_of(case.module())
    plans = [lyc.BypassPlan.build(geometry, list(itertools.chain(*stage))) for stage in stages]
    plan = plans[0]
    for later in plans[1:]:
        plan = plan.then(later)
    return plan


def hook(module: nn.Module, plan: lyc.BypassPlan, **options: Any) -> lyc.Bypass:
    """A bypass on the module; the options are those of `Bypass`."""
    return lyc.Bypass(module, plan, **options).attach()
