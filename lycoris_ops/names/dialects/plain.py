"""Layers of any kind as kohya, comfy and lycoris write them: each tensor under the algorithm's own suffix."""

from __future__ import annotations

import torch
from torch import Tensor

from ...algorithms import Layer
from ...algorithms.axes import ALPHA, SET_BIAS
from ...algorithms.base import alpha_of
from ...algorithms.factored import DORA, Factored
from ...algorithms.ia3 import Ia3
from ...errors import LayerError
from .base import Asked, Encoded


def encode(layer: Layer, asked: Asked) -> Encoded:
    """The layer's tensors. Its alpha, if it has one, is in float32.

    Raises LayerError for the values of a bias, and for an option that neither the tensors nor the metadata of
    a file can hold.
    """
    said = {
        option: value
        for option, value in asked.options.items()
        # A dataclass has the default of a field as an attribute of its own.
        if option not in layer.chosen
        and value != getattr(type(layer), option)
        and not _is_told(layer, option)
    }
    for option, value in said.items():
        # LyCORIS reads `sig_type` from the metadata. All others are read from PEFT's configuration only.
        if option != "sig_type":
            raise LayerError("E-dialect-without-option", option=option, value=value)
    tensors = layer.dump()
    if SET_BIAS in tensors:
        raise LayerError("E-dialect-bias-change-only", got=SET_BIAS)
    tensors.pop(ALPHA, None)
    alpha = alpha_of(layer)
    if alpha is not None:
        # Not in float64, in which `dump` keeps a value that float32 cannot hold exactly.
        tensors[ALPHA] = torch.tensor(alpha, dtype=torch.float32)
    if isinstance(layer, Factored) and DORA in tensors:
        tensors[DORA] = _shaped(layer, tensors[DORA])
    return Encoded(asked.name, tensors, said)


def _is_told(layer: Layer, option: str) -> bool:
    """Whether the tensors also show an option, as they do for IA3's `feedforward`, except on a convolution.

    There ia3_l is (1, n, 1, ...) for inputs and for outputs alike.
    """
    return option == "feedforward" and (
        not isinstance(layer, Ia3) or layer.ia3_l is None or layer.ia3_l.ndim == 2
    )


def _shaped(layer: Factored, magnitude: Tensor) -> Tensor:
    """A DoRA magnitude of the outputs, (O,), as (O, 1, ...) with one dimension for each of the weight's.

    Some readers mistake a flat magnitude for one of the inputs. A magnitude of the inputs stays as it is.
    """
    if magnitude.ndim > 1 or layer.magnitude_axis() != 0:
        return magnitude
    return magnitude.reshape(-1, *(1 for _ in layer.extent[1:]))
