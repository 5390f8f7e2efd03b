"""Find the layers of several adapters that change the same weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..algorithms.base import Dependent, Parameter
from ..changes.forms import Additive, Dense
from ..errors import LayerError, LycorisError, MatchError
from ..files.weights import Weights
from ..fit.engine import Goal, check_finite
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
class AdapterChange:
    """The change that one adapter's layer makes to a weight or to its bias."""

    entry: int
    """The number of its adapter among the entries, from 0."""
    layer: str
    """The name of the layer in its file."""
    adapter: str
    """The name of its adapter."""
    strength: float
    read: Callable[[], Part]
    """Reads the tensors. Nothing else keeps them in memory."""
    parameter: Parameter
    words: str
    """Kind and rank of the layer in words."""

    @property
    def source(self) -> tuple[int, str, float]:
        """The layer and its strength: the same for the layer's change of the weight and of the bias."""
        return self.entry, self.layer, self.strength


@dataclass(frozen=True)
class ChangedPlace:
    """A weight with its bias, and everything that changes them."""

    name: str
    """The name of the merged layer."""
    shape: Shape
    """The weight's shape; () where only the bias changes."""
    bias: Shape
    """The shape (O,) of the bias; () where it does not change."""
    changes: tuple[AdapterChange, ...]
    keys: tuple[str | None, str | None] = (None, None)
    """The keys of weight and bias in the base; None without one."""
    target: Target | None = None
    """The weight in the base."""

    def entries(self, parameter: Parameter | None = None) -> list[int]:
        """The adapters that change the weight or bias (or `parameter` only), in the order of `deltas`."""
        wanted = (change for change in self.changes if parameter in (None, change.parameter))
        return list(dict.fromkeys(change.entry for change in wanted))

    def deltas(
        self,
        parameter: Parameter,
        base: Weights | None,
        seed: int,
        device: torch.device | str,
        pause: Pause = no_pause,
    ) -> Deltas | None:
        """The changes of the weight, or of the bias as a matrix of one column; None where there are none.

        Raises LayerError for a layer that cannot be read, or that depends on a missing weight.
        """
        shape = self.shape if parameter == "weight" else self.bias
        matrix = flat_shape(shape) if len(shape) > 1 else (*shape, 1)
        entries = self.entries(parameter)
        if not entries:
            return None
        if len(shape) < 2:
            # A vector is too small to be worth a wait.
            device = CPU
        own = [[one for one in self.changes if (one.entry, one.parameter) == (e, parameter)] for e in entries]
        # Block rules may give the separate q, k and v of a fused weight different strengths.
        strengths = [max((one.strength for one in changes), key=abs) for changes in own]
        forms = [
            [form for one in changes for form in self._forms(one, base, one.strength / strength)]
            for changes, strength in zip(own, strengths, strict=True)
        ]
        return Deltas(
            forms,
            strengths,
            (matrix[0], matrix[1]),
            layer=self.name,
            names=[changes[0].adapter for changes in own],
            seed=seed,
            device=torch.device(device),
            pause=pause,
        )

    def _forms(self, own: AdapterChange, base: Weights | None, factor: float) -> list[Additive]:
        """The change that a layer makes to the whole weight or bias, times a factor."""
        part = own.read()
        count = (self.shape if part.parameter == "weight" else self.bias)[0]
        with part.named():
            met = part.forms()
            plain: list[Additive] = [form for form in met if not isinstance(form, Dependent)]
            if len(plain) < len(met):
                change = part.delta(self._met(part, base))
                plain = [Dense(change.reshape(len(change), -1))]
            elif part.rows is not None:
                plain = [form.embedded(part.rows, count) for form in plain]
            check_finite(Goal(tuple(plain)))
        return plain if factor == 1.0 else [form.times(factor) for form in plain]

    def _met(self, part: Part, base: Weights | None) -> Tensor:
        """The weight or bias that a layer depends on, in float32 or float64."""
        key = self.keys[part.parameter == "bias"]
        if base is None or key is None:
            raise no_weight(part.layer.algorithm, part.parameter, None if base is None else base.name)
        value = base.read(key)
        return value.to(compute_dtype(value.dtype))


