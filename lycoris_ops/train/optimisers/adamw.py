"""AdamW (arXiv 1711.05101), torch's. On CPUs and CUDA in its fused form, unless the options name a form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import Optimiser, OptimiserFamily, ParameterGroup, built, tensors_of


def _make(groups: Sequence[ParameterGroup], options: Mapping[str, Any]) -> Optimiser:
    free = not {"fused", "foreach", "differentiable"} & set(options)
    # Fused since torch 2.4 on these devices; on a CPU that saves a call for each tensor and operation.
    if free and all(tensor.device.type in ("cuda", "cpu") for tensor in tensors_of(groups)):
        options = {**options, "fused": True}
    return built(torch.optim.AdamW, groups, options)


FAMILY = OptimiserFamily("adamw", _make, lr=1e-4, elementwise=True)
