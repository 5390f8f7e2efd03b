"""The error for a change that needs the base model, where none is given."""

from __future__ import annotations

from ..algorithms.base import Parameter
from ..algorithms.checks import a_layer
from ..errors import LayerError

GIVE_BASE = "Give the model that the adapters are for (base; on the command line --base FILE)"
"""What to do where the model is needed."""


def no_weight(
    kind: str, parameter: Parameter, base: str | None, *, file: str | None = None, key: str | None = None
) -> LayerError:
    """The error for a layer whose change depends on a weight or bias that is missing.

    `base` is the name of the model that lacks it; None where no model is given.
    """
    problem, expected, hint = (
        "so that it needs the base model",
        "the model that the adapter is for",
        GIVE_BASE,
    )
    if base is not None:
        problem, expected = "which the base model does not have", "a model with this layer"
        hint = "Give the model that the adapter was made for, with its text encoders if it changes them"
    return LayerError(
        f"the change of {a_layer(kind)} depends on the {parameter}, {problem}",
        file=file,
        key=key,
        got=base or "no base model",
        expected=expected,
        hint=hint,
    )
