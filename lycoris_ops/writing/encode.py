"""The tensors that a layer is written as in a dialect, and which layers a dialect cannot hold.

kohya, comfy and lycoris hold every kind, each tensor under the algorithm's own suffix. diffusers holds LoRA,
and for some models LoKr, with the scale multiplied into a factor. PEFT holds the kinds that its classes can
build again from a configuration, and the configuration holds the scale.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import ALPHA, SET_BIAS, alpha_of
from ..algorithms.checks import scale
from ..algorithms.factored import DORA, Factored
from ..algorithms.full import Full
from ..algorithms.ia3 import Ia3
from ..algorithms.lokr import W1, W1_A, Lokr
from ..algorithms.lora import BIAS, DOWN, EMBEDDING_UP, UP, Lora
from ..algorithms.oft import BLOCKS, Oft
from ..errors import LayerError, either
from ..maths.shapes import Shape
from ..maths.tensors import times
from ..names.written import WRITTEN, Written
from ..peft import Config, Wanted, kind_of
from ..peft.config import BASE_BIAS
from ..peft.kinds import lora as peft_lora
from ..peft.kinds.lokr import LokrConfig


@dataclass(frozen=True)
class Encoded:
    """A layer as a dialect writes it."""

    name: str
    """The start of the layer's keys. It is the layer's name, except that the parts of a fused OFT layer share
    the name of the fused one in kohya's dialect."""
    tensors: Mapping[str, Tensor]
    """The tensors by the suffixes that the dialect writes."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options of the layer that the file's metadata must state."""
    configured: tuple[type[Config[Any]], Wanted] | None = None
    """The kind of PEFT configuration that the layer needs, and what that configuration must say for it."""

    def to(self, dtype: torch.dtype) -> Encoded:
        """The same layer with all its tensors in `dtype`."""
        return replace(self, tensors={suffix: tensor.to(dtype) for suffix, tensor in self.tensors.items()})


def encode(
    layer: Layer,
    options: Mapping[str, Any],
    dialect: Written,
    name: str,
    *,
    takes_lokr: bool = False,
    weight: Shape = (),
) -> Encoded:
    """The layer `name` as a dialect writes it; `options` are those of its `LayerInfo`.

    takes_lokr: see `Planned`. weight: the shape of the weight that it is for, () where that is not known.

    Raises LayerError where the dialect cannot hold the layer. Its message is the end of a sentence that
    begins with the dialect's name: `holds no loha`.
    """
    if dialect == "diffusers" and isinstance(layer, Lokr):
        return _diffusers_lokr(layer, name, takes_lokr)
    if dialect == "diffusers":
        return _diffusers(layer, name)
    if dialect == "peft":
        kind = kind_of(type(layer))
        if kind is None:
            raise LayerError(f"holds no {layer.algorithm}", got=layer.algorithm)
        kind.check_weight(weight)
        tensors, wanted = kind.encoded(layer)
        return Encoded(name, tensors, configured=(kind, wanted))
    return _own(layer, options, name, numbered=dialect == "kohya")


def check_kind(algorithm: type[Layer], dialect: Written, *, takes_lokr: bool = False) -> None:
    """Raise LayerError where a dialect holds no layer of a kind, whatever its tensors are."""
    kind = algorithm.algorithm
    if dialect == "diffusers":
        held = algorithm is Lora or (algorithm is Lokr and takes_lokr)
    else:
        # Of whole values PEFT holds those of norms alone.
        held = dialect != "peft" or (algorithm is not Full and kind_of(algorithm) is not None)
    if not held:
        able = [other for other in WRITTEN if other not in ("peft", "diffusers")]
        raise LayerError(
            f"{dialect} holds no {kind}",
            got=kind,
            expected="lora",
            hint=f"It can be written as {either(able)}",
        )


def _own(layer: Layer, options: Mapping[str, Any], name: str, *, numbered: bool) -> Encoded:
    """A layer of any kind under the algorithm's own suffixes, with kohya's numbered parts if `numbered`.

    Raises LayerError for an option that neither the tensors nor the metadata of a file can hold.
    """
    said: dict[str, Any] = {}
    defaults = {field.name: field.default for field in dataclasses.fields(layer)}
    for option, value in options.items():
        if option in layer.chosen or value == defaults[option] or _is_told(layer, option):
            continue
        # LyCORIS reads this one from the metadata. The others are only read from PEFT's configuration.
        if option != "sig_type":
            raise LayerError(f"has no place for {option}", got=f"{option} = {value}")
        said[option] = value
    tensors = layer.dump()
    if SET_BIAS in tensors:
        raise LayerError("has no place for the values of a bias, only for their change", got=SET_BIAS)
    tensors.pop(ALPHA, None)
    alpha = alpha_of(layer)
    if alpha is not None:
        # Not in float64, in which `dump` keeps a value that float32 cannot hold exactly.
        tensors[ALPHA] = torch.tensor(alpha, dtype=torch.float32)
    if isinstance(layer, Factored) and DORA in tensors:
        tensors[DORA] = _shaped(layer, tensors[DORA])
    if numbered and isinstance(layer, Oft) and (match := re.fullmatch(r"(.+)\.(\d+)", name)):
        # kohya-ss numbers the parts of a fused layer in the suffix, not in the name: see `grouping`.
        name = match[1]
        tensors[f"{BLOCKS}.{match[2]}"] = tensors.pop(BLOCKS)
    return Encoded(name, tensors, said)


