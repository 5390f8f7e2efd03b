"""Find the layers of several adapters that change the same weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

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


class Matched:
    """The layers of several adapters, by the weights that they change.

    `layers` has those that change a weight or its bias, each with the number of its adapter among `entries`,
    from 0, by the name of the merged layer. Their tensors are read when they are needed, and not kept.
    `shapes` has the shapes of what changes: of the weight, and (O,) of the bias. `left_out` has the layers
    that the model has no weight for, each with the reason and, where there are several adapters, with its
    adapter's name.

    Layers are matched by the weights of `base`, or without one by their names. Raises MatchError where an
    adapter does not fit the model, and where the adapters have no layer in common; LayerError for a layer of
    unknown or different shape, or one that enlarges its weight; LycorisError without a base where the
    adapters name layers in different ways or have block rules.
    """

    def __init__(self, entries: Sequence[Entry], base: Weights | None) -> None:
        self.entries, self.base = entries, base
        self.layers: dict[str, list[tuple[int, Match]]] = {}
        self.shapes: dict[tuple[str, Parameter], Shape] = {}
        self.left_out: dict[str, str] = {}
        if base is None:
            self._match_names()
        else:
            self._match_weights(base)

    def shape(self, name: str, parameter: Parameter = "weight") -> Shape:
        """The shape of a weight or bias; () where it does not change."""
        return self.shapes.get((name, parameter), ())

    def target(self, name: str) -> Target:
        """The weight in the base; without one, the layer by its name in the file."""
        return self.layers[name][0][1].target

    def count(self, name: str) -> int:
        """How many different layers change a weight, each by its adapter, its name and its strength."""
        return len({(entry, match.layer, match.strength) for entry, match in self.layers[name]})

    def changing(self, name: str, parameter: Parameter | None = None) -> dict[int, list[Match]]:
        """The layers of each adapter that change the weight or bias (or `parameter` only), by the numbers of
        the adapters, in the order of `deltas`."""
        own: dict[int, list[Match]] = {}
        for entry, match in self.layers[name]:
            if parameter in (None, match.parameter):
                own.setdefault(entry, []).append(match)
        return own

    def deltas(
        self,
        name: str,
        parameter: Parameter,
        seed: int,
        device: torch.device | str,
        pause: Pause = no_pause,
    ) -> Deltas | None:
        """The changes of a weight, or of its bias as a matrix of one column; None where there are none.

        Raises LayerError for a layer that cannot be read, or that depends on a missing weight.
        """
        own = self.changing(name, parameter)
        if not own:
            return None
        shape = self.shape(name, parameter)
        matrix = flat_shape(shape) if len(shape) > 1 else (*shape, 1)
        if len(shape) < 2:
            # A vector is too small to be worth a wait.
            device = CPU
        # Block rules may give the separate q, k and v of a fused weight different strengths.
        strengths = [max((match.strength for match in matches), key=abs) for matches in own.values()]
        forms = [
            [
                form
                for match in own[entry]
                for form in self._forms(entry, match, shape, match.strength / strength)
            ]
            for entry, strength in zip(own, strengths, strict=True)
        ]
        return Deltas(
            forms,
            strengths,
            (matrix[0], matrix[1]),
            layer=name,
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

    def _forms(self, entry: int, match: Match, shape: Shape, factor: float) -> list[Additive]:
        """The change that a layer makes to all of a weight or bias of `shape`, times a factor."""
        part = self.read(entry, match)
        with part.named():
            forms = independent(part.forms())
            if forms is None:
                change = part.delta(self._met(match, part))
                forms = (Dense(change.reshape(len(change), -1)),)
            elif part.rows is not None:
                forms = tuple(form.embedded(part.rows, shape[0]) for form in forms)
            check_finite(forms)
        return [form if factor == 1.0 else form.times(factor) for form in forms]

    def _met(self, match: Match, part: Part) -> Tensor:
        """The weight or bias that a layer depends on, in float32 or float64."""
        if self.base is None or not match.key:
            raise no_weight(part.layer.algorithm, part.parameter, self.base)
        value = self.base.read(match.key)
        return value.to(compute_dtype(value.dtype))

    def _match_names(self) -> None:
        entries = self.entries
        dialects = {entry.adapter.dialect for entry in entries}
        if len(dialects) > 1:
            raise LycorisError(
                "E-names-differ-without-model",
                got=", ".join(f"{entry.adapter.name} ({entry.adapter.dialect})" for entry in entries),
                hint=GIVE_BASE,
            )
        by_path: dict[tuple[str | None, str], list[tuple[int, str, LayerInfo]]] = {}
        components: list[set[str | None]] = []
        for number, entry in enumerate(entries):
            if entry.rules is not None:
                raise LycorisError("E-rules-need-model", file=entry.adapter.name, hint=GIVE_BASE)
            own: set[str | None] = set()
            for name, info in entry.adapter.info.items():
                own.add(info.named.component)
                by_path.setdefault((info.named.component, info.named.path.replace(".", "_")), []).append(
                    (number, name, info)
                )
            components.append(own)
        shared = components[0]
        for own in components[1:]:
            shared = shared & own
        if len(entries) > 1 and shared and all(len(same) == 1 for same in by_path.values()):
            raise MatchError(
                "E-adapters-without-common-layers",
                give_base=GIVE_BASE,
                got=", ".join(
                    f"{next(iter(entry.adapter.info), '')} ({entry.adapter.name})" for entry in entries
                ),
            )
        for same in by_path.values():
            self._match_same(same)

    def _match_same(self, same: Sequence[tuple[int, str, LayerInfo]]) -> None:
        """Match the layers of one name in several adapters, each with the number of its adapter."""
        first, merged, _ = same[0]
        for number, name, info in same:
            entry = self.entries[number]
            if info.enlarges:
                raise _enlarges(entry.adapter, name)
            strength = entry.strength_of(info.named.component)
            target = Target(name, info.named.path, info.named.component)
            own: dict[Parameter, Extent] = {"weight": info.shape, "bias": info.bias or ()}
            for parameter, stored in own.items():
                if not stored or strength == 0.0:
                    continue
                before = self.shape(merged, parameter)
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
                        name=self.entries[first].adapter.name,
                        got=info.made_for,
                    )
                # Some kinds store the kernel flattened; others know its shape.
                self.shapes[merged, parameter] = max(before, known, key=len)
                self.layers.setdefault(merged, []).append((number, Match(name, target, strength, parameter)))

    def _match_weights(self, base: Weights) -> None:
        resolution = resolve(
            Stack(self.entries), base.shapes, absent_because="it is not part of the model that is given"
        )
        resolution.check()
        # Rows of one weight may have names of their own.
        names: dict[str, str] = {}
        for number, resolved in enumerate(resolution.entries):
            # Several adapters may have layers of one name.
            of = f" ({resolved.entry.name})" if len(self.entries) > 1 else ""
            for layer in resolved.unmatched:
                self.left_out[f"{layer.layer}{of}"] = f"because {layer.reason}"
            for name in chain(*resolved.absent.values()):
                self.left_out[f"{name}{of}"] = "because the model has no such part"
            for match in resolved.matches:
                if match.strength == 0.0:
                    # A rule leaves the layer out, so it does not count in averages.
                    continue
                merged = names.setdefault(match.target.key, match.target.name)
                self.layers.setdefault(merged, []).append((number, match))
                self.shapes[merged, match.parameter] = tuple(base.shapes[match.key])
                if resolved.entry.adapter.info[match.layer].enlarges:
                    raise _enlarges(resolved.entry.adapter, match.layer)


def _enlarges(adapter: Adapter, name: str) -> LayerError:
    return LayerError("E-enlarging-layer-not-merged", file=adapter.path, key=name)
