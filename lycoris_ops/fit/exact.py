"""Turn changes of weights into layers that are exact to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..algorithms import Layer
from ..algorithms.fitting import Delta
from ..algorithms.full import Full
from ..algorithms.lora import Lora
from ..algorithms.norm import Norm
from ..changes.factors import joined
from ..changes.forms import LowRank, Spanned, add_up, reaches
from ..errors import PlanError, located
from ..files.writing import Progress
from ..layers.cast import cast_layer
from ..maths.shapes import flat_shape
from ..maths.tensors import CPU
from ..reading.fitted import UNCHANGED, FitReport, FitRow
from .engine import Source, check_finite, on_cpu
from .settings import FitSettings
from .steps import Steps


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
