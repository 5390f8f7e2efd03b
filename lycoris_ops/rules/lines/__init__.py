"""The forms of a line of block rules, one in each file. A file that is put here is registered.

A form is a function `read(text) -> Line | None`, which returns None for a line of another form and
raises RuleError for one of its own that it does not understand. `ORDER` says when it is asked.
"""

from __future__ import annotations

from typing import Protocol

from ..scene import Outcome, Scene, Value


class Line(Protocol):
    """A line of block rules that has been understood."""

    def weigh(self, scene: Scene, seed: int, /) -> Outcome[Value]:
        """What it gives each layer of an adapter, with random letters drawn from the seed.

        Raises RuleError where it cannot be for this model.
        """
        ...

    def __str__(self) -> str: ...
