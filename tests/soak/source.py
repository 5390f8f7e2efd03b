"""The files of a campaign: which they are follows from its seed and their numbers alone."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import case
from .case import Case
from .crafted import CRAFTED
from .mutators import families
from .seeds import Seed, make

TRIES = 50
"""How often a mutation is drawn until one has a place in its seed."""


class Source:
    """Makes the files of campaigns. `seeds` are the valid files, in the order of `seeds.make`."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.seeds: list[Seed] = make(Path(folder))
        self.families = families()

    def case(self, job: Mapping[str, Any]) -> Case:
        """The file of a job: made by hand, valid, or changed, see `worker`."""
        if "crafted" in job:
            return CRAFTED[job["crafted"]]()
        if "pristine" in job:
            return self.pristine()[job["pristine"]]
        return self.mutated(job["seed"], job["number"])

    def pristine(self) -> list[Case]:
        """Every valid file as it is."""
        return [case.of("nothing", seed, seed.blob, same=1.0) for seed in self.seeds]

    def mutated(self, campaign: int, number: int) -> Case:
        """One file of a campaign."""
        rng = random.Random(f"{campaign}/{number}")
        for _ in range(TRIES):
            mutation = rng.choice(rng.choice(self.families))
            found = mutation(rng, rng.choice(self.seeds))
            if found is not None:
                return found
        raise AssertionError(f"no mutation found for file {number} of campaign {campaign}")