def by_name(entries: Sequence[Entry]) -> list[ChangedPlace]:
    """The layers of several adapters, matched by their names.

    Raises LycorisError where the adapters name layers in different ways or have block rules, MatchError where
    they have no layer in common, and LayerError for a layer of unknown or different shape, or one that
    enlarges its weight.
    """
    dialects = {entry.adapter.dialect for entry in entries}
    if len(dialects) > 1:
        raise LycorisError(
            "the adapters name layers in different ways, so the model is needed to tell which are the same",
            got=", ".join(f"{entry.adapter.name} ({entry.adapter.dialect})" for entry in entries),
            hint=GIVE_BASE,
        )
    found: dict[tuple[str | None, str], list[tuple[int, str, LayerInfo]]] = {}
    parts: list[set[str | None]] = []
    for number, entry in enumerate(entries):
        if entry.rules is not None:
            raise LycorisError(
                "block rules need the model, because its keys say which blocks there are",
                file=entry.adapter.name,
                hint=GIVE_BASE,
            )
        own: set[str | None] = set()
        for name, info in entry.adapter.info.items():
            own.add(info.named.part)
            found.setdefault((info.named.part, info.named.path.replace(".", "_")), []).append(
                (number, name, info)
            )
        parts.append(own)
    shared = parts[0]
    for own in parts[1:]:
        shared = shared & own
    if len(entries) > 1 and shared and all(len(same) == 1 for same in found.values()):
        raise MatchError(
            "the adapters have no layer in common",
            got=", ".join(
                f"{next(iter(entry.adapter.info), '')} ({entry.adapter.name})" for entry in entries
            ),
            expected="adapters for the same model",
            hint=f"Where they are for the same model and name its layers differently: {GIVE_BASE}",
        )
    places = (_place_of(entries, same) for same in found.values())
    return [place for place in places if place.changes]


def _place_of(entries: Sequence[Entry], same: Sequence[tuple[int, str, LayerInfo]]) -> ChangedPlace:
    """The place that the layers of one name in several adapters change."""
    shape: Shape = ()
    bias: Shape = ()
    changes: list[AdapterChange] = []
    for number, name, info in same:
        entry = entries[number]
        if info.enlarges:
            raise _enlarges(entry.adapter, name)
        strength = entry.strength_of(info.named.part)
        sizes: dict[Parameter, tuple[Shape, Extent]] = {
            "weight": (shape, info.shape),
            "bias": (bias, info.bias or ()),
        }
        read = partial(_whole, entry.adapter, name)
        for parameter, (before, stored) in sizes.items():
            if not stored or strength == 0.0:
                continue
            known = tuple(size for size in stored if size is not None)
            if len(known) < len(stored) and not (before and fits(stored, before)):
                raise LayerError(
                    "the layer does not say what shape its weight has",
                    file=entry.adapter.path,
                    key=name,
                    got=info.made_for,
                    hint=GIVE_BASE,
                )
            if before and not fits(stored, before) and not fits(before, known):
                raise LayerError(
                    "two adapters have layers of this name with different shapes",
                    file=entry.adapter.path,
                    key=name,
                    got=info.made_for,
                    expected=f"{list(before)} as in {entries[same[0][0]].adapter.name}",
                    hint="The adapters are for different models",
                )
            # Some kinds store the kernel flattened; others know its shape.
            known = max(before, known, key=len)
            if parameter == "weight":
                shape = known
            else:
                bias = known
            changes.append(
                AdapterChange(
                    number,
                    name,
                    entry.adapter.name,
                    strength,
                    partial(read, parameter),
                    parameter,
                    info.words,
                )
            )
    return ChangedPlace(same[0][1], shape, bias, tuple(changes))


def _whole(adapter: Adapter, name: str, parameter: Parameter) -> Part:
    return Part(adapter.layer(name, keep=False), file=adapter.path, key=name, parameter=parameter)


def by_weight(entries: Sequence[Entry], base: Weights) -> tuple[list[ChangedPlace], dict[str, str]]:
    """The layers of several adapters, matched by the weights of a model that they change.

    Also returns the layers that have no place in the model, each with the reason and, where there are several
    adapters, with its adapter's name. Raises MatchError where an adapter does not fit the model, and
    LayerError for a layer that enlarges its weight.
    """
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
    return [_place_at(entries, base, key, matches) for key, matches in found.items()], left_out


def _place_at(
    entries: Sequence[Entry], base: Weights, key: str, matches: Sequence[tuple[int, Match]]
) -> ChangedPlace:
    changes = tuple(
        AdapterChange(
            number,
            match.layer,
            entries[number].adapter.name,
            match.strength,
            partial(match.read, entries[number].adapter, keep=False),
            match.parameter,
            entries[number].adapter.info[match.layer].words,
        )
        for number, match in matches
    )
    target = matches[0][1].target
    changed = {change.parameter for change in changes}
    return ChangedPlace(
        target.name,
        tuple(base.shapes[key]) if "weight" in changed else (),
        tuple(base.shapes[target.bias]) if "bias" in changed and target.bias else (),
        changes,
        (key, target.bias),
        target,
    )


def _enlarges(adapter: Adapter, name: str) -> LayerError:
    return LayerError(
        "a layer that enlarges its weight cannot be merged with others",
        file=adapter.path,
        key=name,
        got="reshape_weight",
        hint="Apply it beside the merged adapter",
    )
