"""Find the layers of several adapters that change the same weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms.base import Parameter, independent
from ..changes.forms import Additive, Dense
from ..errors import LayerError, LycorisError, MatchError
from ..files.weights import Weights
from ..fit.engine import check_finite
from ..fit.without_base import GIVE_BASE, no_weight
from ..layers.part import Part
from ..maths.decompositions import Pause, no_pause
from ..maths.shapes import Extent, Shape, fits, flat_shape
from ..maths.tensors import CPU, compute_dtype
from ..names.targets import Target
from ..reading.adapter import Adapter, LayerInfo
from ..stack.resolve import Match, resolve
from ..stack.stack import Entry, Stack
from .deltas import Deltas


@dataclass(frozen=True)
class ChangedWeight:
    """A weight with its bias, and the layers of several adapters that change them."""

    name: str
    """The name of the merged layer."""
    shape: Shape
    """The weight's shape; () where only the bias changes."""
    bias: Shape
    """The shape (O,) of the bias; () where it does not change."""
    matches: tuple[tuple[int, Match], ...]
    """The layers, each with the number of its adapter among the entries, from 0. Their tensors are read when
    they are needed, and not kept."""
    entries: Sequence[Entry]
    """All adapters that are merged."""
    base: Weights | None = None

    @property
    def target(self) -> Target:
        """The weight in the base; without one, the layer by its name in the file."""
        return self.matches[0][1].target

    @property
    def layers(self) -> set[tuple[int, str, float]]:
        """The different layers, each by its adapter, its name and its strength."""
        return {(entry, match.layer, match.strength) for entry, match in self.matches}

    def changing(self, parameter: Parameter | None = None) -> dict[int, list[Match]]:
        """The layers of each adapter that change the weight or bias (or `parameter` only), by the numbers of
        the adapters, in the order of `deltas`."""
        own: dict[int, list[Match]] = {}
        for entry, match in self.matches:
            if parameter in (None, match.parameter):
                own.setdefault(entry, []).append(match)
        return own

    def deltas(
        self, parameter: Parameter, seed: int, device: torch.device | str, pause: Pause = no_pause
    ) -> Deltas | None:
        """The changes of the weight, or of the bias as a matrix of one column; None where there are none.

        Raises LayerError for a layer that cannot be read, or that depends on a missing weight.
        """
        shape = self.shape if parameter == "weight" else self.bias
        matrix = flat_shape(shape) if len(shape) > 1 else (*shape, 1)
        own = self.changing(parameter)
        if not own:
            return None
        if len(shape) < 2:
            # A vector is too small to be worth a wait.
            device = CPU
        # Block rules may give the separate q, k and v of a fused weight different strengths.
        strengths = [max((match.strength for match in matches), key=abs) for matches in own.values()]
        forms = [
            [form for match in own[entry] for form in self._forms(entry, match, match.strength / strength)]
            for entry, strength in zip(own, strengths, strict=True)
        ]
        return Deltas(
            forms,
            strengths,
            (matrix[0], matrix[1]),
            layer=self.name,
            names=[self.entries[entry].adapter.name for entry in own],
            entries=[*own],
            seed=seed,
            device=torch.device(device),
            pause=pause,
        )

    def read(self, entry: int, match: Match) -> Part:
        """A layer as it changes the weight or bias."""
        return match.read(self.entries[entry].adapter, keep=False)

    def info(self, entry: int, match: Match) -> LayerInfo:
        return self.entries[entry].adapter.info[match.layer]

    def _forms(self, entry: int, match: Match, factor: float) -> list[Additive]:
        """The change that a layer makes to the whole weight or bias, times a factor."""
        part = self.read(entry, match)
        count = (self.shape if part.parameter == "weight" else self.bias)[0]
        with part.named():
            forms = independent(part.forms())
            if forms is None:
                change = part.delta(self._met(part))
                forms = (Dense(change.reshape(len(change), -1)),)
            elif part.rows is not None:
                forms = tuple(form.embedded(part.rows, count) for form in forms)
            check_finite(forms)
        return [form if factor == 1.0 else form.times(factor) for form in forms]

    def _met(self, part: Part) -> Tensor:
        """The weight or bias that a layer depends on, in float32 or float64."""
        key = self.target.key if part.parameter == "weight" else self.target.bias
        if self.base is None or key is None:
            raise no_weight(part.layer.algorithm, part.parameter, self.base)
        value = self.base.read(key)
        return value.to(compute_dtype(value.dtype))


def places_of(entries: Sequence[Entry], base: Weights | None) -> tuple[list[ChangedWeight], dict[str, str]]:
    """What several adapters change, matched by the weights of a model, or without one by the layers' names.

    Also returns the layers that the model has no weight for, each with the reason and, where there are
    several adapters, with its adapter's name. Raises MatchError where an adapter does not fit the model, and
    where the adapters have no layer in common; LayerError for a layer of unknown or different shape, or one
    that enlarges its weight; LycorisError without a base where the adapters name layers in different ways or
    have block rules.
    """
    return (_by_name(entries), {}) if base is None else _by_weight(entries, base)


