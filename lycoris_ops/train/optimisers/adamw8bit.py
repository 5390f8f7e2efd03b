"""AdamW with states of 8 bits (arXiv 2110.02861), of the package bitsandbytes."""

from __future__ import annotations

from . import OptimiserFamily

FAMILY = OptimiserFamily.packaged("adamw8bit", "bitsandbytes.optim:AdamW8bit", lr=1e-4)
