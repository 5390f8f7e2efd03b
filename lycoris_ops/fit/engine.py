"""Turn changes of weights, read one at a time, into layers of a chosen kind and size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..algorithms import Layer, declaring
from ..algorithms.base import overflow
from ..algorithms.fitting import Delta, Fitted, Offer
from ..algorithms.full import Full
from ..algorithms.lora import Lora
from ..algorithms.norm import Norm
from ..changes.factors import joined
from ..changes.forms import Additive, LowRank, Spanned, add_up, reaches
from ..errors import LayerError, PlanError, located
from ..files.safetensors_file import encode_header
from ..files.writing import Progress
from ..layers.cast import cast_layer
from ..maths.decompositions import Pause
from ..maths.shapes import Shape, flat_shape
from ..maths.tensors import CPU, fetched, largest
from ..messages import phrase
from ..ranks.allocate import NOTHING, Candidate
from ..reading.fitted import UNCHANGED, FitReport, FitRow
from ..writing.save import Expected
from .choice import all_of_it, by_rank, by_size, complete, in_bytes, is_short
from .settings import ANY, FITTED, SAME, FitSettings

HELD = 256 << 20
"""The most bytes of factors kept from measuring until the layers are made. Others are computed again."""
KEY = 104
"""Bytes of a tensor's entry in a file's header, without the name of its layer."""
KINDS = declaring(Fitted)
ALPHA_BYTES = 4
"""Bytes of an alpha in float32."""
SHARE_ROUNDING = 3e-7
"""The rounding error of the kept share of the energy, which is a sum of squares of float32 numbers."""
OTHERS = 640
"""Bytes for the rest of a file: the record of how it was saved, and the ends of its header."""
OFTEN = 0.2
"""Seconds between two calls of `progress` within a step."""


class Steps:
    """Calls `progress` with the steps done and their total: after each step, and now and then within one.

    `progress` may raise to end the work.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.total = total
        self._progress = progress
        self._done = 0
        self._last_call = 0.0

    def step(self) -> None:
        """Count a step as done."""
        self._done += 1
        self._last_call = 0.0
        self.pause()

    def pause(self) -> None:
        """Call `progress` if the last call was more than OFTEN ago. See `maths.decompositions.Pause`."""
        if self._progress and time.monotonic() - self._last_call > OFTEN:
            self._progress(min(self._done, self.total), self.total)
            self._last_call = time.monotonic()


@dataclass(frozen=True)
class Source:
    """A change that is to become a layer.

    `read` is called once or twice, and its result is not kept in between. It calls its argument now and then.
    """

    name: str
    """The name of the new layer."""
    shape: Shape
    """The weight's shape; () where only the bias changes."""
    read: Callable[[Pause], Delta]
    before: str
    """The change in words: `lora 64`, `difference`."""
    dtype: torch.dtype
    """The dtype of the new layer's tensors, where none is asked for."""
    kind: str | None = None
    """The algorithm of the source; None if it is no adapter's layer."""
    only: str | None = None
    """The kind that it always becomes, where it is no matrix: a norm, or a full difference as of a bare
    parameter. None where it is to be chosen."""


Prepare = Callable[[Mapping[str, Expected]], object]
"""Called before the work, with the layers that are to be made, by name. It may raise an error."""


def expected(sources: Iterable[Source], settings: FitSettings) -> dict[str, Expected]:
    """The kind and shape of each layer to be made; `Full` if the kind depends on the values."""
    expectations: dict[str, Expected] = {}
    for source in sources:
        kinds = kinds_of(source, settings)
        expectations[source.name] = Expected(KINDS[kinds[0]] if len(kinds) == 1 else Full, source.shape)
    return expectations


def kinds_of(source: Source, settings: FitSettings) -> tuple[str, ...]:
    """The kinds that a change may become."""
    if source.only or len(source.shape) < 2:
        return (source.only or "full",)
    if settings.algorithm == SAME:
        return (source.kind or "lora",)
    if settings.algorithm != ANY:
        return (settings.algorithm,)
    # Among layers that keep equally much at one size the first wins: a LoRA rather than a full difference.
    factored = [name for name in FITTED[::-1] if not KINDS[name].whole]
    return (*factored, *(name for name in FITTED if KINDS[name].whole))


