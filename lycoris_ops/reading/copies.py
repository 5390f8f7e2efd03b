"""Changes that a file holds twice: in split and in fused layers, or under the names of two tools."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import Dependent, Parameter, change_of
from ..changes.forms import LowRank
from ..errors import LayerError, MatchError
from ..layers.part import Part
from ..layers.same import difference
from ..maths.shapes import Rows, Shape
from ..messages import phrase
from ..names.targets import Target, Targets
from .adapter import Adapter, LayerInfo

PROBES = 8
"""How many random vectors two changes are multiplied by. If the products are equal, so are the changes:
different ones practically never agree on even one vector."""
ROUNDING = 2.0
"""How far two copies may differ relative to the largest value, in eps of the coarsest dtype of their factors.
One of them may have the scale multiplied into a factor."""
LEAST = 1e-5
"""The least relative difference that is allowed: the changes are compared in float32."""
AT_MOST = 4
"""How often a file may hold one change. Known files hold it twice."""
PARTS = 4
"""The most layers that one fused layer replaces: query, key, value and feed-forward in Flux."""


class Use(NamedTuple):
    """Rows of a layer that change rows of a parameter of the model."""

    layer: str
    target: Target
    parameter: Parameter
    """The target's weight, or the bias beside it."""
    window: Rows | None
    """The rows of the layer; None for all of them."""
    shape: Shape
    """The parameter's shape; () where it is not known."""

    @property
    def parameter_key(self) -> tuple[str, Parameter]:
        """The parameter. The weight's key stands for the bias too."""
        return self.target.key, self.parameter

    @property
    def span(self) -> tuple[int, float]:
        """First row and end in the parameter. For all rows of an unknown shape the end is infinite."""
        return self.target.rows or (0, self.shape[0] if self.shape else math.inf)


def uses_of(info: LayerInfo, placed_targets: Sequence[Target], targets: Targets) -> list[Use]:
    """What a layer changes in a model: one use for each weight and for each bias."""
    uses: list[Use] = []
    for target, window in zip(placed_targets, targets.windows(placed_targets), strict=True):
        if info.shape:
            uses.append(Use(info.name, target, "weight", window, targets.shapes[target.key]))
        if info.bias is not None and target.bias is not None:
            uses.append(Use(info.name, target, "bias", window, targets.shapes[target.bias]))
    return uses


def find_copies(adapter: Adapter, uses: Sequence[Use]) -> dict[str, str]:
    """The layers of an adapter that only repeat others, each mapped to a layer that it repeats.

    `uses` are what the layers change in a model. Where two layers change the same rows, the one with more
    rows is kept, else the first in the file. The tensors of a layer are read only where another layer has
    some of its rows.

    Raises MatchError where two layers change the same rows differently, or where layers share only some of
    their rows.
    """
    if len({use.parameter_key for use in uses}) == len(uses):
        # In nearly every file one layer changes each parameter.
        return {}
    by_key: defaultdict[tuple[str, Parameter], list[Use]] = defaultdict(list)
    by_layer: defaultdict[str, list[Use]] = defaultdict(list)
    for use in uses:
        by_key[use.parameter_key].append(use)
        by_layer[use.layer].append(use)
    meeting = {
        name for uses_of_key in by_key.values() if len(uses_of_key) > 1 for name in _meeting(uses_of_key)
    }
    if not meeting:
        return {}
    order = {name: n for n, name in enumerate(by_layer)}
    size = {name: sum(use.span[1] - use.span[0] for use in by_layer[name]) for name in meeting}
    kept: defaultdict[tuple[str, Parameter], list[Use]] = defaultdict(list)
    copies: dict[str, str] = {}
    count: defaultdict[str, int] = defaultdict(int)
    for name in sorted(meeting, key=lambda name: (-size[name], order[name])):
        pairs = [(use, _met(use, kept[use.parameter_key])) for use in by_layer[name]]
        if not any(others for _, others in pairs):
            for use in by_layer[name]:
                kept[use.parameter_key].append(use)
            continue
        original = next(others[0] for _, others in pairs if others)
        for use, others in pairs:
            _check_copy(adapter, use, others, original)
        copies[name] = original.layer
        count[original.layer] += 1
        # A fused layer has each of its parts as a copy.
        if count[original.layer] > AT_MOST * PARTS:
            raise _two(adapter, pairs[0][0], original, phrase("R-file-holds-many-times"))
    return copies


