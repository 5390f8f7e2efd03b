"""A layer on a part of a weight, or a part of a layer on a weight."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from ..algorithms import Layer
from ..algorithms.base import a_layer, show
from ..changes.forms import Dependent, Form
from ..errors import LayerError, located
from ..maths.tensors import Shape

Rows = tuple[int, int]
"""The first row and the end of a range of rows."""


@dataclass(frozen=True)
class Part:
    """A layer, or `window` of its rows, for `rows` of a weight; None means all.

    An adapter's q, k and v meet rows of a fused qkv weight; an adapter's qkv meets, row range by row
    range, the weights of q, k and v. `file` and `key` say where the layer is from, for errors.
    """

    layer: Layer
    rows: Rows | None = None
    window: Rows | None = None
    file: str | None = None
    key: str | None = None

    def named(self) -> AbstractContextManager[None]:
        """Errors raised inside say whose they are."""
        return located(file=self.file, key=self.key)

    def shape_met(self, shape: Sequence[int]) -> Shape:
        """The shape of what the layer meets of a weight of `shape`, before any enlargement."""
        return (self.rows[1] - self.rows[0], *shape[1:]) if self.rows else tuple(shape)

    def check_fit(self, shape: Sequence[int]) -> None:
        """Raise LayerError, with the places, unless the change can be added to a weight of this shape."""
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
        if self.window is None:
            self.layer.check_fit(met)
            return
        stored = self.layer.extent
        total = stored[0] if stored else None
        if self.window[1] - self.window[0] != met[0] or (total is not None and self.window[1] > total):
            raise LayerError(
                f"rows of {a_layer(self.layer.algorithm)} do not fit the weight",
                got=f"rows {self.window[0]} to {self.window[1]} of {show(stored)}",
                expected=str(list(met)),
            )
        self.layer.check_fit((total if total is not None else met[0], *met[1:]))

    def forms(self) -> tuple[Form, ...]:
        """The forms of the rows meant. Raises LayerError, with the places, where there are none."""
        with self.named():
            forms = self.layer.forms()
            if self.window is not None:
                forms = tuple(form.rows(*self.window) for form in forms)
        return tuple(
            replace(form, file=self.file, key=self.key) if isinstance(form, Dependent) else form
            for form in forms
        )
