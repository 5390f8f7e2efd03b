"""Merge several adapters into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any, cast

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import Parameter
from ..algorithms.fitting import Delta
from ..algorithms.full import Full
from ..algorithms.lora import Lora
from ..algorithms.norm import Norm
from ..changes.factors import joined
from ..changes.forms import Additive, LowRank, Spanned, add_up, reaches
from ..errors import LycorisError, PlanError, located, number_of
from ..files.quantised import Codec
from ..files.weights import ModelSource, weights_of
from ..files.writing import DATA_HASH, Progress, data_hash_of, metadata_of, short_name
from ..fit.engine import Goal, Prepare, Source, check_finite, expected, fit_layers, on_cpu
from ..fit.settings import SAME, FitSettings
from ..fit.steps import Steps
from ..layers.cast import cast_layer
from ..maths.decompositions import Pause
from ..maths.shapes import flat_shape
from ..maths.tensors import CPU
from ..ranks.sizes import Size
from ..reading.adapter import Adapter
from ..reading.fitted import FitReport, FitRow
from ..reading.load import title_of
from ..stack.stack import Entry, Stack
from .deltas import Deltas
from .limit import limited
from .matching import ChangedPlace, by_name, by_weight
from .registry import method_of

Weighted = Stack | Iterable[tuple[Adapter, float]]
PARAMETERS: tuple[Parameter, ...] = ("weight", "bias")


def merge_adapters(
    adapters: Weighted,
    method: str = "sum",
    size: Size | None = None,
    *,
    algorithm: str = "lora",
    base: ModelSource | None = None,
    norm_limit: float | None = None,
    dtype: torch.dtype | None = None,
    factor: int | None = None,
    tucker: bool = False,
    largest: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    codec: Codec | None = None,
    prepare: Prepare | None = None,
    progress: Progress | None = None,
    **options: float | str,
) -> Adapter:
    """Merge several adapters into one in memory, by a merge method.

    `adapters` are pairs of an adapter and its strength, or a stack. The block rules of a stack and its
    strengths for text encoders count too. `method` is a name in `merge_methods()`, and `options` are those of
    the method. Layers are read and merged one at a time, from their true changes, whatever their kinds. Where
    an adapter has no layer for a weight, averages and counts are over the other adapters.

    With `size` None nothing is lost: a layer becomes a LoRA of the rank of its merged change, or a full
    difference where that takes less. A layer that only one adapter has keeps its kind, if the method only
    multiplies its change (`MergeMethod.alone`). Other sizes, `algorithm`, `dtype`, `factor`, `tucker` and
    `largest` are as in `resize_adapter`. With `dtype` None each layer has the widest dtype of its sources. If
    these are float16 and bfloat16, it is float32.

    `base` is the model: a safetensors file, whose quantised weights `codec` reads, or a state dict. With a
    base, layers are matched by the weights that they change, and get the model's own names. Without one, they
    are matched by their names. A base is needed for kinds whose change depends on the weight (DoRA, OFT,
    BOFT, IA3, GLoRA, T-LoRA), for block rules, and for adapters that name layers in different ways.

    `norm_limit` bounds the spectral norm of each merged change to this many times the largest of the
    adapters' changes, strengths included; None for no bound. `seed` is for methods that draw random numbers,
    and for random bases. `device` is where to compute. `prepare` is called with the layers that are to be
    made, before the work, and may raise an error. `progress` is called with layers done.

    Raises LycorisError for a method or option that does not exist, for too few or too many adapters, and for
    adapters that can only be merged with a `base`; MatchError where the adapters have no layer in common or
    do not fit the base; LayerError for a layer that cannot be read or holds NaN, with file and key; PlanError
    for a size that cannot be met.
    """
    merging = _Merging(
        adapters, method, options, base, codec, norm_limit=norm_limit, seed=seed, device=device
    )
    settings = FitSettings(size or "auto", algorithm, dtype, factor, tucker, largest, seed, device)
    if settings.algorithm == SAME:
        raise LycorisError(
            "merged adapters may be of several kinds, so no single one can be kept",
            got=SAME,
            expected="lora, lokr, full ...",
        )
    text = merging.metadata(size, algorithm)
    sources = [merging.source(place) for place in merging.places]
    if prepare:
        prepare(expected(sources, settings))
    if size is None:
        layers, report = _exactly(merging, merging.places, merging.merged, settings, progress)
    else:
        layers, report = fit_layers(sources, settings, progress=progress, metadata=text)
    return merging.adapter(layers, report, text)


def orthogonal_adapters(
    adapters: Weighted,
    method: str = "tsv",
    *,
    base: ModelSource | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    codec: Codec | None = None,
    progress: Progress | None = None,
    **options: float | str,
) -> list[Adapter]:
    """One adapter in memory for each given adapter: its part of the merged result at strength 1.

    At the given strengths they sum to the result of `merge_adapters` with the same method, and their
    strengths can still be changed. Only methods whose result is a sum of such parts allow this (TSV-M, whose
    parts are orthogonal to each other). The other arguments are as in `merge_adapters`. The parts include the
    factors of block rules, but no strengths.
    """
    merging = _Merging(adapters, method, options, base, codec, device=device)
    if merging.method.parts is None:
        raise LycorisError(
            "the result of this merge method is not a sum of one part for each adapter",
            got=method,
            expected="tsv",
        )
    settings = FitSettings("auto", "lora", dtype, device=device)
    text = merging.metadata(None, "lora")
    found: list[Adapter] = []
    for index, entry in enumerate(merging.entries):
        own = [place for place in merging.places if index in place.entries()]
        layers, report = _exactly(merging, own, partial(merging.part, index), settings, progress)
        made = merging.adapter(layers, report, text)
        assert made.report is not None
        report = replace(made.report, source_size=entry.adapter.size)
        found.append(replace(made, name=f"{entry.adapter.name} ({method})", report=report))
    return found


class _Merging:
    """The adapters to merge, matched layer by layer."""

    def __init__(
        self,
        adapters: Weighted,
        method: str,
        options: Mapping[str, float | str],
        base: ModelSource | None,
        codec: Codec | None,
        *,
        norm_limit: float | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        # The stack refuses what is neither an entry nor a pair.
        found: Iterable[Any] = adapters
        given = Stack(
            Entry(*cast("tuple[Adapter, float]", each)) if isinstance(each, tuple) else each for each in found
        )
        given.check_constant("be merged with others")
        self.entries = [entry for entry in given if not entry.off]
        self.method = method_of(method)
        self.options = self.method.checked(options)
        self.base = None if base is None else weights_of(base, codec)
        self.norm_limit = norm_limit
        self.seed = seed
        self.device = device
        self._check()
        self.left_out: dict[str, str] = {}
        if self.base is None:
            self.places = by_name(self.entries)
        else:
            self.places, self.left_out = by_weight(self.entries, self.base)

    def _check(self) -> None:
        least, most = self.method.adapters
        if not least <= len(self.entries) <= most:
            wanted = f"{least} adapters" if least == most else f"at least {least}"
            raise LycorisError(
                f"the merge method {self.method.name} cannot take this number of adapters",
                got=f"{len(self.entries)} at a strength other than 0",
                expected=wanted,
            )
        limit = self.norm_limit
        if limit is not None and not 0 < limit < math.inf:
            raise LycorisError(
                "the norm limit is a number above 0, or None for no limit",
                got=repr(limit),
                expected="such as 1.0",
            )

    def merged(self, place: ChangedPlace, pause: Pause) -> Goal:
        """Merge all changes of a weight and of its bias by the method."""
        own = self._own(place)
        if own is None:
            return self._change(place, self._combined, pause)
        return Goal(own.additive() or (), self._bias(own.bias_additive() or ()), own)

    def _own(self, place: ChangedPlace) -> Layer | None:
        """The weight's only layer times a factor, if this is all that the method makes; else None."""
        first = place.changes[0]
        if self.method.alone is None or any(change.source != first.source for change in place.changes):
            return None
        factor = self.method.alone(first.strength, self.options)
        if self.norm_limit is not None:
            factor = math.copysign(min(abs(factor), self.norm_limit * abs(first.strength)), factor)
        part = first.read()
        layer = part.layer
        # Its other changes, such as of a bias that the model lacks, are not merged.
        whole = bool(layer.extent) + bool(layer.bias_extent) == len(place.changes)
        sums = layer.additive() is not None and layer.bias_additive() is not None
        plain = sums and layer.set_bias is None
        if part.rows or part.window or not whole or not plain or factor == 0.0:
            return None
        return layer if factor == 1.0 else layer.multiplied(factor)

    def part(self, entry: int, place: ChangedPlace, pause: Pause) -> Goal:
        """One adapter's part of the result."""
        found = self.method.parts
        assert found is not None

        def own(deltas: Deltas, parameter: Parameter) -> Sequence[Additive]:
            entries = place.entries(parameter)
            if entry not in entries:
                return ()
            at = entries.index(entry)
            forms = found(deltas, self.options)[at]
            given = self.entries[entry]
            if given.rules is None:
                return forms
            # Only the factor of the block rules: the adapter's own strength is applied later.
            factor = deltas.strengths[at] / given.strength_of(place.target and place.target.part)
            return [form.times(factor) for form in forms]

        return self._change(place, own, pause)

    def _combined(self, deltas: Deltas, parameter: Parameter) -> Sequence[Additive]:
        found = self.method.merge(deltas, self.options)
        return found if self.norm_limit is None else limited(found, deltas, self.norm_limit)

    def _change(
        self, place: ChangedPlace, of: Callable[[Deltas, Parameter], Sequence[Additive]], pause: Pause
    ) -> Goal:
        found: list[Sequence[Additive]] = []
        for parameter in PARAMETERS:
            deltas = place.deltas(parameter, self.base, self.seed, self.device, pause)
            found.append(() if deltas is None else of(deltas, parameter))
        forms, bias = found
        return Goal(tuple(forms), self._bias(bias))

    def _bias(self, forms: Sequence[Additive]) -> Tensor | None:
        return add_up(forms, torch.float32, CPU).flatten() if forms else None

    def source(self, place: ChangedPlace) -> Source:
        return Source(
            name=place.name,
            shape=place.shape,
            read=partial(self.merged, place),
            before=_before(place),
            dtype=self.dtype_of(place),
            norm=len(place.shape) == 1,
        )

    def dtype_of(self, place: ChangedPlace) -> torch.dtype:
        """The widest dtype of the layers that change a weight."""
        return reduce(
            torch.promote_types,
            (self.entries[change.entry].adapter.dtype_of(change.layer) for change in place.changes),
        )

    def metadata(self, size: Size | None, algorithm: str) -> dict[str, str]:
        recipe = {
            "merged": [_told(entry) for entry in self.entries],
            "method": self.method.name,
            "options": self.options,
            "norm_limit": self.norm_limit,
            "size": "exact" if size is None else str(size),
            "algorithm": algorithm,
            "seed": self.seed,
            **({} if self.base is None else {"base": short_name(self.base.name)}),
        }
        return metadata_of({}, {}, recipe, "source_recipe")

    def adapter(self, layers: Mapping[str, Layer], report: FitReport, metadata: Mapping[str, str]) -> Adapter:
        name = " + ".join(title_of(entry.adapter.name) for entry in self.entries)
        dialect = self.entries[0].adapter.dialect if self.base is None else None
        on = frozenset[str]().union(*(entry.adapter.on_parameters for entry in self.entries))
        found = Adapter.of(layers, name=name, dialect=dialect, metadata=metadata, on_parameters=on)
        report = replace(
            report,
            left_out={**self.left_out, **report.left_out},
            notes=(*self._notes(), *report.notes),
            stays="",
            source_size=sum({entry.adapter.path: entry.adapter.size for entry in self.entries}.values()),
        )
        return replace(found, report=report)

    def _notes(self) -> Iterator[str]:
        yield f"merged by {self.method.name}: {self.method.source}"
        alone = sum(len(place.entries()) < len(self.entries) for place in self.places)
        if alone:
            yield (
                f"{alone} of {number_of(len(self.places), 'layer')} not in every adapter; averages and "
                "counts there are over those that have them"
            )


