"""Training defaults of each family of models, as in its own trainers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....lycoris_ops import BOUNDARIES, FRAME_RATES, TRAINED, TrainError, Training, located
from .targets import parametrisation_of
from .times import ByTokens, Times


class Family(Training):
    """The defaults for one family of models."""

    @property
    def times(self) -> Times:
        """The times at which its models are trained."""
        shift = ByTokens(*self.shift) if isinstance(self.shift, tuple) else self.shift
        return Times(self.distribution, self.mean, shift=shift)


FAMILIES: dict[str, Family] = {record.host: Family(**vars(record)) for record in TRAINED}
"""Families by the name of the host's class of the model, or of its configuration where that is more exact."""

OTHER_FLOW = Family("", "other flow models", "what most trainers do")
OTHER = Family("", "other models", "what most trainers do", "uniform")

NOT_GENERATORS = ("RT_DETR_v4", "SAM3", "DepthAnything3")
"""Models that detect, segment or measure, though the host calls them flow models."""


def family_of(model: Any) -> Family:
    """The family of a model of the host. Of its classes, the most derived one that has a family counts.

    Raises TrainError for a model that does not denoise.
    """
    own = type(model).__name__
    if own in NOT_GENERATORS:
        raise TrainError(
            "this model makes no pictures, and is not trained by adding noise to them",
            key="model",
            got=own,
            expected="a model that denoises, such as Stable Diffusion, Flux or Wan",
        )
    with located(key=own):
        predicted = parametrisation_of(model.model_sampling).name
    return family_named(_configured(model), own, flow="flow" in predicted)


def frame_rate_of(model: Any) -> float | None:
    """Frames a second of the videos that a model makes; None for one that makes none."""
    # Only the configuration's own class: classes for picture models derive from those for video models.
    kinds = [type(model.model_config).__name__, *_kinds(model)]
    return next((FRAME_RATES[kind] for kind in kinds if kind in FRAME_RATES), None)


def boundary_of(model: Any) -> float | None:
    """The lowest time of the expert for high noise; None for a model without experts."""
    return boundary_named(_configured(model))


def boundary_named(kinds: Sequence[str]) -> float | None:
    """`boundary_of` by the names of the host's classes of a model, the most derived first."""
    return next((BOUNDARIES[kind] for kind in kinds if kind in BOUNDARIES), None)


def _configured(model: Any) -> list[str]:
    """The names of the host's classes of a model, the most derived first: of its configuration, then
    of the model itself."""
    return [*_kinds(getattr(model, "model_config", None)), *_kinds(model)]


def _kinds(value: Any) -> list[str]:
    return [kind.__name__ for kind in type(value).__mro__]


def family_named(kinds: Sequence[str], own: str = "", *, flow: bool = False) -> Family:
    """The family by the names of the host's classes of a model, the most derived first.

    `own` is the class of the model itself, and `flow` whether it is a flow model.
    """
    for name in kinds:
        # Nearly every model derives from BaseModel. Its family is only for its own instances, without flow.
        if name in FAMILIES and not (name == "BaseModel" and (flow or own != "BaseModel")):
            return FAMILIES[name]
    return OTHER_FLOW if flow else OTHER
