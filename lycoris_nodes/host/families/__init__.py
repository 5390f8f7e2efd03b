"""Families of the host's models, one a file. A file added here is registered.

A file defines FAMILY, see `family.Family`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....lycoris_ops import discover
from ..sampling import predicted_by
from .family import Family, Network
from .times import Times

FAMILIES: tuple[Family, ...] = tuple(
    module.FAMILY for module in discover(__name__) if hasattr(module, "FAMILY")
)
OTHER_FLOW, OTHER = Family(), Family(name="other models", times=Times())
"""Models without a record: flow models, and others."""
KINDS: Mapping[str, Family] = {
    kind: family for family in FAMILIES for kind in (*family.hosts, *family.variants)
}
"""Families by the host's classes that they name."""
NETWORKS: Mapping[str, Network] = {
    kind: network for family in FAMILIES for kind, network in family.networks.items()
}
PACES: Mapping[str, int] = {kind: pace for family in FAMILIES for kind, pace in family.latents.items()}
WAYS = ("auto", *(way for family in FAMILIES for way in family.ways))
"""The user's choices of how references are given."""


def family_of(model: Any) -> Family:
    """The family of a model of the host, with what differs in its variant."""
    flow = "flow" in (predicted_by(getattr(model, "model_sampling", None)) or "")
    kinds = [*_kinds(getattr(model, "model_config", None)), *_kinds(model)]
    return family_named(kinds, type(model).__name__, flow=flow)


def frames_of(latents: Any) -> int:
    """Video frames per latent frame, for a latent format of the host; 1 if the format has no frames."""
    older = next((PACES[kind] for kind in _kinds(latents) if kind in PACES), 1)
    return int(getattr(latents, "temporal_downscale_ratio", older))


def _kinds(value: Any) -> list[str]:
    return [kind.__name__ for kind in type(value).__mro__]


def family_named(kinds: Sequence[str], own: str = "", *, flow: bool = False) -> Family:
    """The family by the names of the host's classes: of a configuration, then of its model, each with the
    most derived class first. The first that has a record counts.

    `own` is the class of the model itself, and `flow` whether it is a flow model.
    """
    # Nearly every model derives from BaseModel. Its family is only for its own instances, without flow.
    names = [kind for kind in kinds if kind != "BaseModel" or (own == kind and not flow)]
    family = next((KINDS[name] for name in names if name in KINDS), OTHER_FLOW)
    changes: dict[str, Any] = {}
    for name in reversed(names):
        changes |= family.variants.get(name, {})
    family = replace(family, **changes)
    unnamed = family.name == OTHER_FLOW.name and not flow
    return replace(family, name=OTHER.name, times=OTHER.times) if unnamed else family
