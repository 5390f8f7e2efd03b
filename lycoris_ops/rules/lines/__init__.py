"""The forms of a line of block rules, one in each file. A file added here is registered.

A form is a function `read(text) -> Line | None`, which returns None for a line of another form and raises
RuleError for a faulty line of its own. Forms are tried in the order of their `ORDER`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..scene import Outcome, Scene, Value


@dataclass(frozen=True)
class Line(ABC):
    """A parsed line of block rules."""

    text: str

    @abstractmethod
    def weigh(self, scene: Scene, seed: int, /) -> Outcome[Value]:
        """The values for the layers of an adapter. A vector's letters for random values use the seed.

        Raises RuleError where the line does not fit the model.
        """

    def __str__(self) -> str:
        return self.text
