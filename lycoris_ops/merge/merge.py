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
from ..changes.forms import Additive, add_up
from ..discovery import discover
from ..errors import LycorisError
from ..files.quantised import Codec
from ..files.weights import ModelSource, weights_of
from ..files.writing import DATA_HASH, Progress, data_hash_of, metadata_of, short_name
from ..fit.engine import Prepare, Source, exact_layers, expected, fit_layers
from ..fit.settings import SAME, FitSettings
from ..maths.decompositions import Pause
from ..maths.tensors import CPU
from ..messages import phrase
from ..ranks.sizes import Size
from ..reading.adapter import Adapter
from ..reading.fitted import FitReport
from ..reading.load import title_of
from ..stack.stack import Entry, Stack
from . import methods
from .deltas import Deltas
from .limit import limited
from .matching import Matched
from .method import MergeMethod

Weighted = Stack | Iterable[tuple[Adapter, float]]
PARAMETERS: tuple[Parameter, ...] = ("weight", "bias")
METHODS: dict[str, MergeMethod] = {module.METHOD.name: module.METHOD for module in discover(methods.__name__)}
"""The merge methods by name."""


def merge_methods() -> dict[str, MergeMethod]:
    """All merge methods by name, each with its source, its options and its number of adapters."""
    return dict(METHODS)


def method_of(name: str) -> MergeMethod:
    """The merge method of this name. Raises LycorisError for an unknown one."""
    if name not in METHODS:
        raise LycorisError("E-merge-method-unknown", got=str(name), expected=", ".join(METHODS))
    return METHODS[name]


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
    settings = FitSettings(size or "auto", algorithm, dtype, factor, tucker, largest, seed, device)
    merging = _Merging(adapters, method, options, settings, base, codec, norm_limit)
    if algorithm == SAME:
        raise LycorisError("E-merged-kind-not-kept", got=SAME)
    metadata = merging.metadata(size)
    sources = [merging.source(name, merging.merged) for name in merging.matched.layers]
    if prepare:
        prepare(expected(sources, settings))
    if size is None:
        layers, report = exact_layers(sources, settings, progress)
    else:
        layers, report = fit_layers(sources, settings, progress=progress, metadata=metadata)
    return merging.adapter(layers, report, metadata)


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
    settings = FitSettings("auto", "lora", dtype, device=device)
    merging = _Merging(adapters, method, options, settings, base, codec)
    if merging.method.parts is None:
        raise LycorisError("E-merge-result-not-a-sum", got=method)
    metadata = merging.metadata(None)
    adapters_of: list[Adapter] = []
    for index, entry in enumerate(merging.entries):
        sources = [
            merging.source(name, partial(merging.share, index))
            for name in merging.matched.layers
            if index in merging.matched.changing(name)
        ]
        merged = merging.adapter(*exact_layers(sources, settings, progress), metadata)
        assert merged.report is not None
        report = replace(merged.report, source_size=entry.adapter.size)
        adapters_of.append(replace(merged, name=f"{entry.adapter.name} ({method})", report=report))
    return adapters_of


