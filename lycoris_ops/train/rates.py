"""The learning rate for trainings where none is given."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..algorithms import ALGORITHMS
from ..errors import TrainError
from ..maths.shapes import Shape
from .network import LycorisNetwork
from .optimisers import OptimiserFamily

SCALED = ("adamw", "adamw8bit")
"""The optimisers whose usual rate depends on the network."""
FIRST, WIDTH, RANK = 0.4, 2 / 3, 0.6
"""c, a and b of `rate_of`."""
USUAL_RANK = 4
"""The rank in the formula for all kinds but LoRA."""


def rate_of(algorithm: str, shapes: Iterable[Shape], rank: float) -> float:
    """The rate at which AdamW trains fresh layers of a kind on weights of these shapes.

        lr = c w^-a r^-b for LoRA,    lr = c w^-a 4^-b sqrt(f) for other kinds

    with c = 0.4, a = 2/3, b = 3/5. w is the geometric mean of sqrt(O K) over the weights (O, I, *kernel) with
    K = I * prod(kernel), or 1 if none has two dimensions. r is the rank, above 0, and f the kind's
    `fresh_rate`. alpha is taken to be equal to the rank.

    Wider layers and higher ranks change the output more at the same rate, because Adam moves each value by
    the same amount. The constants are the best ones on the tasks of docs/quality.md, where widths are 70 to
    490; for a linear layer of width 4096 at rank 16 they give 3.0e-4.
    """
    sides = [math.log(shape[0] * math.prod(shape[1:])) / 2 for shape in shapes if len(shape) > 1]
    width = math.exp(sum(sides) / len(sides)) if sides else 1.0
    if algorithm == "lora":
        return FIRST * width**-WIDTH * rank**-RANK
    return FIRST * width**-WIDTH * USUAL_RANK**-RANK * ALGORITHMS[algorithm].fresh_rate ** 0.5


def with_lora_plus(rate: float, ratio: float | None) -> float:
    """A usual rate where the tensors that start at zero have `ratio` times the rate of the others (LoRA+).

    It is divided by sqrt(ratio): then the product of both rates stays the same, and with it the size of a
    step. None is a ratio of 1.
    """
    return rate / math.sqrt(ratio or 1.0)


def usual_rate(net: LycorisNetwork, family: OptimiserFamily, lora_plus: float | None = None) -> float:
    """The rate for a network where none is given: for SCALED the geometric mean of `rate_of` over its layers,
    divided as in `with_lora_plus`.

    Other optimisers have a fixed rate, because they adapt it themselves or because their rates were not
    compared. Raises TrainError for an optimiser without a usual rate.
    """
    if family.lr is None:
        raise TrainError("E-optimiser-without-usual-rate", key="lr")
    if family.one_rate:
        return family.lr
    members = [member for member in net.members.values() if len(member.site.shape) > 1]
    if family.name not in SCALED or not members:
        return with_lora_plus(family.lr, lora_plus)
    logs = [
        math.log(rate_of(member.layer.algorithm, [member.site.shape], member.layer.rank or USUAL_RANK))
        for member in members
    ]
    return with_lora_plus(math.exp(sum(logs) / len(logs)), lora_plus)
