"""The ways in which a valid file is changed, one family a file.

Each module has `MUTATIONS`, functions of a random generator and a seed. They return the changed file, or None
where the seed has no place for the change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lycoris_ops.discovery import discover

from ..case import Case
from ..seeds import Seed

Mutation = Callable[[random.Random, Seed], "Case | None"]


def families() -> list[Sequence[Mutation]]:
    """The mutations of each module of this folder."""
    return [module.MUTATIONS for module in discover(__name__) if hasattr(module, "MUTATIONS")]