class _Merging:
    """The adapters to merge, matched layer by layer."""

    def __init__(
        self,
        adapters: Weighted,
        method: str,
        options: Mapping[str, float | str],
        settings: FitSettings,
        base: ModelSource | None,
        codec: Codec | None,
        norm_limit: float | None = None,
    ) -> None:
        # The stack refuses what is neither an entry nor a pair.
        each: Iterable[Any] = adapters
        stack = Stack(
            Entry(*cast("tuple[Adapter, float]", item)) if isinstance(item, tuple) else item for item in each
        )
        stack.check_constant(phrase("R-be-merged-others"))
        self.entries = [entry for entry in stack if not entry.off]
        self.method = method_of(method)
        self.options = self.method.checked(options)
        self.settings = settings
        self.base = None if base is None else weights_of(base, codec)
        self.norm_limit = norm_limit
        self._check()
        self.matched = Matched(self.entries, self.base)

    def _check(self) -> None:
        least, most = self.method.adapters
        if not least <= len(self.entries) <= most:
            wanted = phrase("R-adapters", least=least) if least == most else phrase("R-at-least", least=least)
            raise LycorisError(
                "E-merge-count-unusable", name=self.method.name, count=len(self.entries), expected=wanted
            )
        limit = self.norm_limit
        if limit is not None and not 0 < limit < math.inf:
            raise LycorisError("E-norm-limit-unusable", got=repr(limit))

    def source(self, name: str, read: Callable[[str, Pause], Delta]) -> Source:
        """What becomes a layer of the result: the change of a weight that `read` merges."""
        layers, shape = self.matched.layers[name], self.matched.shape(name)
        count = self.matched.count(name)
        dtypes = (self.entries[entry].adapter.dtype_of(match.layer) for entry, match in layers)
        return Source(
            name=name,
            shape=shape,
            read=partial(read, name),
            before=self.matched.info(*layers[0]).words if count == 1 else phrase("R-changes-2", count=count),
            dtype=reduce(torch.promote_types, dtypes),
            only="norm" if len(shape) == 1 else None,
        )

    def merged(self, name: str, pause: Pause) -> Delta:
        """Merge all changes of a weight and of its bias by the method."""
        own = self._own(name)
        if own is None:
            return self._change(name, self._combined, pause)
        bias = _bias(own.bias_additive() or ())
        return Delta(own.additive() or (), self.matched.shape(name), bias=bias, own=own)

    def _own(self, name: str) -> Layer | None:
        """The weight's only layer times a factor, if this is all that the method makes; else None."""
        if self.method.alone is None or self.matched.count(name) > 1:
            return None
        matches = self.matched.layers[name]
        entry, match = matches[0]
        factor = self.method.alone(match.strength, self.options)
        if self.norm_limit is not None:
            factor = math.copysign(min(abs(factor), self.norm_limit * abs(match.strength)), factor)
        part = self.matched.read(entry, match)
        layer = part.layer
        # Its other changes, such as of a bias that the model lacks, are not merged.
        every = bool(layer.extent) + bool(layer.bias_extent) == len(matches)
        sums = layer.additive() is not None and layer.bias_additive() is not None
        plain = sums and layer.set_bias is None
        if part.rows or part.window or not every or not plain or factor == 0.0:
            return None
        return layer if factor == 1.0 else layer.multiplied(factor)

    def _combined(self, deltas: Deltas) -> Sequence[Additive]:
        forms = self.method.merge(deltas, self.options)
        return forms if self.norm_limit is None else limited(forms, deltas, self.norm_limit)

    def share(self, entry: int, name: str, pause: Pause) -> Delta:
        """One adapter's share of the result."""

        def own(deltas: Deltas) -> Sequence[Additive]:
            if entry not in deltas.entries:
                return ()
            assert self.method.parts is not None
            index = deltas.entries.index(entry)
            forms = self.method.parts(deltas, self.options)[index]
            if self.entries[entry].rules is None:
                return forms
            # Only the factor of the block rules: the adapter's own strength is applied later.
            strength = self.entries[entry].strength_of(self.matched.target(name).component)
            factor = deltas.strengths[index] / strength
            return [form.times(factor) for form in forms]

        return self._change(name, own, pause)

    def _change(self, name: str, merge: Callable[[Deltas], Sequence[Additive]], pause: Pause) -> Delta:
        """What `merge` makes of the changes of a weight, and of those of its bias."""
        merged: list[Sequence[Additive]] = []
        for parameter in PARAMETERS:
            deltas = self.matched.deltas(name, parameter, self.settings.seed, self.settings.device, pause)
            merged.append(() if deltas is None else merge(deltas))
        forms, bias = merged
        return Delta(tuple(forms), self.matched.shape(name), bias=_bias(bias))

    def metadata(self, size: Size | None) -> dict[str, str]:
        recipe = {
            "merged": [_recorded(entry) for entry in self.entries],
            "method": self.method.name,
            "options": self.options,
            "norm_limit": self.norm_limit,
            "size": "exact" if size is None else str(size),
            "algorithm": self.settings.algorithm,
            "seed": self.settings.seed,
            **({} if self.base is None else {"base": short_name(self.base.name)}),
        }
        return metadata_of({}, {}, recipe, "source_recipe")

    def adapter(self, layers: Mapping[str, Layer], report: FitReport, metadata: Mapping[str, str]) -> Adapter:
        name = " + ".join(title_of(entry.adapter.name) for entry in self.entries)
        dialect = self.entries[0].adapter.dialect if self.base is None else None
        on = frozenset[str]().union(*(entry.adapter.on_parameters for entry in self.entries))
        adapter = Adapter.of(layers, name=name, dialect=dialect, metadata=metadata, on_parameters=on)
        report = replace(
            report,
            left_out={**self.matched.left_out, **report.left_out},
            notes=(*self._notes(), *report.notes),
            stays="",
            source_size=sum({entry.adapter.path: entry.adapter.size for entry in self.entries}.values()),
        )
        return replace(adapter, report=report)

    def _notes(self) -> Iterator[str]:
        yield phrase("R-merged", name=self.method.name, source=self.method.source)
        layers = self.matched.layers
        alone = sum(len(self.matched.changing(name)) < len(self.entries) for name in layers)
        if alone:
            yield (phrase("R-not-every-adapter-averages-counts", alone=alone, count=len(layers)))


def _bias(forms: Sequence[Additive]) -> Tensor | None:
    return add_up(forms, torch.float32, CPU).flatten() if forms else None


def _recorded(entry: Entry) -> dict[str, Any]:
    """An adapter as a recipe records it: its file, the hash of its tensors, and its strengths."""
    adapter = entry.adapter
    return {
        "name": short_name(adapter.name),
        "hash": adapter.metadata.get(DATA_HASH) or data_hash_of(adapter.file, adapter.cache),
        "strength": entry.strength,
        "strength_clip": entry.strength_of("te"),
        "rules": str(entry.rules) if entry.rules else "",
    }
