"""Hugging Face diffusers: one file for a pipeline's UNet or transformer and text encoders.

There are three generations of suffixes: PEFT's, `.lora.down.weight`, and those of attention processors
(`attn1.processor.to_q_lora.down.weight`, where `to_out` stands for `to_out.0`). PEFT's are written, except
for UNets, which get the older two: diffusers reads these too, and they are the only names that ComfyUI knows
for the attention of UNets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.base import alpha_of
from ...algorithms.checks import scale
from ...algorithms.lokr import W1, W1_A, Lokr
from ...algorithms.lora import BIAS, DOWN, EMBEDDING_UP, UP, Lora
from ...errors import LayerError
from ...maths.tensors import times
from ...peft import METADATA_KEY, read_lora_metadata
from ...peft.config import BASE_BIAS
from ...peft.kinds import lora as peft_lora
from ...peft.kinds.lokr import LokrConfig
from ..layouts import Layers
from . import pipelines
from .base import Asked, Dialect, Encoded, Opened, Prefix, Write, by_any

UNET_PREFIX = "unet."
UNET_SUFFIXES = {"lora_A.weight": "lora.down.weight", "lora_B.weight": "lora.up.weight"}
"""From PEFT's suffixes to those that are written for a UNet."""
ATTENTION = re.compile(r"\.(to_q|to_k|to_v|to_out)(?:\.0)?\.lora\.(down|up)\.weight$")
PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")


def _rename(key: str) -> str:
    def plain(match: re.Match[str]) -> str:
        layer = "to_out.0" if match[1] == "to_out" else match[1]
        return f".{layer}.lora_{match[2]}.weight"

    return PROCESSOR.sub(plain, key)


def _spelled(layer: str, suffix: str) -> str:
    """The key under which a tensor is written. suffix: PEFT's name of the tensor."""
    if not layer.startswith(UNET_PREFIX) or suffix not in UNET_SUFFIXES:
        return f"{layer}.{suffix}"
    return ATTENTION.sub(r".processor.\1_lora.\2.weight", f"{layer}.{UNET_SUFFIXES[suffix]}")


def _prefix(component: str, components: pipelines.Components) -> str:
    if component != pipelines.UNET:
        number = components.number(component)
        return "text_encoder." if number == 1 else f"text_encoder_{number}."
    return f"{components.component}."


FOLDED = "alpha / rank multiplied into a factor of {layers}"
WIDER = "{count} of these factors in float32, because their dtype cannot hold the product"


def _holds(kind: type[Layer], takes_lokr: bool) -> bool:
    return kind is Lora or (kind is Lokr and takes_lokr)


def _tensors(layer: Layer, asked: Asked) -> Encoded:
    """A layer with its scale multiplied into a factor, for readers that know no alpha."""
    encoded = _lokr(layer, asked) if isinstance(layer, Lokr) else _lora(layer, asked)
    if asked.dtype is None:
        return encoded
    # Also the factor that holds the scale, which may be in a wider dtype.
    return replace(
        encoded,
        tensors={suffix: tensor.to(asked.dtype) for suffix, tensor in encoded.tensors.items()},
        remarks=tuple(remark for remark in encoded.remarks if remark != WIDER),
    )


def _lora(layer: Layer, asked: Asked) -> Encoded:
    """A LoRA layer with its scale multiplied into one factor.

    That is `lora_B` if its dtype holds the product exactly, else `lora_A` if its own dtype does. If
    neither does, it is `lora_B` in float32.

    Raises LayerError for other kinds, embeddings, values of a bias, and OLoRA with a scale other than 1.
    """
    tensors = peft_lora.named_tensors(layer)
    if EMBEDDING_UP in tensors:
        raise LayerError("E-dialect-without-embeddings-lora", got=EMBEDDING_UP)
    if BASE_BIAS in tensors:
        raise LayerError("E-dialect-without-bias-values", got=BASE_BIAS)
    assert isinstance(layer, Lora) and layer.lora_up is not None and layer.lora_down is not None
    rank = int(layer.lora_up.shape[1])
    factor = scale(layer.alpha, rank)
    if layer.start == "olora" and factor != 1.0:
        # PEFT also scales the part that it subtracts from the base. Without an alpha that scale would be 1.
        raise LayerError("E-olora-scale-not-1", factor=f"{factor:g}")
    up, down = times(layer.lora_up, factor), layer.lora_down
    if up.dtype != layer.lora_up.dtype and (scaled := times(down, factor)).dtype == down.dtype:
        up, down = layer.lora_up, scaled
    written = {**tensors, peft_lora.SUFFIXES[UP]: up, peft_lora.SUFFIXES[DOWN]: down}
    if BIAS in written:
        # The bias is scaled like the product.
        written[BIAS] = times(written[BIAS], factor)
    wanted = peft_lora.wanted(written, rank, float(rank), layer.start)
    remarks = _remarks(layer, tensors, written)
    return Encoded(asked.name, written, configured=(peft_lora.LoraConfig, wanted), remarks=remarks)


