"""A codec for the host's quantised formats: which tensors of a file form one weight, and their values."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...lycoris_ops import (
    DTYPE_NAMES,
    FileFormatError,
    LycorisError,
    Quantised,
    TensorCache,
    TensorFile,
    TensorInfo,
    beginning_with,
    parse_json,
)
from ..host.quantised import QUANT_FORMATS, quantised_layer, rounding_seed

MARK = "comfy_quant"
"""Suffix of a tensor that describes the quantised weight beside it: JSON, as bytes."""

TABLE = "_quantization_metadata"
"""Metadata key under which a file describes all of its quantised layers at once, as JSON."""

OLD_MARK = "scaled_fp8"
"""Suffix of a marker tensor in older files. The rest of its name is the prefix of a part of the model: layers
of this part with a `scale_weight` are quantised to float8."""

MAX_MARK = 1 << 14
"""The most bytes of a tensor that describes a quantised weight. ComfyUI writes less than 100."""

GROUP = "convrot_groupsize"
MAX_GROUP = 4096
"""The largest group of columns that may be rotated together. The host makes a matrix of that size squared;
its own default is 256."""

SCALES: dict[str, tuple[str, ...]] = {
    "weight_scale": ("weight_scale", "scale_weight"),
    "weight_scale_2": ("weight_scale_2",),
}
"""The host's names for the scales of a weight, each with its names in files."""

SMOOTHING = "pre_quant_scale"
"""The name of factors (I,) by which the host multiplies a layer's input. So the effective weight is the
stored one times these factors, column by column. Source of the name: NVIDIA's ModelOpt."""

PACKED = {"nvfp4": 2, "convrot_w4a4": 2}
"""Formats that store several columns in one byte, with their number."""

PREFIXES = {
    "model.diffusion_model.": "diffusion_model.",
    "diffusion_model.": "diffusion_model.",
    "cond_stage_model.transformer.": "clip_l.transformer.",
    "conditioner.embedders.0.transformer.": "clip_l.transformer.",
    "text_encoders.": "",
}
"""Maps prefixes of weights in a checkpoint to those in the loaded model.

Text encoders in OpenCLIP's layout are not among them, because the host changes more than the prefix of their
names. Source: `comfy.supported_models`."""


