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
    depends = f"the change of {a_layer(kind)} depends on the {parameter}"
    if base is None:
        return LayerError(
            f"{depends}, so it needs the base model",
            file=file,
            key=key,
            got="no base model",
            expected="the model that the adapter is for",
            hint=GIVE_BASE,
        )
    return LayerError(
        f"{depends}, which the base model does not have",
        file=file,
        key=key,
        got=base,
        expected="a model with this layer",
        hint="Give the model that the adapter was made for, with its text encoders if it changes them",
    )
