"""Turn an entry of a stack into an ordinary adapter, with its strengths and rules multiplied into its
tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..algorithms import Layer
from ..errors import LycorisError, located
from ..files.writing import metadata_of
from ..maths.shapes import Shape
from ..reading.adapter import Adapter
from .resolve import resolve
from .stack import Entry, Stack


def weighted(entry: Entry, model: Mapping[str, Shape] | Collection[str] | None = None) -> Adapter:
    """An adapter in memory that has the entry's effect at strength 1.

    The strength is multiplied into one tensor of each product of a layer, in float32 where the tensor's dtype
    does not hold the result exactly. Layers at strength 0 are left out. An entry at strength 1 without rules
    is its adapter itself. `model` is the adapter's model, as keys and shapes. Rules need it, because they
    match its names. So do different strengths for model and text encoder, if a layer's name does not show
    which of the two it changes.

    Raises LycorisError where the model is needed and is not given, where a layer has no place in it, where
    nothing is left, and as `Stack.check_constant` does. Raises LayerError for a layer whose effect is no
    product of its tensors (DoRA, OFT, BOFT).
    """
    Stack([entry]).check_constant("be saved with it")
    adapter = entry.adapter
    if entry.strength == entry.strength_of("te") == 1.0 and entry.rules is None:
        return adapter
    strengths = _strengths(entry, model)
    layers: dict[str, Layer] = {}
    for name, strength in strengths.items():
        if strength == 0.0:
            continue
        layer = adapter.layer(name, keep=False)
        with located(file=adapter.path, key=name):
            layers[name] = layer if strength == 1.0 else layer.multiplied(strength)
    if not layers:
        raise LycorisError("E-nothing-left-to-save", file=adapter.name)
    recipe = {
        "weighted": adapter.name,
        "strength": entry.strength,
        "strength_clip": entry.strength_of("te"),
        "rules": str(entry.rules) if entry.rules else "",
    }
    metadata = metadata_of(adapter.metadata, {}, recipe, "source_recipe")
    return Adapter.of(
        layers,
        name=adapter.name,
        dialect=adapter.dialect,
        metadata=metadata,
        on_parameters=adapter.on_parameters,
    )


def _strengths(entry: Entry, model: Mapping[str, Shape] | Collection[str] | None) -> dict[str, float]:
    """The strength of each layer, rules included."""
    adapter = entry.adapter
    strengths: dict[str, float] = {}
    if model is not None:
        (resolution,) = resolve(Stack([entry]), model).entries
        strengths = {match.layer: match.strength for match in resolution.matches}
        strengths |= dict.fromkeys(resolution.copies, 0.0)
    same = entry.strength == entry.strength_of("te")
    for name, info in adapter.info.items():
        if name in strengths:
            continue
        component = info.named.component
        if entry.rules is not None or (component is None and not same):
            raise LycorisError(
                "E-strength-needs-model" if model is None else "E-strength-layer-absent",
                file=adapter.path,
                key=name,
            )
        strengths[name] = entry.strength_of(component)
    return strengths
