"""The family of a model, from its keys, or of an adapter, from its file.

Families are for messages, and show which files may be pairs; no layer is matched by its family. Where two
families have the same layers, both are named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ..maths.shapes import Shape
from .architectures import ARCHITECTURES

_MOST = 400
"""Characters of the longest name or text that is searched. Real ones have about 100."""
METADATA = ("modelspec.architecture", "ss_base_model_version")
"""The metadata in which trainers write the family (kohya, OneTrainer, ai-toolkit, SimpleTuner)."""

Families = tuple[str, ...]
"""The possible families of a model or an adapter; () where nothing shows them."""
_FAMILIES = [family for record in ARCHITECTURES.values() for family in record.families]


def families_of_layers(layers: Iterable[tuple[str, Shape]]) -> Families:
    """The families that a diffusion model can be of, by its layers, each with its path and shape."""
    known = {path.replace(".", "_"): shape for path, shape in layers if len(path) < _MOST}
    likeness = {family.name: family.likeness(known) for family in _FAMILIES}
    best = max(likeness.values())
    return tuple(name for name, count in likeness.items() if count == best) if best else ()


def families_said(metadata: Mapping[str, str]) -> Families:
    """The family that an adapter's metadata names; () where it names none that is known."""
    for key in METADATA:
        said = metadata.get(key, "").lower()[:_MOST]
        families = [
            (match[0], family.name)
            for family in _FAMILIES
            if family.said and (match := re.search(family.said, said))
        ]
        if families:
            # `flux-2` says more than `flux`.
            return (max(families, key=lambda match: len(match[0]))[1],)
    return ()


def has_experts(families: Collection[str]) -> bool:
    """Whether any of these families has models of two experts, with an adapter for each."""
    return any(family.experts for family in _FAMILIES if family.name in families)