def fit_layers(
    sources: Sequence[Source],
    settings: FitSettings,
    *,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
    kept: Mapping[str, Layer] | None = None,
) -> tuple[dict[str, Layer], FitReport]:
    """Fit layers of the kind and size in `settings` to the changes. Return them by name, and what they keep.

    With a `Rank`, each source is read once. Any other size is divided among the layers so that they keep
    most, and each source is read twice, first to be measured. A budget in bytes also pays for `metadata` and
    for `kept`, the layers that stay as they are.

    Raises PlanError for a size that cannot be met, and where nothing is left of the changes. Raises
    LayerError, with the layer, for values that are not finite or do not fit the dtype.
    """
    return _Engine(sources, settings, progress, metadata or {}, kept or {}).run()


@dataclass
class _Engine:
    sources: Sequence[Source]
    settings: FitSettings
    progress: Progress | None
    metadata: Mapping[str, str]
    kept: Mapping[str, Layer]

    def __post_init__(self) -> None:
        self.largest = self.settings.most
        self.candidates: dict[str, list[Candidate]] = {}
        self.rows: dict[str, FitRow] = {}
        """The line of each change in the report. Until its layer is made, all its energy is lost."""
        self.biases: dict[str, Tensor] = {}
        self.layers: dict[str, Layer] = {}
        self.left_out: dict[str, str] = {}
        self.stayed: list[str] = []
        self.own = 0
        self.lost = 0.0
        self.held = 0
        self.steps = Steps(self.progress, len(self.sources) * (1 if self.settings.rank is not None else 2))

    def run(self) -> tuple[dict[str, Layer], FitReport]:
        rank, any_kind = self.settings.rank, self.settings.algorithm == ANY
        if rank is not None:
            for source in self.sources:
                candidates = self._measure(source)
                self._make(source, candidates, by_rank(candidates, rank, any_kind=any_kind))
        else:
            self._measure_all(self.sources)
            self._look_further()
            chosen = by_size(
                self.candidates, self.settings.size, self._signal(), self._full(), self._beside()
            )
            for source in self.sources:
                self._make(source, self.candidates.pop(source.name), chosen.get(source.name, NOTHING))
        if not self.layers:
            raise PlanError("E-changes-only-rounding", count=len(self.sources))
        stays = ""
        if self.own == len(self.sources):
            smaller = self.settings.never_larger
            stays = (
                phrase("R-nothing-smaller-keeps-much") if smaller else phrase("R-no-layer-larger-than-was")
            )
        rows = tuple(self.rows[name] for name in self.layers)
        report = FitReport(rows, self.left_out, self.lost, notes=tuple(self._notes(rows)), stays=stays)
        return self.layers, report

    # Measuring.

    def _measure_all(self, sources: Sequence[Source]) -> None:
        for source in sources:
            self.held -= _held(self.candidates.get(source.name, ()))
            self.candidates[source.name] = self._measure(source)
            self.held += _held(self.candidates[source.name])
            self.steps.step()

    def _look_further(self) -> None:
        """Double the ranks that are looked at, until they suffice for the size."""
        if self.settings.largest is not None:
            return
        size = self.settings.size
        while is_short(self.candidates, size, self._signal(), self._full(), self._beside()):
            more = [
                source
                for source in self.sources
                if not complete(self.candidates[source.name]) and self.largest < min(flat_shape(source.shape))
            ]
            if not more:
                return
            self.largest *= 2
            self.steps.total += len(more)
            self._measure_all(more)

    def _measure(self, source: Source) -> list[Candidate]:
        """What a change may become; NOTHING is among it where it may also be left out.

        Its energy, noise and bias are noted, and the change is let go.
        """
        self.rows[source.name] = FitRow(source.name, source.before, "", None, 0, 0.0, 0.0)
        with located(key=source.name):
            change = source.read(self.steps.pause)
            check_finite(change.forms, change.bias)
            if change.bias is not None:
                self.biases[source.name] = change.bias
            if not change.forms:
                return []
            delta = self._delta(source, change, self.largest)
            if not math.isfinite(delta.energy):
                raise _not_finite()
            offers: list[Offer] = []
            kinds: Sequence[str] = ()
            if delta.energy > 0 and (delta.noise == 0.0 or delta.significant):
                kinds = kinds_of(source, self.settings)
                offers = self._offers(source, delta, kinds)
                if not offers:
                    # The kind has no layer for this weight.
                    kinds = ("full",)
                    offers = self._offers(source, delta, kinds)
            noise = delta.variance * math.prod(source.shape)
            self.rows[source.name] = replace(
                self.rows[source.name], energy=delta.energy, lost=delta.energy, noise=noise
            )
            candidates = self._candidates(source, delta, kinds, offers)
        if self.settings.rank is not None or not candidates:
            return candidates
        # Vectors and bare parameters are small, and become full differences in any case.
        exact = source.only is not None or len(source.shape) < 2
        if self.settings.size == "auto" and (exact or (change.noise != 0.0 and complete(candidates))):
            return [all_of_it(candidates)]
        return [NOTHING, *candidates]

    def _offers(self, source: Source, delta: Delta, kinds: Iterable[str]) -> list[Offer]:
        """The nearest layers of these kinds. Where they would hold too much, they are fitted again."""
        offers: list[Offer] = []
        held = self.held
        for kind in kinds:
            self.steps.pause()
            for number, offer in enumerate(KINDS[kind].fit(delta)):
                if self.settings.rank is None and held + offer.held > HELD:
                    again = partial(self._fitted_again, source, kind, number, delta.largest)
                    offers.append(replace(offer, make=again, held=0, start={}, sums=None))
                else:
                    held += offer.held
                    offers.append(offer)
        return offers

    def _fitted_again(self, source: Source, kind: str, number: int, largest: int, index: int) -> Layer:
        delta = self._delta(source, source.read(self.steps.pause), largest)
        return KINDS[kind].fit(delta)[number].layer(index)

    def _read_again(self, source: Source, _: int) -> Layer:
        own = source.read(self.steps.pause).own
        assert own is not None
        return own

    def _delta(self, source: Source, change: Delta, largest: int) -> Delta:
        """The change with the settings of the fit."""
        # Full differences hold the noise too, and need no spectrum.
        exact = all(KINDS[kind].whole for kind in kinds_of(source, self.settings))
        return replace(
            change,
            largest=min(largest, *flat_shape(source.shape)),
            noise=0.0 if exact else change.noise,
            factor=self.settings.factor,
            tucker=self.settings.tucker,
            seed=self.settings.seed,
            # A vector is too small to be worth a wait.
            device=torch.device(self.settings.device) if len(source.shape) > 1 else CPU,
            pause=self.steps.pause,
        )

    def _candidates(
        self, source: Source, delta: Delta, kinds: Sequence[str], offers: Iterable[Offer]
    ) -> list[Candidate]:
        """Every layer that the change may become. Its gain is the energy kept, without the noise."""
        if not delta.energy > 0:
            return []
        candidates = [
            self._candidate(source, offer, index, delta.variance)
            for offer in offers
            for index in range(len(offer.ranks))
        ]
        if delta.own is None:
            return candidates
        stays = self._candidate(source, self._own(source, delta.own, delta.energy), 0, 0.0)
        if self._may_stay(delta.own, kinds, bound=delta.bound):
            candidates.insert(0, stays)
        if self.settings.never_larger:
            # Keep the source's own layer if no candidate is as small, even if its kind was not asked for.
            # Bytes count: a layer in 8 bits has fewer of them than a new one with as many parameters.
            width = self._dtype(source).itemsize
            most = stays.parameters * width
            if self.settings.dtype is None:
                most = sum(tensor.nbytes for tensor in _factors_of(delta.own))
            candidates = [c for c in candidates if c is stays or c.parameters * width <= most] or [stays]
        return candidates

    def _candidate(self, source: Source, offer: Offer, index: int, variance: float) -> Candidate:
        count = offer.parameters[index]
        gain = max(0.0, offer.kept[index] - variance * count)
        return Candidate(self._cost(source, count, offer.tensors), gain, offer, index)

    def _own(self, source: Source, own: Layer, energy: float) -> Offer:
        """The source's own layer, which keeps everything. Where other sources are measured before it is made,
        it is read again, because it may be as large as the weight."""
        return Offer(
            algorithm=own.algorithm,
            ranks=(own.rank,),
            kept=(energy,),
            parameters=(sum(tensor.numel() for tensor in _factors_of(own)),),
            make=partial(self._read_again, source) if self.settings.rank is None else lambda _: own,
            tensors=len(own.dump()),
            own=True,
        )

    def _may_stay(self, own: Layer, kinds: Sequence[str], *, bound: bool) -> bool:
        """Whether the settings allow the source's own layer."""
        plain = own.table.cores and own.rank is not None and own.tensors().keys().isdisjoint(own.table.cores)
        if self.settings.factor is not None or (self.settings.tucker and plain):
            return False
        highest = self.settings.rank or self.settings.largest
        if highest is not None and (own.rank or 0) > highest:
            return False
        if self.settings.never_larger:
            return True
        return not bound and (own.algorithm in kinds or self.settings.algorithm == SAME)

    def _cost(self, source: Source, parameters: int, tensors: int) -> int:
        """The cost of a layer: parameters, or bytes including those of its entries in the header."""
        if not in_bytes(self.settings.size):
            return parameters
        return parameters * self._dtype(source).itemsize + tensors * (len(source.name) + KEY) + ALPHA_BYTES

    def _signal(self) -> float:
        """The energy of all changes without their noise."""
        return sum(max(0.0, row.energy - row.noise) for row in self.rows.values())

    def _full(self) -> int:
        """The number of values of the weights that are changed."""
        return sum(math.prod(source.shape) for source in self.sources if source.shape)

    def _beside(self) -> int:
        """Everything outside the candidates' costs: biases and, for bytes, the rest of the file."""
        if not in_bytes(self.settings.size):
            return sum(bias.numel() for bias in self.biases.values())
        kept = sum(
            tensor.nbytes + len(name) + len(suffix) + KEY
            for name, layer in self.kept.items()
            for suffix, tensor in layer.dump().items()
        )
        added = sum(
            self.biases[source.name].numel() * self._dtype(source).itemsize + len(source.name) + KEY
            for source in self.sources
            if source.name in self.biases
        )
        return OTHERS + len(encode_header({}, self.metadata)) + kept + added

    def _dtype(self, source: Source) -> torch.dtype:
        return self.settings.dtype or source.dtype

    # Making.

    def _make(self, source: Source, candidates: Sequence[Candidate], chosen: Candidate) -> None:
        """Take the chosen layer into the result, or say why there is none."""
        row = self.rows[source.name]
        if chosen.offer is not None or source.name in self.biases:
            with located(key=source.name):
                self._take(source, chosen)
        elif not source.shape or row.energy == 0.0:
            self.left_out[source.name] = UNCHANGED
        elif not candidates:
            self.left_out[source.name] = phrase("R-because-only-rounding-sources")
        else:
            self.left_out[source.name] = phrase("R-because-energy-not-worth-size")
            self.lost += row.energy
        self.steps.step()

    def _take(self, source: Source, chosen: Candidate) -> None:
        """Make the chosen layer, on the CPU; one with the bias alone where only that changes."""
        row, bias = self.rows[source.name], self.biases.get(source.name)
        layer = Full() if chosen.offer is None else on_cpu(chosen.offer.layer(chosen.size))
        if not chosen.own:
            if bias is not None:
                layer = layer.with_bias_change(bias)
            layer = cast_layer(layer, self._dtype(source))
        elif self.settings.dtype is not None:
            layer = cast_layer(layer, self.settings.dtype)
        self.layers[source.name] = layer
        self.own += chosen.own and self.settings.dtype is None
        if chosen.own and self.settings.algorithm not in (layer.algorithm, ANY, SAME):
            self.stayed.append(source.before)
        energy = 0.0 if chosen.offer is None else row.energy
        self.lost += row.energy - energy
        lost = 0.0 if chosen.own else energy - chosen.kept
        self.rows[source.name] = replace(
            row,
            algorithm=layer.algorithm,
            rank=chosen.rank,
            parameters=chosen.parameters + (0 if bias is None else bias.numel()),
            energy=energy,
            # A smaller loss is only the rounding of the two numbers.
            lost=lost if lost > SHARE_ROUNDING * energy else 0.0,
            noise=0.0 if chosen.offer is None else row.noise,
        )

    def _notes(self, rows: Iterable[FitRow]) -> Iterable[str]:
        if self.stayed:
            kind = self.settings.algorithm
            yield (phrase("R-no-smaller-keeps-much-give", count=len(self.stayed), kind=kind))
        rank = self.settings.rank
        lower = [row for row in rows if rank and row.rank is not None and row.rank < rank]
        if lower:
            yield (phrase("R-lower-rank-than-their-changes", count=len(lower), rank=rank))


