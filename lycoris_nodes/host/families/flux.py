"""FLUX.1."""

from __future__ import annotations

from typing import Any

from .family import Family, Network
from .shared import OF_FLUX, beside_or_concatenated, channels_of
from .times import Times


def _fills(model: Any) -> bool:
    """FLUX.1 Fill. Its host's class does not say so."""
    channels, own = channels_of(model)
    return "mask" in model.concat_keys or channels > 2 * own > 0


FAMILY = Family(
    hosts=("Flux",),
    name="Flux",
    source="ai-toolkit, kohya-ss/sd-scripts",
    times=Times("logit-normal", shift=OF_FLUX),
    guidance=1.0,
    rank=32,
    # The modulation, and the output layer.
    include=("*_mod.lin", "single_blocks.*.modulation.lin", "final_layer.linear"),
    fills=_fills,
    references=beside_or_concatenated,
    networks={"Flux": Network(norms="Flux")},
)
