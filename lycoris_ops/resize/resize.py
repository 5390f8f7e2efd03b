"""Resize an adapter, and convert its layers to other kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import Dependent, Form, change_of
from ..algorithms.checks import scale
from ..algorithms.fitting import Delta
from ..algorithms.full import Full
from ..algorithms.norm import Norm
from ..changes.forms import Additive, Dense, Kronecker, add_up
from ..errors import LayerError, located, number_of
from ..files.quantised import Codec
from ..files.weights import ModelSource, Weights, read_rows, weights_of
from ..files.writing import Progress, metadata_of, short_name
from ..fit.engine import Prepare, Source, expected, fit_layers
from ..fit.settings import FITTED, SAME, FitSettings, Making
from ..fit.without_base import no_weight
from ..maths.decompositions import Pause
from ..maths.shapes import Rows, Shape
from ..maths.tensors import CPU, compute_dtype
from ..names.relation import Placed, Relation
from ..names.targets import bias_rows, weight_rows
from ..ranks.sizes import Size
from ..reading.adapter import Adapter, LayerInfo
from ..writing.metadata import DIM, DYNAMIC, NETWORK_ALPHA
from ..writing.save import Expected

if TYPE_CHECKING:
    from typing_extensions import Unpack


def resize_adapter(
    adapter: Adapter,
    size: Size = "auto",
    algorithm: str = "lora",
    base: ModelSource | None = None,
    *,
    codec: Codec | None = None,
    prepare: Prepare | None = None,
    progress: Progress | None = None,
    **making: Unpack[Making],
) -> Adapter:
    """Make, in memory, an adapter of another kind or size, each layer as near as possible to the original.

    `size` is a Rank for every layer, or a Budget, Ratio or Energy, divided among the layers to keep the most.
    "auto" adds parameters until one more would keep less of the change than a parameter of the full weights
    does on average. A budget in bytes counts the whole file, with its tensors in their new dtype. `algorithm`
    is a kind in FITTED, "auto" to give each layer the kind that keeps most for its bytes, or "same" to keep
    each layer's kind if it is in FITTED, and else to make a LoRA. Some layers stay the same, bit for bit:
    norms, biases, layers that enlarge their weight, and those that already have the kind and are small
    enough. alpha follows the rank, so the scale of the factors stays.

    `base` is the model: a safetensors file, whose quantised weights `codec` reads, or a state dict. It is
    needed for kinds whose change depends on the weight (DoRA, OFT, BOFT, IA3, GLoRA, T-LoRA, and full layers
    with `set_weight`); then the result is right for this model alone. It also supplies the kernel sizes of
    convolutions, which some kinds store flat.

    `dtype`, `factor`, `tucker`, `largest`, `seed` and `device` are as in `fit.settings.Making`. With `dtype`
    None each layer keeps its own. `Adapter.report` of the result says what was kept. `prepare` is called with
    the planned layers before the work, and may raise an error. `progress` is called with the number of layers
    done.

    Layers in `adapter.unreadable` are left out, and the report says so.

    Raises LayerError for a layer that holds NaN or needs a base, or whose tensors contradict each other;
    MatchError where its name fits several weights of the base; PlanError for a size that cannot be met.
    """
    settings = FitSettings(size, algorithm, **making)
    made = _Resizing(adapter, settings, None if base is None else weights_of(base, codec))
    metadata = made.metadata()
    kept = {name: adapter.layer(name, keep=False) for name in made.staying}
    sources = made.sources()
    if prepare:
        staying = {name: Expected(adapter.info[name].algorithm, ()) for name in made.staying}
        prepare(expected(sources, settings) | staying)
    with located(file=adapter.path):
        layers, report = fit_layers(sources, settings, progress=progress, metadata=metadata, kept=kept)
    together = {name: kept.get(name) or layers.get(name) for name in adapter.info}
    report = replace(
        report,
        left_out={**made.left_out, **report.left_out},
        missing=made.missing(),
        notes=(*made.notes(), *report.notes),
        source_size=adapter.size,
    )
    found = Adapter.of(
        {name: layer for name, layer in together.items() if layer is not None},
        name=adapter.name,
        dialect=adapter.dialect,
        metadata=_told(metadata, layers),
        on_parameters=adapter.on_parameters,
    )
    return replace(found, report=report)


@dataclass(frozen=True)
class _Resizing:
    """An adapter being resized."""

    adapter: Adapter
    settings: FitSettings
    base: Weights | None

    @property
    def staying(self) -> list[str]:
        """Names of the layers that stay unchanged at any size."""
        return [name for name, info in self.adapter.info.items() if self._stays(info)]

    def _stays(self, info: LayerInfo) -> bool:
        shape = info.shape
        if (
            info.enlarges
            or not shape
            or (info.algorithm in (Norm, Full) and (len(shape) == 1 or None in shape))
        ):
            return True
        return self.settings.algorithm == SAME and info.algorithm.algorithm not in FITTED

    @property
    def left_out(self) -> dict[str, str]:
        return dict.fromkeys(self.adapter.unreadable, "because it cannot be read")

    def notes(self) -> list[str]:
        if not self.staying:
            return []
        stay = number_of(len(self.staying), "layer stays as it is", "layers stay as they are")
        return [f"{stay}: norms, biases, and others without a size"]

    def missing(self) -> tuple[str, ...]:
        lines: list[str] = []
        if self.adapter.embeddings:
            lines.append(f"the embeddings {', '.join(self.adapter.embeddings)} are left out")
        if self.adapter.left_out:
            lines.append(f"{number_of(len(self.adapter.left_out), 'unknown key')} of the file left out")
        return tuple(lines)

    def metadata(self) -> dict[str, str]:
        settings = self.settings
        recipe = {
            "resized": self.adapter.name,
            "size": str(settings.size),
            "algorithm": settings.algorithm,
            "seed": settings.seed,
            **({} if self.base is None else {"base": short_name(self.base.name)}),
        }
        return metadata_of(self.adapter.metadata, {}, recipe, "source_recipe")

    def sources(self) -> list[Source]:
        """Raises LayerError for a layer that needs a base if there is none."""
        staying = set(self.staying)
        weights = _Places(self.adapter, self.base) if self.base is not None else None
        found: list[Source] = []
        alphas = self.adapter.alphas()
        for name, info in self.adapter.info.items():
            if name in staying:
                continue
            shape = self._shape(info, weights)
            rank, alpha = info.rank, alphas[name]
            with located(file=self.adapter.path, key=name):
                factor = scale(alpha, rank) if rank and info.algorithm.table.scaled_by_alpha else 1.0
            found.append(
                Source(
                    name=name,
                    shape=shape,
                    read=partial(self._read, name, shape, abs(factor) or 1.0, weights),
                    before=info.words,
                    dtype=self.adapter.dtype_of(name),
                    kind=info.algorithm.algorithm,
                )
            )
        return found

    def _shape(self, info: LayerInfo, weights: _Places | None) -> Shape:
        known = None if weights is None else weights.shape(info.name)
        if known:
            if not info.fits(known):
                raise LayerError(
                    "a layer does not fit its weight in the base model",
                    file=self.adapter.path,
                    key=info.name,
                    got=info.made_for,
                    expected=str(list(known)),
                    hint="Give the model that the adapter was made for",
                )
            return known
        shape = tuple(size for size in info.shape if size is not None)
        if len(shape) < len(info.shape) or len(shape) < 2:
            raise self._needs_base(info.name, info.algorithm.algorithm, weights)
        return shape

    def _read(self, name: str, shape: Shape, scale: float, weights: _Places | None, pause: Pause) -> Delta:
        pause()
        layer = self.adapter.layer(name, keep=False)
        with located(file=self.adapter.path, key=name):
            forms, beside = layer.forms(), layer.forms("bias")
            weight = bias = None
            if _depends(forms) or _depends(beside):
                if weights is None or not weights.shape(name):
                    raise self._needs_base(name, layer.algorithm, weights)
                weight = weights.read(name) if _depends(forms) else None
                bias = weights.bias(name) if _depends(beside) else None
            if weight is not None:
                forms = (Dense(layer.delta(weight).flatten(1)),)
            added: Tensor | None = None
            if beside and _depends(beside):
                added = None if bias is None else change_of(beside, bias)
            elif beside:
                added = add_up(_plain(beside), torch.float32, CPU).flatten()
        bound = weight is not None or _depends(beside)
        return Delta(
            _plain(forms),
            shape,
            bias=added,
            own=layer,
            bound=bound,
            scale=scale,
            split=_split(forms, shape),
        )

    def _needs_base(self, name: str, kind: str, weights: _Places | None) -> LayerError:
        base = None if weights is None else weights.weights.name
        return no_weight(kind, "weight", base, file=self.adapter.path, key=name)


class _Places:
    """The weights of a base model that an adapter's layers change."""

    def __init__(self, adapter: Adapter, weights: Weights) -> None:
        self.weights = weights
        placed = Placed.of(adapter.names, Relation(weights.shapes))
        self._found = placed.places(adapter.path)
        self.shape = placed.shape_of

    def read(self, name: str) -> Tensor:
        """The weight of a layer, or rows of several weights concatenated, in float32 or float64."""
        return self._wide(weight_rows(self._found[name]))

    def bias(self, name: str) -> Tensor | None:
        found = bias_rows(self._found[name])
        return self._wide(found) if found else None

    def _wide(self, places: Sequence[tuple[str, Rows | None]]) -> Tensor:
        values = read_rows(self.weights, places)
        return values.to(compute_dtype(values.dtype))


def _depends(forms: tuple[Form, ...]) -> bool:
    return any(isinstance(form, Dependent) for form in forms)


def _plain(forms: tuple[Form, ...]) -> tuple[Additive, ...]:
    return tuple(form for form in forms if not isinstance(form, Dependent))


def _split(forms: tuple[Form, ...], shape: Shape) -> tuple[int, int] | None:
    """The shape of the first Kronecker factor, if the second one holds the kernel."""
    for form in forms:
        if isinstance(form, Kronecker):
            rows, columns = form.w1[0].shape[0], form.w1[-1].shape[1]
            if shape[0] % rows == 0 and shape[1] % columns == 0:
                return rows, columns
    return None


def _told(metadata: Mapping[str, str], layers: Mapping[str, Layer]) -> dict[str, str]:
    """The metadata with the new layers' ranks and alphas, if it states the old ones."""
    told = dict(metadata)
    for key, values in (
        (DIM, {layer.rank for layer in layers.values()}),
        (NETWORK_ALPHA, {layer.alpha for layer in layers.values()}),
    ):
        if key in told:
            (only,) = values if len(values) == 1 else (None,)
            told[key] = DYNAMIC if only is None else f"{only:g}"
    return told
