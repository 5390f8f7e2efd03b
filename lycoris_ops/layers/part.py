"""Apply a layer to part of a weight, or part of a layer to a weight."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import Dependent, Form, Parameter, change_of
from ..algorithms.checks import a_layer
from ..errors import LayerError, located
from ..maths.shapes import Rows, Shape, fits, shown


@dataclass(frozen=True)
class Part:
    """A layer, or its rows `window`, that changes `rows` of a weight or of its bias. None means all rows.

    An adapter's separate q, k and v each change some `rows` of a fused qkv weight. An adapter's fused qkv
    changes the separate weights of q, k and v by one `window` each. `parameter` says whether this changes the
    weight or the bias. Errors name the `file` and `key` of the layer.
    """

    layer: Layer
    rows: Rows | None = None
    window: Rows | None = None
    file: str | None = None
    key: str | None = None
    parameter: Parameter = "weight"

    def named(self) -> AbstractContextManager[None]:
        """A context that adds the file and key of the layer to errors."""
        return located(file=self.file, key=self.key)

    def shape_met(self, shape: Sequence[int]) -> Shape:
        """The shape of the rows that the layer changes in a weight of `shape`, before any enlargement."""
        return (self.rows[1] - self.rows[0], *shape[1:]) if self.rows else tuple(shape)

    def of_outputs(self, shape: Sequence[int]) -> bool:
        """Whether the change of a weight of this shape needs no other inputs than the weight's own."""
        rows, *rest = self.shape_met(shape)
        known = self.layer.extent if self.window is not None else ()
        met = ((known[0] if known else None) or rows, *rest)
        return self.layer.additive() is not None or self.layer.of_outputs(met)

    def enlarged(self) -> Shape | None:
        """The shape to which the weight is first enlarged with zeros; None if it is not."""
        return self.layer.enlarged() if self.parameter == "weight" else None

    def check_fit(self, shape: Sequence[int]) -> None:
        """Raise LayerError, with file and key, unless the change can be added to a weight of this shape."""
        with self.named():
            self._check_fit(self.shape_met(shape))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the change can be added to a weight of this shape."""
        try:
            self._check_fit(self.shape_met(shape))
        except LayerError:
            return False
        return True

    def _check_fit(self, met: Shape) -> None:
        stored = self.layer.extent if self.parameter == "weight" else self.layer.bias_extent
        if not met:
            raise self.layer.misfit(met, shown(stored or ()))
        total = met[0]
        if self.window is not None:
            known = stored[0] if stored else None
            if self.window[1] - self.window[0] != met[0] or (known is not None and self.window[1] > known):
                raise LayerError(
                    "E-rows-misfit",
                    algorithm=a_layer(self.layer.algorithm),
                    parameter=self.parameter,
                    first=self.window[0],
                    end=self.window[1],
                    stored=shown(stored or ()),
                    expected=str(list(met)),
                )
            # Check the uncut layer, with all of its rows.
            total = total if known is None else known
        if self.parameter == "weight":
            self.layer.check_fit((total, *met[1:]))
        elif stored is None:
            raise LayerError("E-layer-changes-no-bias")
        elif not fits(stored, (total,)):
            raise self.layer.misfit((total,), shown(stored))

    def forms(self) -> tuple[Form, ...]:
        """The forms of the layer cut to `window`. Forms that depend on the weight get the file and key.

        Raises LayerError, with file and key, where they cannot be formed, or if these rows depend on others.
        """
        with self.named():
            layer = self.layer if self.window is None else self.layer.rows(self.window)
            forms = layer.forms(self.parameter)
        return tuple(
            replace(form, file=self.file, key=self.key) if isinstance(form, Dependent) else form
            for form in forms
        )

    def delta(self, value: Tensor) -> Tensor:
        """The change to the whole weight or bias at strength 1, in its shape; zero outside `rows`. Float32,
        or float64 for a float64 value. Out of place, so that gradients pass through.
        """
        start, stop = self.rows or (0, len(value))
        forms = self.forms()
        with self.named():
            change = change_of(forms, value[start:stop])
        around = [0, 0] * (value.ndim - 1) + [start, len(value) - stop]
        return torch.nn.functional.pad(change, around) if self.rows else change


def part_of(layer: Layer | Part) -> Part:
    """Make a part of a whole layer on a whole weight. Parts stay as they are."""
    return layer if isinstance(layer, Part) else Part(layer)
