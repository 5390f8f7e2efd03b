"""The error for a change that needs the base model, where none is given."""

from __future__ import annotations

from ..algorithms.base import Parameter
from ..algorithms.checks import a_layer
from ..errors import LayerError
from ..files.weights import Weights
from ..messages import Phrase

GIVE_BASE = Phrase("R-give-base")
"""What to do where the model is needed."""


def no_weight(kind: str, parameter: Parameter, base: Weights | None) -> LayerError:
    """The error for a layer whose change depends on a weight or bias that is missing.

    `base` is the model that lacks it; None where no model is given.
    """
    depends = f"the change of {a_layer(kind)} depends on the {parameter}"
    if base is None:
        return LayerError("E-base-needed", depends=depends, hint=GIVE_BASE)
    return LayerError("E-base-weight-absent", depends=depends, got=base.name)
