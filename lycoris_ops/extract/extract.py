"""Extract an adapter from a tuned model and its base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algorithms.fitting import Delta
from ..changes.forms import Dense
from ..errors import LycorisError, MatchError, located
from ..files.model_file import stem_of
from ..files.quantised import Codec
from ..files.weights import ModelSource, Weights, read_rows, rounding_variance, weights_of
from ..files.writing import Progress, metadata_of, short_name
from ..fit.engine import Prepare, Source, check_finite, expected, fit_layers
from ..fit.settings import SAME, FitSettings, Making
from ..maths.decompositions import Pause
from ..maths.shapes import Rows
from ..maths.tensors import is_finite, largest
from ..messages import number_of, phrase
from ..names.targets import bias_rows, weight_rows
from ..ranks.sizes import Size
from ..reading.adapter import TRANSPOSED, Adapter
from .pairs import NAMED, Pair, Pairs, pairs_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

DTYPE = torch.float16
"""The default dtype. Differences are small, and float16 has three more bits of precision than bfloat16."""


def extract_adapter(
    base: ModelSource,
    tuned: ModelSource,
    algorithm: str = "lora",
    size: Size = "auto",
    *,
    codec: Codec | None = None,
    strict: bool = False,
    name: str | None = None,
    prepare: Prepare | None = None,
    progress: Progress | None = None,
    **making: Unpack[Making],
) -> Adapter:
    """Extract, in memory, an adapter whose layers approximate tuned - base.

    The models are state dicts or safetensors files; files are read weight by weight, so no model is ever
    whole in memory. `codec` reads quantised weights of files. The models' layers are matched by the names
    that adapters give them, so prefixes and fused attentions may differ.

    Singular values that the models' rounding noise could explain are left out (see `Delta`).
    With the size "auto" each layer keeps everything above the noise. Where that takes more than `largest`
    ranks, as between float32 models, which have hardly any noise, the knee of the energy curve decides. No
    value is clamped. Weights of one dimension, biases and bare parameters are stored as plain differences.
    `dtype` is float16 unless given. The other arguments are as in `resize_adapter`.

    `Adapter.report` says what was kept and how the layers of the models differ; with `strict` a difference is
    an error.

    Raises MatchError where the models have no layer in common, or, with `strict`, where their layers differ;
    FileFormatError for a damaged file or a weight that is quantised in an unknown way; LayerError, with the
    weight, for NaN; PlanError for a size that cannot be met.
    """
    if algorithm == SAME:
        raise LycorisError("E-difference-has-no-kind", got=algorithm)
    making["dtype"] = making.get("dtype") or DTYPE
    settings = FitSettings(size, algorithm, **making)
    before, after = (
        weights_of(base, codec, name=phrase("R-base-model")),
        weights_of(tuned, codec, name=phrase("R-tuned-model")),
    )
    pairs = pairs_of(before, after)
    if strict:
        _check_same(pairs, after)
    sources = [_source(pair, before, after, settings) for pair in pairs.pairs]
    if prepare:
        prepare(expected(sources, settings))
    recipe = {
        "extracted": short_name(after.name),
        "base": short_name(before.name),
        "size": str(size),
        "algorithm": algorithm,
        "seed": settings.seed,
    }
    turned = {TRANSPOSED: "true"} if any(pair.turned for pair in pairs.pairs) else {}
    text = metadata_of({}, turned, recipe, "source_recipe")
    with located(file=after.name):
        layers, report = fit_layers(sources, settings, progress=progress, metadata=text)
    adapter = Adapter.of(
        layers, name=name or phrase("R-extracted", name=stem_of(short_name(after.name))), metadata=text
    )
    report = replace(report, missing=_missing(pairs), notes=(*_notes(pairs), *report.notes))
    return replace(adapter, report=report)


def _source(pair: Pair, before: Weights, after: Weights, settings: FitSettings) -> Source:
    weight = pair.base[0].key.endswith("weight") or pair.tuned[0].key.endswith("weight")
    return Source(
        name=pair.name,
        shape=pair.shape,
        read=partial(_read, pair, before, after, str(settings.device)),
        before="difference",
        dtype=DTYPE,
        only=None if weight and len(pair.shape) > 1 else "norm" if weight and pair.shape else "full",
    )


def _read(pair: Pair, before: Weights, after: Weights, device: str, pause: Pause) -> Delta:
    with located(file=after.name, key=pair.tuned[0].key):
        change, size, noise = _difference(
            weight_rows(pair.base), weight_rows(pair.tuned), before, after, device, pause
        )
        pause()
        change = change.T.contiguous() if pair.turned else change
        forms = (Dense(change.reshape(len(change), -1)),) if size else ()
        bias = _bias(pair, before, after, pause)
        return Delta(forms, pair.shape, bias=bias, noise=noise if len(pair.shape) > 1 else 0.0)


def _bias(pair: Pair, before: Weights, after: Weights, pause: Pause) -> Tensor | None:
    """The change of the pair's biases; None if there is none."""
    base, tuned = bias_rows(pair.base), bias_rows(pair.tuned)
    if not base or not tuned:
        return None
    change, size, _ = _difference(base, tuned, before, after, "cpu", pause)
    return change if size else None


def _difference(
    first: Sequence[tuple[str, Rows | None]],
    second: Sequence[tuple[str, Rows | None]],
    before: Weights,
    after: Weights,
    device: str,
    pause: Pause,
) -> tuple[Tensor, float, float | None]:
    """tuned - base in float32, its largest absolute value, and the RMS of the two models' rounding error.

    The last is None if it is unknown.
    """
    old = read_rows(before, first)
    pause()
    other = read_rows(after, second)
    pause()
    variances = [
        _variance(values, keys, source)
        for values, keys, source in ((old, first, before), (other, second, after))
    ]
    if torch.float64 in (old.dtype, other.dtype):
        change = (other.double() - old.double()).to(device, torch.float32)
    else:
        change = other.to(device, torch.float32, copy=True).sub_(old.to(device))
    size = largest(change)
    if not math.isfinite(size):
        # An infinity or a NaN that both models have is no change: hosts do not initialise weights that a
        # checkpoint lacks.
        same = (old == other) | (old.isnan() & other.isnan())
        change.masked_fill_(same.to(device), 0.0)
        with located(file=(after if is_finite(old) else before).name):
            check_finite((), change)
        size = largest(change)
    noise = None if None in variances else sum(v for v in variances if v is not None) ** 0.5
    return change, size, noise


def _variance(values: Tensor, ranges: Sequence[tuple[str, Rows | None]], source: Weights) -> float | None:
    grain = source.grain(ranges[0][0])
    return None if grain is None else rounding_variance(values, grain)


def _check_same(pairs: Pairs, after: Weights) -> None:
    missing = _missing(pairs)
    if missing:
        raise MatchError("E-models-layers-differ", file=after.name, got="; ".join(missing))


def _missing(pairs: Pairs) -> tuple[str, ...]:
    lines: list[str] = []
    for what, keys in pairs.differences():
        more = f" {phrase('R-more-3', count=len(keys) - NAMED)}" if len(keys) > NAMED else ""
        lines.append(f"{len(keys)} {what}: {', '.join(keys[:NAMED])}{more}")
    return tuple(lines)


def _notes(pairs: Pairs) -> list[str]:
    if not pairs.others:
        return []
    others = number_of(pairs.others, "tensor belongs to a part", "tensors belong to parts")
    return [phrase("R-adapters-do-not-change-such", others=others)]