@dataclass(frozen=True)
class HostCodec:
    """Reads and writes quantised weights through the host's own layer for them; see `Codec`.

    The rounding is therefore the host's. Its seed comes from the weight's name in the loaded model, if known,
    so that the file holds the weight as the host itself would have patched it.
    """

    prefix: str = ""
    """The loaded model's prefix for this file's names, if the file holds only one part of a model."""

    def find(self, file: TensorFile) -> Mapping[str, Quantised]:
        """The quantised layers of a file, by the key of the weight.

        A layer in a format that is not among `QUANT_FORMATS` has no parts. Shapes include padding that the
        format may have added, because the file does not state the original size. Raises FileFormatError,
        with the key, if the description of a layer is not a JSON table that names a format.
        """
        layers: dict[str, Quantised] = {}
        for layer, mark in _marked(file).items():
            key, name = f"{layer}.weight", str(mark["format"])
            stored = file.tensors.get(key)
            if stored is None:
                continue
            # Two dimensions only: the host unpacks a weight with a linear layer.
            if len(stored.shape) != 2 or name not in QUANT_FORMATS:
                layers[key] = Quantised(key, name, stored.shape, {}, mark)
                continue
            shape = (stored.shape[0], stored.shape[1] * PACKED.get(name, 1))
            layers[key] = Quantised(key, name, shape, _parts(layer, name, file.tensors), mark)
        return layers

    def decode(self, weight: Quantised, stored: Mapping[str, Tensor]) -> Tensor:
        """Decode the stored tensors to the float32 weight (O, I), times its smoothing factors.

        Raises LycorisError if the host cannot read them.
        """
        with self._reading(weight):
            layer = self._layer(weight, stored)
            values = layer.convert_weight(layer.weight).contiguous()
        smoothing = _smoothing(weight, stored)
        return values if smoothing is None else values.mul_(smoothing)

    def encode(self, weight: Quantised, values: Tensor, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Encode new values (O, I) as tensors like `stored`. The values are overwritten.

        Raises LycorisError if the host cannot read the stored tensors, or if a smoothing factor is 0.
        """
        smoothing = _smoothing(weight, stored)
        if smoothing is not None:
            values.div_(smoothing)
        with self._reading(weight):
            layer = self._layer(weight, stored)
            seed = rounding_seed(self._live(weight.key))
            state = layer.set_weight(values, seed=seed, return_weight=True).state_dict("weight")
        encoded = dict(stored)
        for name, tensor in state.items():
            key = _stored_name(weight.key, name, stored)
            encoded[key] = _like(tensor, stored[key])
        return encoded

    def _layer(self, weight: Quantised, stored: Mapping[str, Tensor]) -> Any:
        tensors = {
            name: stored[key]
            for name in ("weight", *SCALES)
            if (key := _stored_name(weight.key, name, stored)) in stored
        }
        return quantised_layer(weight.shape, tensors, weight.options)

    @contextmanager
    def _reading(self, weight: Quantised) -> Generator[None]:
        """A context that turns the host's errors about an incomplete or damaged weight into a LycorisError
        that names it."""
        try:
            yield
        except MemoryError:
            # These errors say nothing about the weight.
            raise
        # The host's layer checks little on loading, so a damaged weight can fail in any way.
        except Exception as error:
            raise LycorisError(
                "E-quantised-weight-unreadable", key=weight.key, format=weight.format, error=str(error)
            ) from error

    def _live(self, key: str) -> str:
        """The weight's name in the loaded model, which seeds the host's rounding."""
        for prefix, live in PREFIXES.items():
            if key.startswith(prefix):
                return live + key.removeprefix(prefix)
        return self.prefix + key


def _marked(file: TensorFile) -> dict[str, dict[str, Any]]:
    """The descriptions of quantised layers, by layer, from the three places where the host looks. Raises
    FileFormatError, with the key, for anything but a table that names a format.
    """
    table = file.metadata.get(TABLE)
    said = _table_of(file, TABLE, table).get("layers", {}) if table is not None else {}
    if not isinstance(said, dict):
        raise _unreadable(file, TABLE, f"layers that are {_kind(said)}")
    layers = {layer: _checked(file, f"{TABLE}: {layer}", mark) for layer, mark in said.items()}
    marks = [name for name in file.tensors if name.endswith(f".{MARK}")]
    for name in marks:
        info = file.tensors[name]
        # For the characters that ComfyUI writes, I8 has the same bytes.
        if info.dtype not in ("U8", "I8") or info.end - info.start > MAX_MARK:
            raise _unreadable(file, name, f"{info.end - info.start} bytes of {info.dtype} {list(info.shape)}")
    # Read once for each merge, so none of it is cached.
    for name, tensor in file.read(marks, TensorCache(0), keep=False).items():
        text = bytes(value & 0xFF for value in tensor.flatten().tolist())
        layers[name.removesuffix(f".{MARK}")] = _checked(file, name, _table_of(file, name, text))
    old = [name.removesuffix(OLD_MARK) for name in file.tensors if name.endswith(OLD_MARK)]
    in_part = beginning_with(file.tensors, old)
    for name in file.tensors:
        layer = name.removesuffix(".scale_weight")
        if name != layer and name in in_part:
            # The old marker does not name the format; the weight's dtype does.
            stored = file.tensors.get(f"{layer}.weight")
            narrow = stored is not None and stored.dtype == "F8_E5M2"
            layers[layer] = {"format": "float8_e5m2" if narrow else "float8_e4m3fn"}
    return layers


def _table_of(file: TensorFile, key: str, text: str | bytes) -> dict[str, Any]:
    """Parse a JSON table. Raises FileFormatError if the text is not one."""
    try:
        table = parse_json(text)
    except ValueError as error:
        raise _unreadable(file, key, str(error)) from error
    if not isinstance(table, dict):
        raise _unreadable(file, key, _kind(table))
    return table


def _checked(file: TensorFile, key: str, mark: Any) -> dict[str, Any]:
    """The description of one layer. Raises FileFormatError unless it is a table that names a format."""
    if not isinstance(mark, dict):
        raise _unreadable(file, key, _kind(mark))
    if not isinstance(mark.get("format"), str):
        raise _unreadable(file, key, f"a format that is {_kind(mark.get('format'))}")
    options = mark.get("params")
    for table in (mark, options if isinstance(options, dict) else {}):
        size = table.get(GROUP, 1)
        if type(size) is not int or not 0 < size <= MAX_GROUP:
            raise _unreadable(file, key, f"a {GROUP} of {size}", f"a whole number from 1 to {MAX_GROUP}")
    return mark


def _kind(value: Any) -> str:
    """The type of a JSON value, in words."""
    names = {dict: "a table", list: "a list", str: "a text", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def _unreadable(
    file: TensorFile, key: str, got: str, expected: str = "a table in JSON that names its format"
) -> FileFormatError:
    return FileFormatError(
        "E-quantised-description-unreadable", file=file.path, key=key, got=got, expected=expected
    )


def _parts(layer: str, name: str, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The tensors to rewrite when a layer's weight changes, with their dtypes.

    A scale of 16 or 64 bits is written in float32: rounded to 16 bits, it would not fit its weight.
    """
    dtypes = {f"{layer}.weight": DTYPE_NAMES[QUANT_FORMATS[name]]}
    for other in (*(stored for names in SCALES.values() for stored in names), SMOOTHING):
        info = tensors.get(f"{layer}.{other}")
        if info is not None:
            wide = info.dtype in ("F16", "BF16", "F64") and other != SMOOTHING
            dtypes[f"{layer}.{other}"] = "F32" if wide else info.dtype
    return dtypes


def _stored_name(key: str, name: str, stored: Mapping[str, Tensor]) -> str:
    """The file's key for the host's `name`: the weight or one of its scales."""
    layer = key.removesuffix(".weight")
    names = [f"{layer}.{other}" for other in SCALES.get(name, (name,))]
    return next((other for other in names if other in stored), names[0])


def _smoothing(weight: Quantised, stored: Mapping[str, Tensor]) -> Tensor | None:
    """The factors (I,) of the layer's input; None if it has none. Raises LycorisError if one is 0."""
    key = f"{weight.key.removesuffix('.weight')}.{SMOOTHING}"
    if key not in stored:
        return None
    factors = stored[key].float()
    if not (factors != 0).all():
        raise LycorisError("E-quantised-inputs-zeroed", key=key)
    return factors


def _like(tensor: Tensor, stored: Tensor) -> Tensor:
    """Convert a tensor from the host to the form of the stored one: to its shape if the sizes are equal, and
    to its dtype if both have 8 bits.
    """
    if tensor.itemsize == stored.itemsize == 1:
        tensor = tensor.view(stored.dtype)
    return tensor.contiguous().reshape(stored.shape) if tensor.numel() == stored.numel() else tensor
