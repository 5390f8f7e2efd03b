"""Resize an adapter, and convert its layers to other kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import change_of, independent
from ..algorithms.checks import scale
from ..algorithms.fitting import Delta
from ..algorithms.full import Full
from ..algorithms.norm import Norm
from ..changes.forms import Additive, Dense, Kronecker, add_up
from ..errors import LayerError, PlanError, located
from ..files.quantised import Codec
from ..files.weights import ModelSource, Weights, read_rows, weights_of
from ..files.writing import Progress, metadata_of, short_name
from ..fit.engine import Prepare, Source, expected, fit_layers
from ..fit.settings import FITTED, SAME, FitSettings, Making
from ..fit.without_base import no_weight
from ..maths.decompositions import Pause
from ..maths.shapes import Rows, Shape
from ..maths.tensors import CPU, compute_dtype
from ..messages import number_of, phrase
from ..names.relation import LookedUp, Meaning, Relation
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
    each layer's kind. Some layers stay the same, bit for bit: norms, biases, layers that enlarge their
    weight, those that already have the kind and are small enough, and with "same" those of kinds not in
    FITTED. alpha follows the rank, so the scale of the factors stays.

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
    MatchError where its name fits several weights of the base; PlanError for a size that cannot be met, and
    where all layers stay the same at any size.
    """
    settings = FitSettings(size, algorithm, **making)
    weights = None if base is None else weights_of(base, codec)
    metadata = _metadata(adapter, settings, weights)
    kept = {
        name: adapter.layer(name, keep=False) for name, info in adapter.info.items() if _stays(info, settings)
    }
    sources = _sources(adapter, [name for name in adapter.info if name not in kept], weights)
    if kept and not sources:
        raise _no_size(adapter)
    if prepare:
        staying = {name: Expected(type(layer), ()) for name, layer in kept.items()}
        prepare(expected(sources, settings) | staying)
    with located(file=adapter.path):
        layers, report = fit_layers(sources, settings, progress=progress, metadata=metadata, kept=kept)
    together = {name: kept.get(name) or layers.get(name) for name in adapter.info}
    stay = number_of(len(kept), "layer stays as it is", "layers stay as they are")
    notes = [phrase("R-norms-biases-others-without-size", stay=stay)] if kept else []
    report = replace(
        report,
        left_out={**dict.fromkeys(adapter.unreadable, phrase("R-because-cannot-be-read")), **report.left_out},
        missing=_missing(adapter),
        notes=(*notes, *report.notes),
        source_size=adapter.size,
    )
    resized = Adapter.of(
        {name: layer for name, layer in together.items() if layer is not None},
        name=adapter.name,
        dialect=adapter.dialect,
        metadata=_told(metadata, layers),
        on_parameters=adapter.on_parameters,
    )
    return replace(resized, report=report)


def _stays(info: LayerInfo, settings: FitSettings) -> bool:
    """Whether a layer stays unchanged at any size."""
    fitted = settings.algorithm != SAME or info.algorithm.algorithm in FITTED
    return not fitted or not _has_size(info)


def _has_size(info: LayerInfo) -> bool:
    """Whether a layer can be made smaller, at least as one of another kind."""
    bare = info.algorithm in (Norm, Full) and (len(info.shape) == 1 or None in info.shape)
    return bool(info.shape) and not info.enlarges and not bare


def _no_size(adapter: Adapter) -> PlanError:
    """The error where all layers stay as they are."""
    other = any(map(_has_size, adapter.info.values()))
    return PlanError(
        "E-kinds-not-resizable-as-they-are" if other else "E-kinds-not-resizable",
        file=adapter.path,
        got=", ".join(sorted({info.algorithm.algorithm for info in adapter.info.values()})),
        expected=", ".join(FITTED),
        same=SAME,
    )


def _missing(adapter: Adapter) -> tuple[str, ...]:
    lines: list[str] = []
    if adapter.embeddings:
        lines.append(phrase("R-embeddings-left-out", embeddings=adapter.embeddings))
    if adapter.left_out:
        lines.append(phrase("R-file-left-out", count=len(adapter.left_out)))
    return tuple(lines)