def _by_name(entries: Sequence[Entry]) -> list[ChangedWeight]:
    dialects = {entry.adapter.dialect for entry in entries}
    if len(dialects) > 1:
        raise LycorisError(
            "E-names-differ-without-model",
            got=", ".join(f"{entry.adapter.name} ({entry.adapter.dialect})" for entry in entries),
            hint=GIVE_BASE,
        )
    found: dict[tuple[str | None, str], list[tuple[int, str, LayerInfo]]] = {}
    parts: list[set[str | None]] = []
    for number, entry in enumerate(entries):
        if entry.rules is not None:
            raise LycorisError("E-rules-need-model", file=entry.adapter.name, hint=GIVE_BASE)
        own: set[str | None] = set()
        for name, info in entry.adapter.info.items():
            own.add(info.named.component)
            found.setdefault((info.named.component, info.named.path.replace(".", "_")), []).append(
                (number, name, info)
            )
        parts.append(own)
    shared = parts[0]
    for own in parts[1:]:
        shared = shared & own
    if len(entries) > 1 and shared and all(len(same) == 1 for same in found.values()):
        raise MatchError(
            "E-adapters-without-common-layers",
            give_base=GIVE_BASE,
            got=", ".join(
                f"{next(iter(entry.adapter.info), '')} ({entry.adapter.name})" for entry in entries
            ),
        )
    places = (_weight_of(entries, same) for same in found.values())
    return [place for place in places if place.matches]


def _weight_of(entries: Sequence[Entry], same: Sequence[tuple[int, str, LayerInfo]]) -> ChangedWeight:
    """The weight that the layers of one name in several adapters change."""
    shapes: dict[Parameter, Shape] = {"weight": (), "bias": ()}
    matches: list[tuple[int, Match]] = []
    for number, name, info in same:
        entry = entries[number]
        if info.enlarges:
            raise _enlarges(entry.adapter, name)
        strength = entry.strength_of(info.named.component)
        target = Target(name, info.named.path, info.named.component)
        own: dict[Parameter, Extent] = {"weight": info.shape, "bias": info.bias or ()}
        for parameter, stored in own.items():
            if not stored or strength == 0.0:
                continue
            before = shapes[parameter]
            known = tuple(size for size in stored if size is not None)
            if len(known) < len(stored) and not (before and fits(stored, before)):
                raise LayerError(
                    "E-layer-shape-unknown",
                    file=entry.adapter.path,
                    key=name,
                    got=info.made_for,
                    hint=GIVE_BASE,
                )
            if before and not fits(stored, before) and not fits(before, known):
                raise LayerError(
                    "E-adapters-shapes-differ",
                    file=entry.adapter.path,
                    key=name,
                    before=list(before),
                    name=entries[same[0][0]].adapter.name,
                    got=info.made_for,
                )
            # Some kinds store the kernel flattened; others know its shape.
            shapes[parameter] = max(before, known, key=len)
            matches.append((number, Match(name, target, strength, parameter)))
    return ChangedWeight(same[0][1], shapes["weight"], shapes["bias"], tuple(matches), entries)


def _by_weight(entries: Sequence[Entry], base: Weights) -> tuple[list[ChangedWeight], dict[str, str]]:
    resolution = resolve(
        Stack(entries), base.shapes, absent_because="it is not part of the model that is given"
    )
    resolution.check()
    found: dict[str, list[tuple[int, Match]]] = {}
    left_out: dict[str, str] = {}
    for number, one in enumerate(resolution.entries):
        # Several adapters may have layers of one name.
        of = f" ({one.entry.name})" if len(entries) > 1 else ""
        left_out |= {f"{layer.layer}{of}": f"because {layer.reason}" for layer in one.unmatched}
        left_out |= {
            f"{name}{of}": "because the model has no such part"
            for names in one.absent.values()
            for name in names
        }
        for match in one.matches:
            if match.strength == 0.0:
                # A rule leaves the layer out, so it does not count in averages.
                continue
            found.setdefault(match.target.key, []).append((number, match))
            if one.entry.adapter.info[match.layer].enlarges:
                raise _enlarges(one.entry.adapter, match.layer)
    return [_weight_at(entries, base, matches) for matches in found.values()], left_out


def _weight_at(
    entries: Sequence[Entry], base: Weights, matches: Sequence[tuple[int, Match]]
) -> ChangedWeight:
    target = matches[0][1].target
    changed = {match.parameter for _, match in matches}
    return ChangedWeight(
        target.name,
        tuple(base.shapes[target.key]) if "weight" in changed else (),
        tuple(base.shapes[target.bias]) if "bias" in changed and target.bias else (),
        tuple(matches),
        entries,
        base,
    )


def _enlarges(adapter: Adapter, name: str) -> LayerError:
    return LayerError("E-enlarging-layer-not-merged", file=adapter.path, key=name)
