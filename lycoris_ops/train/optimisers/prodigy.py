"""Prodigy (arXiv 2306.06101), of the package prodigyopt. It finds the rate itself."""

from __future__ import annotations

from . import OptimiserFamily

FAMILY = OptimiserFamily.packaged("prodigy", "prodigyopt:Prodigy", lr=1.0, one_rate=True)
