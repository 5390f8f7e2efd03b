"""How the models of each family are trained by default, as their trainers do it."""

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
        """At which times its models are trained."""
        shift = ByTokens(*self.shift) if isinstance(self.shift, tuple) else self.shift
        return Times(self.distribution, self.mean, shift=shift)


FAMILIES: dict[str, Family] = {one.host: Family(**vars(one)) for one in TRAINED}
"""The families, by the name of the host's class for the model or, where this is more exact, for its
configuration."""

OTHER_FLOW = Family("", "other flow models", "what most trainers do")
OTHER = Family("", "other models", "what most trainers do", "uniform")

NOT_GENERATORS = ("RT_DETR_v4", "SAM3", "DepthAnything3")
"""The host's classes of models that detect, segment or measure, though they are called flow models there."""


def family_of(model: Any) -> Family:
    """The family of a model of the host. The model's most special class with a family decides.

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
    # Of configurations the own class alone: those of models of pictures are derived from those of videos.
    kinds = [type(model.model_config).__name__, *_kinds(model)]
    return next((FRAME_RATES[kind] for kind in kinds if kind in FRAME_RATES), None)


def boundary_of(model: Any) -> float | None:
    """The time from which on the expert for high noise is used; None for a model without experts."""
    return boundary_named(_configured(model))


def boundary_named(kinds: Sequence[str]) -> float | None:
    """The same by the names of the host's classes of a model, the most special first."""
    return next((BOUNDARIES[kind] for kind in kinds if kind in BOUNDARIES), None)


def _configured(model: Any) -> list[str]:
    """The names of the host's classes of a model, the most special first: its configuration's, its own."""
    return [*_kinds(getattr(model, "model_config", None)), *_kinds(model)]


def _kinds(one: Any) -> list[str]:
    return [kind.__name__ for kind in type(one).__mro__]


def family_named(kinds: Sequence[str], own: str = "", *, flow: bool = False) -> Family:
    """The family by the names of the host's classes of a model, the most special first.

    `own` is the class of the model itself, and `flow` says whether it is trained as a flow.
    """
    for name in kinds:
        # Nearly every model is one of these; only those that predict noise are like it.
        if name in FAMILIES and not (name == "BaseModel" and (flow or own != "BaseModel")):
            return FAMILIES[name]
    return OTHER_FLOW if flow else OTHER
