"""The families of models that are trained."""

from __future__ import annotations

from typing import Any

from ....lycoris_ops import TrainError, located
from ...host.families import family_of
from ...host.families.family import Family
from .targets import parametrisation_of


def trained_family(model: Any) -> Family:
    """The family of a model of the host. Raises TrainError for a model that does not denoise."""
    family, own = family_of(model), type(model).__name__
    if not family.denoises:
        raise TrainError("E-model-makes-no-pictures", key="model", got=own)
    with located(key=own):
        parametrisation_of(model.model_sampling)
    return family
