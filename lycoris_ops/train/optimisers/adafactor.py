"""Adafactor (arXiv 1804.04235), which torch has since 2.5.

A step is proportional to the root mean square of each tensor, or to `eps[1]` if that is larger. Tensors that
start at zero are slow at first, so the usual rate is higher than AdamW's.
"""

from __future__ import annotations

from . import OptimiserFamily, built, class_of_torch

FAMILY = OptimiserFamily(
    "adafactor",
    lambda groups, options: built(class_of_torch("Adafactor", "2.5"), groups, options),
    lr=1e-2,
)