def _metadata(adapter: Adapter, settings: FitSettings, base: Weights | None) -> dict[str, str]:
    recipe = {
        "resized": adapter.name,
        "size": str(settings.size),
        "algorithm": settings.algorithm,
        "seed": settings.seed,
        **({} if base is None else {"base": short_name(base.name)}),
    }
    return metadata_of(adapter.metadata, {}, recipe, "source_recipe")


def _sources(adapter: Adapter, names: Sequence[str], base: Weights | None) -> list[Source]:
    """Raises LayerError for a layer that needs a base if there is none."""
    looked_up = LookedUp.of(adapter.names, None if base is None else Relation(base.shapes))
    places, alphas = looked_up.targets(adapter.path), adapter.alphas()
    sources: list[Source] = []
    for name in names:
        info, known = adapter.info[name], looked_up.shape_of(name)
        with located(file=adapter.path, key=name):
            shape = _shape(info, known, base)
            scaled = info.rank and info.algorithm.table.scaled_by_alpha
            factor = scale(alphas[name], info.rank or 1) if scaled else 1.0
        sources.append(
            Source(
                name=name,
                shape=shape,
                read=partial(_read, adapter, name, shape, abs(factor) or 1.0, places.get(name, ()), base),
                before=info.words,
                dtype=adapter.dtype_of(name),
                kind=info.algorithm.algorithm,
            )
        )
    return sources


def _shape(info: LayerInfo, known: Shape, base: Weights | None) -> Shape:
    """The shape of a layer's weight; `known` is the base's."""
    if known:
        if not info.fits(known):
            raise LayerError("E-resize-base-misfits", got=info.made_for, expected=str(list(known)))
        return known
    shape = tuple(size for size in info.shape if size is not None)
    if len(shape) < len(info.shape) or len(shape) < 2:
        raise no_weight(info.algorithm.algorithm, "weight", base)
    return shape


def _read(
    adapter: Adapter,
    name: str,
    shape: Shape,
    scale: float,
    places: Meaning,
    base: Weights | None,
    pause: Pause,
) -> Delta:
    """The change of a layer. `places` are the weights of the base, or their rows, that it changes."""
    pause()
    layer = adapter.layer(name, keep=False)
    with located(file=adapter.path, key=name):
        forms, beside = independent(layer.forms()), independent(layer.forms("bias"))
        bound = forms is None or beside is None
        if bound and not places:
            raise no_weight(layer.algorithm, "weight", base)
        if forms is None:
            forms = (Dense(layer.delta(_values(base, weight_rows(places))).flatten(1)),)
        bias: Tensor | None = None
        if beside is None:
            rows = bias_rows(places)
            bias = change_of(layer.forms("bias"), _values(base, rows)) if rows else None
        elif beside:
            bias = add_up(beside, torch.float32, CPU).flatten()
    split = _split(forms, shape)
    return Delta(forms, shape, bias=bias, own=layer, bound=bound, scale=scale, split=split)


def _values(base: Weights | None, places: Sequence[tuple[str, Rows | None]]) -> Tensor:
    """A weight or bias, or rows of several concatenated, in float32 or float64."""
    assert base is not None
    values = read_rows(base, places)
    return values.to(compute_dtype(values.dtype))


def _split(forms: Sequence[Additive], shape: Shape) -> tuple[int, int] | None:
    """The shape of the first Kronecker factor, if the second one holds the kernel."""
    for form in forms:
        if isinstance(form, Kronecker):
            rows, columns = form.w1[0].shape[0], form.w1[-1].shape[1]
            if shape[0] % rows == 0 and shape[1] % columns == 0:
                return rows, columns
    return None


def _told(metadata: Mapping[str, str], layers: Mapping[str, Layer]) -> dict[str, str]:
    """The metadata with the new layers' ranks and alphas, if it states the old ones."""
    text = dict(metadata)
    for key, values in (
        (DIM, {layer.rank for layer in layers.values()}),
        (NETWORK_ALPHA, {layer.alpha for layer in layers.values()}),
    ):
        if key in text:
            (only,) = values if len(values) == 1 else (None,)
            text[key] = DYNAMIC if only is None else f"{only:g}"
    return text