def on_cpu(layer: Layer) -> Layer:
    """The layer on the CPU, with one wait for the device."""
    held = layer.tensors()
    return layer.with_tensors(dict(zip(held, fetched(*held.values()), strict=True)))


def _factors_of(layer: Layer) -> list[Tensor]:
    """The tensors that count for the size of a layer: all but biases and numbers."""
    counted = layer.table.factors - set(layer.table.biases)
    return [tensor for name, tensor in layer.tensors().items() if name in counted]


def _held(candidates: Iterable[Candidate]) -> int:
    """Bytes of the tensors that the offers of candidates hold."""
    return sum({id(c.offer): c.offer.held for c in candidates if c.offer is not None}.values())


def check_finite(forms: Iterable[Additive], bias: Tensor | None = None) -> None:
    """Raise LayerError for a change that holds NaN or infinity, or that may overflow float32.

    What is on a device is not looked at, since that waits: the energy of the change tells it later.
    """
    here = [form for form in forms if all(_is_here(part) for part in form.bounds())]
    sizes = [reach.within for reach in reaches(here)]
    if bias is not None:
        sizes.append(largest(bias))
    if not all(map(math.isfinite, sizes)):
        raise _not_finite()
    if max(sizes, default=0.0) > torch.finfo(torch.float32).max:
        raise overflow(torch.float32)


