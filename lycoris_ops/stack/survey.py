"""The blocks of a model, and what adapters do in each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..algorithms.base import Dependent
from ..changes.size import norm_of
from ..maths.shapes import Shape
from ..maths.tensors import norm
from ..names.blocks import Blocks
from ..names.targets import Targets, known_shapes
from .resolve import EntryResolution, Match, resolve
from .stack import Entry, Stack


@dataclass
class Effect:
    """One adapter's effect in one block."""

    layers: set[str] = field(default_factory=set[str])
    """Its layers there."""
    strengths: list[float] = field(default_factory=list[float])
    """The strengths of these layers, with block rules."""
    square: float = 0.0
    """The sum of the squared Frobenius norms of its changes there, at strength 1 and without block rules."""


@dataclass(frozen=True)
class AdapterSurvey:
    """What one adapter does in each block of a model."""

    entry: Entry
    resolution: EntryResolution
    effects: Mapping[str, Effect]
    """Its effects by block; blocks where it does nothing are left out."""
    unmeasured: int
    """How many changes are missing from the sums because they depend on weights that could not be read."""

    def share(self, block: str) -> float:
        """A block's share, from 0 to 1, of the summed squared norms of the changes."""
        total = sum(effect.square for effect in self.effects.values())
        return self.effects[block].square / total if block in self.effects and total else 0.0


@dataclass(frozen=True)
class Survey:
    """The blocks of a model, and what adapters do in each of them."""

    blocks: Mapping[str, int]
    """The number of weights in each block, in the order of the model."""
    adapters: tuple[AdapterSurvey, ...]


def survey(
    stack: Stack,
    keys: Collection[str] | Mapping[str, Shape],
    *,
    read: Callable[[str], Tensor | None] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Survey:
    """Measure what each adapter of a stack does in each block of a model.

    `keys` are the model's keys, as in `resolve`. `read` reads weights for changes that depend on them (DoRA,
    OFT, ...); without it, or where it gives None, such changes are only counted. `progress` gets the number
    of finished layers and the number of all layers. Raises MatchError as `resolve` does.
    """
    blocks = blocks_of(known_shapes(keys))
    resolution = resolve(stack, blocks.targets.shapes)
    total, done = sum(len(entry.matches) for entry in resolution.entries), 0
    surveys: list[AdapterSurvey] = []
    for each in resolution.entries:
        effects: dict[str, Effect] = {}
        unmeasured = 0
        for match in each.matches:
            effect = effects.setdefault(blocks.of(match.target).block, Effect())
            effect.layers.add(match.layer)
            effect.strengths.append(match.strength)
            size = size_of(each.entry, match, read)
            unmeasured += size is None
            effect.square += (size or 0.0) ** 2
            done += 1
            if progress:
                progress(done, total)
        surveys.append(AdapterSurvey(each.entry, each, effects, unmeasured))
    return Survey({name: len(members) for name, members in blocks.members.items()}, tuple(surveys))


def blocks_of(shapes: Mapping[str, Shape]) -> Blocks:
    """The blocks of a model or checkpoint. Keys that belong to no component are left out."""
    targets = Targets(shapes)
    if beside := {target.key for target in targets.all} - {target.key for target in targets.adaptable}:
        targets = Targets({key: shape for key, shape in shapes.items() if key not in beside})
    return Blocks(targets)


def size_of(entry: Entry, match: Match, read: Callable[[str], Tensor | None] | None = None) -> float | None:
    """The norm of a layer's change; None where it depends on a weight that cannot be read."""
    part = match.read(entry.adapter, keep=False)
    forms = part.forms()
    plain = [form for form in forms if not isinstance(form, Dependent)]
    if len(plain) == len(forms):
        return norm_of(plain) if plain else 0.0
    weight = None if read is None else read(match.key)
    return None if weight is None else float(norm(part.delta(weight)))
