"""Stochastic gradient descent, torch's. Without options it has no momentum."""

from __future__ import annotations

import torch

from . import OptimiserFamily, built

FAMILY = OptimiserFamily(
    "sgd", lambda groups, options: built(torch.optim.SGD, groups, options), lr=1e-2, elementwise=True
)