def _lokr(layer: Lokr, asked: Asked) -> Encoded:
    """A LoKr layer of a linear layer, with its scale multiplied into w1.

    diffusers has no key for alpha here, and from tensors alone it infers a configuration with a scale of 1
    (`_create_lokr_config` in its `utils/peft_utils.py`). w1 is in float32 where its own dtype does not hold
    the product exactly.

    Raises LayerError where diffusers does not read LoKr, and for a layer of a convolution.
    """
    if not asked.takes_lokr:
        raise LayerError("E-lokr-model-unknown-to-dialect")
    tensors, wanted = LokrConfig.encoded(layer)
    if kernel := next((s for s, t in tensors.items() if t.ndim > 2), None):
        raise LayerError(
            "E-dialect-without-lokr-convolution", kernel=kernel, shape=list(tensors[kernel].shape)
        )
    first, written = W1 if W1 in tensors else W1_A, dict(tensors)
    if layer.rank is not None:
        written[first] = times(tensors[first], scale(layer.alpha, layer.rank))
    # A linear layer has no kernel in the columns of w2, so they give the number of inputs.
    config = replace(wanted, alpha=float(wanted.r), folded=False)
    remarks = _remarks(layer, tensors, written)
    return Encoded(asked.name, written, configured=(LokrConfig, config), remarks=remarks)


def _remarks(layer: Layer, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[str, ...]:
    # Without a rank, as for a LoKr of two full factors, there is no scale.
    if layer.rank is None or alpha_of(layer) == layer.rank:
        return ()
    wider = any(after[suffix].dtype != tensor.dtype for suffix, tensor in before.items())
    return (FOLDED, WIDER) if wider else (FOLDED,)


def _opened(read: Opened) -> Opened:
    """The file with its own configurations. One beside it is then of another file."""
    if METADATA_KEY not in read.file.metadata:
        return read
    own = read_lora_metadata(read.file.metadata[METADATA_KEY], read.file.path)
    return replace(read, config=None, own=own)


DIALECT = Dialect(
    name="diffusers",
    prefixes=(
        Prefix(UNET_PREFIX, "unet"),
        Prefix("transformer.", "unet"),
        # Ideogram 4 has a second transformer, for the negative side of the guidance. diffusers reads this
        # prefix in `_convert_non_diffusers_ideogram4_lora_to_diffusers` (Apache-2.0).
        Prefix("conditional_transformer.", "unet"),
        # Stable Cascade.
        Prefix("prior.", "unet"),
        Prefix("text_encoder.", "te", 1),
        Prefix("text_encoder_2.", "te", 2),
        Prefix("text_encoder_3.", "te", 3),
        Prefix("text_encoder_4.", "te", 4),
    ),
    suffixes={
        "lora.down.weight": "lora_down.weight",
        "lora.up.weight": "lora_up.weight",
        "lora.up.bias": BIAS,
        "lora.A.weight": "lora_down.weight",
        "lora.B.weight": "lora_up.weight",
        "lora.B.bias": BIAS,
        "lora.A": "lora_down.weight",
        "lora.B": "lora_up.weight",
        "lora_linear_layer.down.weight": "lora_down.weight",
        "lora_linear_layer.up.weight": "lora_up.weight",
        "lora_linear_layer.up.bias": BIAS,
    },
    opened=_opened,
    recognises=by_any(PROCESSOR),
    rename=_rename,
    file="pytorch_lora_weights",
    write=Write(
        _prefix,
        order=4,
        tensors=_tensors,
        layout=Layers.diffusers,
        lokr=Layers.diffusers_lokr,
        holds=_holds,
        spelled=_spelled,
        configuration="within",
    ),
)