def _is_here(bound: float | Tensor) -> bool:
    return not isinstance(bound, Tensor) or bound.device.type == "cpu"


def _not_finite() -> LayerError:
    return LayerError("E-change-not-finite")


def exact_layers(
    sources: Sequence[Source], settings: FitSettings, progress: Progress | None = None
) -> tuple[dict[str, Layer], FitReport]:
    """The changes by name as layers: each one's own, a LoRA of the true rank, or a full difference.

    Of the settings only `dtype` and `device` count. Raises as `fit_layers` does.
    """
    layers: dict[str, Layer] = {}
    rows: list[FitRow] = []
    left_out: dict[str, str] = {}
    steps = Steps(progress, len(sources))
    device = torch.device(settings.device)
    for source in sources:
        with located(key=source.name):
            layer = _exact(source.read(steps.pause), device, steps)
            layer = None if layer is None else cast_layer(layer, settings.dtype or source.dtype)
        if layer is None:
            left_out[source.name] = UNCHANGED
        else:
            layers[source.name] = layer
            count = sum(tensor.numel() for tensor in layer.tensors().values())
            rows.append(FitRow(source.name, source.before, layer.algorithm, layer.rank, count, 0.0, 0.0))
        steps.step()
    if not layers:
        raise PlanError("E-changes-all-zero", count=len(sources))
    return layers, FitReport(tuple(rows), left_out)


