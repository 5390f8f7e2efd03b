"""A file that the campaign tries, and what is known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from .seeds import CONFIG, Seed

CANARY = "applied 999 of 999 layers"
"""A line of a report that some mutations put into the texts of a file. No line of output may begin so."""


@dataclass(frozen=True, eq=False)
class Case:
    """A file, or several that belong together."""

    name: str
    """The mutation, and the seed that it was applied to."""
    files: Mapping[str, bytes]
    """The bytes of each file by its name. Names may have one folder in front."""
    adapter: str
    """The name of the adapter among the files."""
    model: str = "plain"
    """The name in `MODELS` of the model that it is resolved against."""
    base: str | None = None
    """The name of the checkpoint to merge into, where that is the mutated file; else a valid one is used."""
    seed: Seed | None = None
    same: float | None = None
    """What the mutation multiplies the change by: 1 if it has no effect; None where that is not known.

    A file with a number here must be read.
    """
    refused: bool = False
    """Whether the file must be refused, or a part of it reported, because no reading of it is right."""
    says: str = ""
    """A regular expression for the error of a file that is refused as it is opened."""
    dialect: str | None = None
    """The dialect to save it in; None for one that is chosen by the name of the case."""


def of(
    name: str,
    seed: Seed,
    blob: bytes,
    *,
    same: float | None = None,
    config: bytes | None = None,
    ending: str | None = None,
) -> Case:
    """The case of a seed with other bytes, or with another configuration beside it."""
    adapter = f"adapter_model{ending or seed.ending}"
    files = {adapter: blob}
    if config is not None:
        files[CONFIG] = config
    elif seed.config is not None:
        files[CONFIG] = json.dumps(dict(seed.config)).encode()
    return Case(
        f"{name} of {seed.name}",
        files,
        adapter,
        seed.model,
        seed=seed,
        same=same,
    )
