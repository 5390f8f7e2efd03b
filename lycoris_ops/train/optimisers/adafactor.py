"""Adafactor (arXiv 1804.04235), torch's, since 2.5.

A step is in proportion to the root mean square of each tensor, of which at least `eps[1]` counts. The tensors
that start at zero are slow at first, so the usual rate is higher than that of AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...errors import TrainError
from . import Family, Group, Optimiser, built


def _make(groups: Sequence[Group], options: Mapping[str, Any]) -> Optimiser:
    found = getattr(torch.optim, "Adafactor", None)
    if found is None:
        raise TrainError("this torch has no Adafactor", got=torch.__version__, expected="torch 2.5 or newer")
    return built(found, groups, options)


FAMILY = Family("adafactor", _make, lr=1e-2)