def _exactly(
    merging: _Merging,
    places: Sequence[ChangedPlace],
    read: Callable[[ChangedPlace, Pause], Goal],
    settings: FitSettings,
    progress: Progress | None,
) -> tuple[dict[str, Layer], FitReport]:
    """Layers that are exact to rounding: an adapter's own layer, a LoRA of the true rank, or a full
    difference."""
    layers: dict[str, Layer] = {}
    rows: list[FitRow] = []
    left_out: dict[str, str] = {}
    steps = Steps(progress, len(places))

    def layer_of(place: ChangedPlace) -> Layer | None:
        change = read(place, steps.pause)
        made = _exact(change, place, settings, steps.pause)
        if made is not None:
            made = on_cpu(made)
        if isinstance(made, Full | Norm) and not any(bool(one.any()) for one in made.tensors().values()):
            made = None
        if change.own is None and change.bias is not None and bool(change.bias.any()):
            made = (made or Full()).with_bias_change(change.bias)
        return None if made is None else cast_layer(made, settings.dtype or merging.dtype_of(place))

    for place in places:
        with located(key=place.name):
            made = layer_of(place)
        if made is None:
            left_out[place.name] = "because it changes nothing"
        else:
            layers[place.name] = made
            count = sum(tensor.numel() for tensor in made.tensors().values())
            rows.append(FitRow(place.name, _before(place), made.algorithm, made.rank, count, 0.0, 0.0))
        steps.step()
    if not layers:
        raise PlanError("nothing is left of the changes", got=f"{len(places)} changes, all of them zero")
    return layers, FitReport(tuple(rows), left_out)


