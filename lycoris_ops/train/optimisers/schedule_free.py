"""AdamW that averages the weights in place of a schedule (arXiv 2405.15682), of the package schedulefree."""

from __future__ import annotations

from . import OptimiserFamily

FAMILY = OptimiserFamily.packaged("schedulefree", "schedulefree:AdamWScheduleFree", lr=1e-3, averages=True)
