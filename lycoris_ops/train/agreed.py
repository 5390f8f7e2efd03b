"""Check that all processes of a training were given the same."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from .. import processes
from ..errors import TrainError
from ..maths.divided import is_divided
from .feed import Batches, tensors_of
from .identity import layers_of
from .network import LycorisNetwork
from .options import TrainOptions
from .sketches import alike, sketches

OWN = frozenset(
    (
        *("bar", "checkpoints", "data", "device", "keep", "log", "mesh", "metadata", "optimiser_options"),
        *("output", "overwrite", "picture", "settings"),
    )
)
"""The options that may differ between processes, or that their texts cannot compare."""


def check_agreed(
    net: LycorisNetwork, batches: Batches, validation: Batches | None, options: TrainOptions
) -> None:
    """Raise TrainError in all processes where they were given other layers, options or batches.

    They would wait for each other without end, or each would take a share of its own share of the batches.
    The numbers of batches are compared where they are known, and the first batches where they are lists.
    """
    if processes.count() == 1:
        return
    own: dict[str, Any] = layers_of(net) | {
        field.name: str(getattr(options, field.name)) for field in fields(options) if field.name not in OWN
    }
    own |= {"number of batches": _count(batches), "number of batches to validate with": _count(validation)}
    if any(map(is_divided, net.parameters())):
        # All gather it to write it.
        own |= {"output": options.output is not None, "checkpoints": options.folder is not None}
    listed = cast("list[Any]", batches)[:1] if type(batches) is list else []
    first = sketches(map(tensors_of, listed))
    for number, (theirs, other) in enumerate(processes.of_all((own, first))):
        for key in dict.fromkeys((*own, *theirs, "first batch")):
            values = own.get(key), theirs.get(key)
            if key == "first batch" and not all(map(alike, first, other)):
                values = "other values", "its own"
            if values[0] != values[1]:
                raise TrainError(
                    "E-processes-given-different-trainings",
                    key=key,
                    own=values[0],
                    process=processes.rank(),
                    other=values[1],
                    other_process=number,
                )


def _count(batches: Batches | None) -> int | None:
    try:
        return len(cast("Any", batches))
    except TypeError:
        return None