def _exact(change: Goal, place: ChangedPlace, settings: FitSettings, pause: Pause) -> Layer | None:
    """A layer with this change of the weight, or the one that makes all of it; None for no change."""
    check_finite(change)
    if change.own is None:
        return _nearest(change.forms, place, settings, pause) if change.forms else None
    biased = change.bias is not None and bool(change.bias.any())
    return change.own if biased or any(one.most for one in reaches(change.forms)) else None


def _nearest(
    forms: Sequence[Additive], place: ChangedPlace, settings: FitSettings, pause: Pause
) -> Layer | None:
    """A norm, a full difference, which may be zero, or a LoRA where that is smaller; None for a zero one."""
    shape, device = place.shape, torch.device(settings.device)
    if len(shape) < 2:
        values = add_up(forms, torch.float32, CPU).reshape(shape)
        return Norm(w_norm=values) if len(shape) == 1 else Full(diff=values)
    outputs, inputs = flat_shape(shape)
    # From this rank on two factors hold more numbers than the difference.
    factors = joined(forms, outputs * inputs // (outputs + inputs), device)
    if factors is None:
        pause()
        return Full(diff=add_up(forms, torch.float32, device).reshape(shape))
    low = forms if len(forms) == 1 and isinstance(forms[0], Spanned) else [LowRank(*factors, 1.0)]
    offers = Lora.fit(Delta(low, shape, largest=min(outputs, inputs), device=device, pause=pause))
    return offers[0].layer(len(offers[0].ranks) - 1) if offers else None


def _before(place: ChangedPlace) -> str:
    """One line of the report about what is merged."""
    sources = {change.source for change in place.changes}
    return place.changes[0].words if len(sources) == 1 else f"{len(sources)} changes"


def _told(entry: Entry) -> dict[str, Any]:
    """An adapter as a recipe records it: its file, the hash of its tensors, and its strengths."""
    adapter = entry.adapter
    return {
        "name": short_name(adapter.name),
        "hash": adapter.metadata.get(DATA_HASH) or data_hash_of(adapter.file, adapter.cache),
        "strength": entry.strength,
        "strength_clip": entry.strength_of("te"),
        "rules": str(entry.rules) if entry.rules else "",
    }
