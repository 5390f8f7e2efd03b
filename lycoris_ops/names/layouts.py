"""All names of the layers in one component of a model: its own, other tools', and those of usual fusions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from ..maths.shapes import Shape
from .architectures import Slice, Slices, recognise
from .architectures.notation import Model
from .fused_attention import fallback

LONG = 256
"""Characters of the longest path that has other names than its own. Real ones have about 100."""

Names = Mapping[str, Slices]
"""Names of layers, each with the slices of the model that it means."""


class Layers:
    """The layers of one component of a model, by the shapes of their weights. The model is recognised
    once."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes

    @cached_property
    def _short(self) -> Mapping[str, Shape]:
        return {path: shape for path, shape in self.shapes.items() if len(path) <= LONG}

    @cached_property
    def model(self) -> Model | None:
        """The model with other tools' names for it; None for an unknown architecture."""
        return recognise(self._short)

    @cached_property
    def _in_diffusers(self) -> Names:
        return self.model.in_diffusers() if self.model else {}

    def own(self) -> Names:
        """The paths that the model itself has."""
        return {path: (Slice(path),) for path in self.shapes}

    def diffusers(self) -> Names:
        """The paths in diffusers' model; empty for a model that diffusers does not have."""
        return self._in_diffusers

    def diffusers_lokr(self) -> Names:
        """The paths in diffusers' model after it has fused all projections, as it does to read LoKr.

        Empty for a model for which diffusers reads no LoKr.
        """
        return self.model.in_diffusers_with_lokr() if self.model else {}

    def diffusers_or_own(self) -> Names:
        """The paths in diffusers' model, or the model's own if diffusers does not have it."""
        return self.diffusers() or self.own()

    def elsewhere(self) -> Names:
        """All other names in files that are not paths of the model."""
        return self.model.elsewhere() if self.model else {}

    def usual(self) -> Names:
        """The usual names of fused and split layers, see `fused_attention`."""
        return fallback(self._short)