def _meeting(uses: list[Use]) -> set[str]:
    """The layers that share rows with another one, among the uses of one parameter."""
    meeting: set[str] = set()
    last: Use | None = None
    for use in sorted(uses, key=lambda use: use.span):
        if last is not None and use.span[0] < last.span[1]:
            meeting |= {last.layer, use.layer}
        if last is None or use.span[1] > last.span[1]:
            last = use
    return meeting


def _met(use: Use, others: list[Use]) -> list[Use]:
    """The uses among `others` that have rows in common with `use`, by their first row."""
    first, end = use.span
    return sorted((o for o in others if o.span[0] < end and first < o.span[1]), key=lambda o: o.span)


def _check_copy(adapter: Adapter, use: Use, others: list[Use], original: Use) -> None:
    """Raise MatchError unless `others` cover the rows of `use` and change them as it does.

    `original` is any other use of the same rows, for the error.
    """
    end: float = use.span[0]
    for other in others:
        if other.span[0] > end:
            break
        end = max(end, other.span[1])
        rows = (max(use.span[0], other.span[0]), min(use.span[1], other.span[1]))
        if why := _differ(adapter, use, other, rows):
            raise _two(adapter, use, other, why)
    if end < use.span[1]:
        raise _two(adapter, use, original, phrase("R-one-has-rows-other-does"))


def _two(adapter: Adapter, use: Use, other: Use, why: str) -> MatchError:
    keys = [next(iter(adapter.info[each.layer].keys.values())) for each in (other, use)]
    return MatchError(
        "E-layers-of-adapter-collide",
        file=adapter.path,
        key=use.target.key,
        why=why,
        one=other.layer,
        other=use.layer,
        one_key=keys[0],
        other_key=keys[1],
    )


def _differ(adapter: Adapter, use: Use, other: Use, rows: tuple[float, float]) -> str | None:
    """How the changes of two layers differ in rows of a parameter, in words; None where they are equal."""
    layers = [adapter.layer(each.layer, keep=False) for each in (use, other)]
    same = (use.target.rows, use.window) == (other.target.rows, other.window)
    if same and type(layers[0]) is type(layers[1]) and difference(*layers) is None:
        return None
    if not use.shape:
        return phrase("R-without-shapes-model-s-weights")
    span = (int(rows[0]), int(rows[1]))
    try:
        ours, theirs = (_probed(layer, each, span) for layer, each in zip(layers, (use, other), strict=True))
    except LayerError:
        return phrase("R-they-cannot-be-compared")
    allowed = max(LEAST, *(ROUNDING * _rounding(layer) for layer in layers))
    # Written so that NaN fails too.
    if (ours - theirs).abs().max().item() <= allowed * theirs.abs().max().item():
        return None
    return phrase("R-they-change-differently")


def _probed(layer: Layer, use: Use, rows: Rows) -> Tensor:
    """The change of some rows of a parameter, times the random vectors: (rows, PROBES), float32."""
    first = (use.window[0] if use.window else 0) - use.span[0]
    window = (first + rows[0], first + rows[1])
    own = layer.extent if use.parameter == "weight" else layer.bias_extent
    all_of_it = own is not None and bool(own) and window == (0, own[0])
    shape = (rows[1] - rows[0], *use.shape[1:])
    forms = Part(layer, None, None if all_of_it else window, parameter=use.parameter).forms()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(math.prod(shape[1:]), PROBES, generator=generator)
    if any(isinstance(form, Dependent) for form in forms):
        # The change depends on the weight. Any weight will do, if it is the same for both.
        weight = torch.randn(shape, generator=generator)
        return change_of(forms, weight).reshape(shape[0], -1) @ vectors
    total = torch.zeros(shape[0], PROBES)
    for form in forms:
        if isinstance(form, LowRank):
            total += form.scale * (form.up.float() @ (form.down.float() @ vectors))
        elif not isinstance(form, Dependent):
            total += form.dense(torch.float32, torch.device("cpu")) @ vectors
    return total


def _rounding(layer: Layer) -> float:
    """The eps of the coarsest dtype of a layer's factors."""
    dtypes = [tensor.dtype for tensor in layer.tensors().values() if tensor.is_floating_point()]
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