def _is_told(layer: Layer, option: str) -> bool:
    """Whether the tensors tell an option as well. It is so for IA3's `feedforward`, except on a convolution.

    There ia3_l is (1, n, 1, ...) for inputs and for outputs alike.
    """
    return option == "feedforward" and (
        not isinstance(layer, Ia3) or layer.ia3_l is None or layer.ia3_l.ndim == 2
    )


def _shaped(layer: Factored, magnitude: Tensor) -> Tensor:
    """A DoRA magnitude of the outputs, (O,), as (O, 1, ...) with one dimension for each of the weight's.

    Some readers take a flat magnitude for one of the inputs. A magnitude of the inputs stays as it is.
    """
    if magnitude.ndim > 1 or layer.magnitude_axis() != 0:
        return magnitude
    return magnitude.reshape(-1, *(1 for _ in layer.extent[1:]))


def _diffusers(layer: Layer, name: str) -> Encoded:
    """A LoRA layer with its scale multiplied into a factor, for readers that know no alpha.

    The factor is `lora_B` where its dtype holds the product exactly. Else it is `lora_A` where that factor's
    dtype does. Else it is `lora_B` in float32. Raises LayerError for other kinds and for embeddings.
    """
    tensors = peft_lora.named_tensors(layer)
    if EMBEDDING_UP in tensors:
        raise LayerError("holds no LoRA of an embedding", got=EMBEDDING_UP)
    if BASE_BIAS in tensors:
        raise LayerError("has no place for the values of a bias", got=BASE_BIAS)
    assert isinstance(layer, Lora) and layer.lora_up is not None and layer.lora_down is not None
    rank = int(layer.lora_up.shape[1])
    factor = scale(layer.alpha, rank)
    if layer.start == "olora" and factor != 1.0:
        # What PEFT takes out of the base is scaled as well, and there the scale would be 1.
        raise LayerError("holds no OLoRA of another scale than 1", got=f"alpha / rank = {factor:g}")
    up, down = times(layer.lora_up, factor), layer.lora_down
    if up.dtype != layer.lora_up.dtype and (scaled := times(down, factor)).dtype == down.dtype:
        up, down = layer.lora_up, scaled
    written = {**tensors, peft_lora.SUFFIXES[UP]: up, peft_lora.SUFFIXES[DOWN]: down}
    if BIAS in written:
        # The bias is scaled like the product.
        written[BIAS] = times(written[BIAS], factor)
    wanted = peft_lora.wanted(written, rank, float(rank), layer.start)
    return Encoded(name, written, configured=(peft_lora.LoraConfig, wanted))


def _diffusers_lokr(layer: Lokr, name: str, taken: bool) -> Encoded:
    """A LoKr layer of a linear layer, with its scale multiplied into w1.

    diffusers has no key for alpha here, and where it is given only the tensors it infers a configuration with
    a scale of 1 (`_create_lokr_config` in its `utils/peft_utils.py`). w1 is in float32 where its own dtype
    does not hold the product exactly.
    Raises LayerError unless it is `taken` there, and for a layer of a convolution.
    """
    if not taken:
        raise LayerError(
            "reads lokr for the transformers of some models only",
            got="a layer that is not known to be in one of them",
            expected="Flux 2 or Z-Image, given as the model that the adapter is for",
        )
    tensors, wanted = LokrConfig.encoded(layer)
    if kernel := next((s for s, t in tensors.items() if t.ndim > 2), None):
        raise LayerError("holds no lokr of a convolution", got=f"{kernel} {list(tensors[kernel].shape)}")
    first = W1 if W1 in tensors else W1_A
    if layer.rank is not None:
        tensors[first] = times(tensors[first], scale(layer.alpha, layer.rank))
    # The number of inputs is that of w2's columns, since there is no kernel.
    told = replace(wanted, alpha=float(wanted.r), folded=False)
    return Encoded(name, tensors, configured=(LokrConfig, told))
