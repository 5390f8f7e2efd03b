"""Match the layers of two models, whose files may name or fuse them differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MatchError
from ..files.weights import Weights
from ..maths.shapes import Shape
from ..messages import phrase
from ..names.dialects.pipelines import UNET
from ..names.relation import Relation
from ..names.targets import HOST_ENCODERS, Target, host_name
from ..names.transposed import stored_transposed

COPIES = ("model_ema.",)
"""Prefixes of a second copy of a model, which no tool loads."""
NAMED = 5
"""How many differences an error names at most."""


@dataclass(frozen=True)
class Pair:
    """A layer of both models. In each model it is a weight, or rows of one or several weights."""

    name: str
    """The layer's name in the adapter."""
    base: tuple[Target, ...]
    tuned: tuple[Target, ...]
    shape: Shape
    turned: bool = False
    """Whether both models store the weight as (I, O)."""


@dataclass(frozen=True)
class Pairs:
    """Common layers of two models, and their differences."""

    pairs: tuple[Pair, ...]
    only_base: tuple[str, ...]
    """Keys that the tuned model lacks."""
    only_tuned: tuple[str, ...]
    reshaped: tuple[str, ...]
    """Keys whose shapes differ, with both shapes."""
    others: int
    """How many tensors belong to components that adapters do not change, such as the VAE."""

    def differences(self) -> list[tuple[str, Sequence[str]]]:
        """The kinds of differences in words, each with its keys."""
        kinds = [
            ("weights that only the base model has", self.only_base),
            ("weights that only the tuned model has", self.only_tuned),
            ("weights of another shape in the tuned model", self.reshaped),
        ]
        return [(what, keys) for what, keys in kinds if keys]


class _Side:
    """One of the two models, with its layers as targets."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        shapes = {key: shape for key, shape in weights.shapes.items() if not key.startswith(COPIES)}
        self.relation = Relation(shapes)
        self.targets = self.relation.targets
        self.turned = stored_transposed(shapes)
        components = self.targets.components
        # A scalar, such as CLIP's `logit_scale`, is not a layer.
        here = {target for target in self.targets.all if shapes[target.key] and weights.reads(target.key)}
        self.all = [target for target in self.targets.adaptable if target in here]
        self.others = len(here) - len(self.all)
        unet = self.targets.layers.get(UNET)
        self._known = "unet" in components or (unet is not None and unet.model is not None)

    def name(self, target: Target) -> str:
        """The layer's name in an adapter: the host's name, or the path if the component is unknown."""
        if target.component == "te":
            return f"{HOST_ENCODERS}{target.name}" if target.encoder else target.path
        return host_name(target.path, "unet" if self._known else None)

    def find(self, name: str) -> tuple[Target, ...]:
        """The weights or rows with this name; () for none. Raises MatchError if the name fits several."""
        meanings = self.relation.find(name)
        if len(meanings) > 1:
            raise MatchError(
                "E-extract-name-ambiguous",
                file=self.weights.name,
                key=name,
                got=" and ".join("+".join(t.key for t in targets) for targets in meanings[:2]),
            )
        meant = meanings[0] if meanings else ()
        return meant if all(self.weights.reads(each.key) for each in meant) else ()


def pairs_of(base: Weights, tuned: Weights) -> Pairs:
    """Match the layers of two models by name, as an adapter's layers are matched to a model.

    Raises MatchError if a layer of one model fits several of the other, or if they have no layer in common.
    """
    sides = _Side(base), _Side(tuned)
    pairs: list[Pair] = []
    reshaped: list[str] = []
    used: tuple[set[str], set[str]] = (set(), set())
    biases: tuple[list[str], list[str]] = ([], [])
    # Look up the tuned model's names first, then the base's: between a fused layer and split ones, names
    # match in one direction only.
    for first, second in ((1, 0), (0, 1)):
        named_side, other = sides[first], sides[second]
        for target in named_side.all:
            if target.key in used[first] and target.rows is None:
                continue
            targets = other.find(named_side.name(target))
            if not targets or (first == 0 and any(each.key in used[1] for each in targets)):
                continue
            used[first].add(target.key)
            used[second].update(each.key for each in targets)
            shape, met = named_side.targets.shape_of(target), other.targets.shape_of(*targets)
            turned = {target.key in named_side.turned, *(each.key in other.turned for each in targets)}
            if shape != met or len(turned) > 1:
                shapes = (met, shape) if first == 1 else (shape, met)
                reshaped.append(f"{target.key}: {list(shapes[1])}, {list(shapes[0])} in the base")
                continue
            both = ((target,), targets) if first == 0 else (targets, (target,))
            (turn,) = turned
            pairs.append(Pair(named_side.name(target), *both, shape[::-1] if turn else shape, turn))
            if all(bool(each.bias) != bool(target.bias) for each in targets):
                side = first if target.bias else second
                biases[side].extend(each.bias for each in both[side] if each.bias)
    only = [(*_left(side, met), *alone) for side, met, alone in zip(sides, used, biases, strict=True)]
    others = max(side.others for side in sides)
    pairs_found = Pairs(tuple(pairs), only[0], only[1], tuple(reshaped), others)
    if not pairs:
        raise MatchError(
            "E-models-without-common-layers",
            file=tuned.name,
            name=base.name,
            got="; ".join(
                (
                    phrase("R-such", count=len(keys), what=what, keys=keys[0])
                    for what, keys in pairs_found.differences()
                )
            ),
        )
    return pairs_found


def _left(side: _Side, used: set[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(target.key for target in side.all if target.key not in used))
