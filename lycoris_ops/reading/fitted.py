"""The report of a fit as data: how much of the given changes each layer of the adapter keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

UNCHANGED = "because it changes nothing"
"""The reason for leaving out weights that are equal in both models, or factors that are zero."""


@dataclass(frozen=True)
class FitRow:
    """The result of fitting one change of a weight."""

    layer: str
    """The name of the layer in the new adapter."""
    before: str
    """The source of the change, in words: `lora 64`, `difference`."""
    algorithm: str
    """The kind of the new layer."""
    rank: int | None
    parameters: int
    energy: float
    """||D||^2 of the change."""
    lost: float
    """||D - D'||^2, with D' the change of the new layer before its tensors are rounded to their dtype."""
    noise: float = 0.0
    """The share of the energy that comes from rounding in the sources."""

    @property
    def error(self) -> float:
        """||D - D'|| / ||D||."""
        return math.sqrt(self.lost / self.energy) if self.energy > 0 else 0.0


@dataclass(frozen=True)
class FitReport:
    """The results for all changes of an adapter, or of the difference of two models."""

    rows: tuple[FitRow, ...]
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    """The layers or weights that the new adapter does not hold, with the reasons."""
    lost: float = 0.0
    """The energy of changes that were left out to save space."""
    missing: tuple[str, ...] = ()
    """Other parts of the sources that are missing from the new adapter, one line each."""
    notes: tuple[str, ...] = ()
    """Other differences, one line each."""
    stays: str = ""
    """Why the new adapter keeps all its source's layers unchanged; "" where it does not."""
    source_size: int | None = None
    """Bytes of the tensors that the new adapter replaces; None where there are none."""

    @property
    def energy(self) -> float:
        """||D||^2 of all changes together."""
        return sum(row.energy for row in self.rows) + self.lost

    @property
    def error(self) -> float:
        """||D - D'|| / ||D|| of all changes together."""
        lost = sum(row.lost for row in self.rows) + self.lost
        return math.sqrt(lost / self.energy) if self.energy > 0 else 0.0

    @property
    def noise(self) -> float:
        """The share of the energy that comes from rounding in the sources."""
        return sum(row.noise for row in self.rows) / self.energy if self.energy > 0 else 0.0

    @property
    def loss(self) -> float:
        """The error without the share that comes from rounding in the sources."""
        return math.sqrt(max(0.0, self.error**2 - self.noise))

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    def data(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {
            "error": self.error,
            "noise": self.noise,
            "parameters": self.parameters,
            "layers": [{**asdict(row), "error": row.error} for row in self.rows],
            "left_out": dict(self.left_out),
            "missing": list(self.missing),
            "notes": list(self.notes),
        }