def _exact(change: Delta, device: torch.device, steps: Steps) -> Layer | None:
    """A layer on the CPU with this change of the weight and of the bias; None for no change."""
    check_finite(change.forms, change.bias)
    biased = change.bias is not None and bool(change.bias.any())
    if change.own is not None:
        changes = biased or any(reach.most for reach in reaches(change.forms))
        return on_cpu(change.own) if changes else None
    layer = _nearest(change, device, steps) if change.forms else None
    layer = None if layer is None else on_cpu(layer)
    if isinstance(layer, Full | Norm) and not any(bool(each.any()) for each in layer.tensors().values()):
        layer = None
    if change.bias is not None and biased:
        layer = (layer or Full()).with_bias_change(change.bias)
    return layer


def _nearest(change: Delta, device: torch.device, steps: Steps) -> Layer | None:
    """A norm, a full difference, which may be zero, or a LoRA where that is smaller; None for a zero one."""
    forms, shape = change.forms, change.shape
    if len(shape) < 2:
        values = add_up(forms, torch.float32, CPU).reshape(shape)
        return Norm(w_norm=values) if len(shape) == 1 else Full(diff=values)
    outputs, inputs = flat_shape(shape)
    # From this rank on two factors hold more numbers than the difference.
    factors = joined(forms, outputs * inputs // (outputs + inputs), device)
    if factors is None:
        steps.pause()
        return Full(diff=add_up(forms, torch.float32, device).reshape(shape))
    low = forms if len(forms) == 1 and isinstance(forms[0], Spanned) else [LowRank(*factors, 1.0)]
    delta = Delta(low, shape, largest=min(outputs, inputs), device=device, pause=steps.pause)
    offers = Lora.fit(delta)
    return offers[0].layer(len(offers[0].ranks) - 1) if offers else None
