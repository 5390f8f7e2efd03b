"""The form in which architecture modules give other names of a model's layers, and what the names mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ...maths.shapes import Shape


@dataclass(frozen=True)
class Place:
    """A layer of the model by its path, or some of its rows."""

    path: str
    rows: tuple[int, int] | None = None
    """First row and end; None for all rows."""


Places = tuple[Place, ...]
"""What a name means: one place, or several whose rows, one below the other, are those of the named layer."""

Aliases = Callable[[Mapping[str, Shape]], Mapping[str, Places]]
"""A function from the paths of a model's layers, with their weights' shapes, to other names and their places.

A shape is () where it is not known; names that depend on it (parts of a layer's rows) are left out then. The
result is empty for a model of another architecture.
"""


class Paths(dict[str, Shape]):
    """The paths of a model's layers with their weights' shapes. They are not changed once they are there."""

    @cached_property
    def forms(self) -> Mapping[str, list[str]]:
        """The paths by their form, see `form_of`. A pattern can fit paths of its own form only.

        It is kept, because every table asks for it.
        """
        forms: dict[str, list[str]] = {}
        for path in self:
            forms.setdefault(form_of(path), []).append(path)
        return forms


_NUMBERS = str.maketrans(dict.fromkeys("0123456789*", "#"))


def form_of(path: str) -> str:
    """A path or a pattern with `#` for every number and star."""
    form = path.translate(_NUMBERS)
    while "##" in form:
        form = form.replace("##", "#")
    return form
