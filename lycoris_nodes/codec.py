"""The host's quantised formats as a codec: which tensors of a file belong together, under its names."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..lycoris_ops import DTYPE_NAMES, LycorisError, Quantised, TensorCache, TensorFile, TensorInfo
from .host import QUANT_FORMATS, quantised_layer, rounding_seed

MARK = "comfy_quant"
"""Beside a quantised weight: JSON that says its format, as bytes."""

TABLE = "_quantization_metadata"
"""The same for all layers of a file at once, as JSON in its metadata."""

OLD_MARK = "scaled_fp8"
"""Behind the prefix of a part of a model in older files: those of its layers that have a scale are
quantised, and the scale is not called as the host calls it now."""

SCALES: dict[str, tuple[str, ...]] = {
    "weight_scale": ("weight_scale", "scale_weight"),
    "weight_scale_2": ("weight_scale_2",),
}
"""What the host calls the scales of a weight, and their names in files."""

SMOOTHING = "pre_quant_scale"
"""By what the host multiplies a layer's input, so that the weight it stands for is the stored one times
this, column by column. Source of the name: NVIDIA's ModelOpt."""

PACKED = {"nvfp4": 2, "convrot_w4a4": 2}
"""Formats that store several columns in one byte."""

PREFIXES = {"model.diffusion_model.": "diffusion_model.", "diffusion_model.": "diffusion_model."}
"""What the names of a diffusion model's weights begin with in a checkpoint, and once it is loaded."""


@dataclass(frozen=True)
class HostCodec:
    """Reads and writes quantised weights through the host's own layer for them.

    So the host's rounding is used, seeded with the name that the weight has in the loaded model where
    this is known: a file then holds what the host itself would have made of the patched weight.
    """

    prefix: str = ""
    """What goes before the names of the file in the loaded model, for a model in a file of its own."""

    def find(self, file: TensorFile) -> Mapping[str, Quantised]:
        """The quantised layers of a file. What the host has no format for is left out.

        Packed rows and columns are taken as they are stored, with what the format may have padded: the
        file does not say how many of them are meant.
        """
        found: dict[str, Quantised] = {}
        for layer, mark in _marked(file).items():
            key, name = f"{layer}.weight", mark.get("format")
            stored = file.tensors.get(key)
            if stored is None or len(stored.shape) != 2 or name not in QUANT_FORMATS:
                continue
            shape = (stored.shape[0], stored.shape[1] * PACKED.get(name, 1))
            found[key] = Quantised(key, name, shape, _parts(layer, name, file.tensors), mark)
        return found

    def decode(self, weight: Quantised, stored: Mapping[str, Tensor]) -> Tensor:
        with self._reading(weight):
            layer = self._layer(weight, stored)
            values = layer.convert_weight(layer.weight).contiguous()
        smoothing = _smoothing(weight, stored)
        return values if smoothing is None else values.mul_(smoothing)

    def encode(self, weight: Quantised, values: Tensor, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        smoothing = _smoothing(weight, stored)
        if smoothing is not None:
            values.div_(smoothing)
        with self._reading(weight):
            layer = self._layer(weight, stored)
        seed = rounding_seed(self._live(weight.key))
        made = layer.set_weight(values, seed=seed, return_weight=True).state_dict("weight")
        parts = dict(stored)
        for name, tensor in made.items():
            key = _stored_name(weight.key, name, stored)
            parts[key] = _like(tensor, stored[key])
        return parts

    def _layer(self, weight: Quantised, stored: Mapping[str, Tensor]) -> Any:
        tensors = {
            name: stored[_stored_name(weight.key, name, stored)]
            for name in ("weight", *SCALES)
            if _stored_name(weight.key, name, stored) in stored
        }
        return quantised_layer(weight.shape, tensors, weight.options)

    @contextmanager
    def _reading(self, weight: Quantised) -> Generator[None]:
        """What the host says inside of a weight that a file holds in part, or wrongly, names the weight."""
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LycorisError(
                "the host cannot read a quantised weight",
                key=weight.key,
                got=f"{weight.format}: {error}",
                hint="Merge into the file it was quantised from",
            ) from error

    def _live(self, key: str) -> str:
        for prefix, live in PREFIXES.items():
            if key.startswith(prefix):
                return live + key.removeprefix(prefix)
        return self.prefix + key


def _marked(file: TensorFile) -> dict[str, dict[str, Any]]:
    """What a file says of its quantised layers, in the three ways in which the host reads it."""
    try:
        layers = dict(json.loads(file.metadata.get(TABLE, "{}")).get("layers", {}))
        marks = [name for name in file.tensors if name.endswith(f".{MARK}")]
        for name, tensor in file.read(marks, TensorCache(0), keep=False).items():
            layers[name.removesuffix(f".{MARK}")] = json.loads(bytes(tensor.tolist()))
    except (ValueError, TypeError, AttributeError) as error:
        raise LycorisError(
            "what the file says of its quantised weights cannot be read",
            file=file.path,
            got=str(error),
            expected=f"JSON in {TABLE} or in tensors named {MARK}",
        ) from error
    for mark in (name for name in file.tensors if name.endswith(OLD_MARK)):
        for name in file.tensors:
            layer = name.removesuffix(".scale_weight")
            if name != layer and name.startswith(mark.removesuffix(OLD_MARK)):
                stored = file.tensors.get(f"{layer}.weight")
                narrow = stored is not None and stored.dtype == "F8_E5M2"
                layers[layer] = {"format": "float8_e5m2" if narrow else "float8_e4m3fn"}
    return layers


def _parts(layer: str, name: str, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The tensors of a layer that change with its weight, with the dtypes that the host writes them in.

    A scale of 16 bits becomes one of 32: rounded, it would no longer be that of its weight.
    """
    parts = {f"{layer}.weight": DTYPE_NAMES[QUANT_FORMATS[name]]}
    for other in (*(stored for names in SCALES.values() for stored in names), SMOOTHING):
        info = tensors.get(f"{layer}.{other}")
        if info is not None:
            wide = info.dtype in ("F16", "BF16", "F64") and other != SMOOTHING
            parts[f"{layer}.{other}"] = "F32" if wide else info.dtype
    return parts


def _stored_name(key: str, name: str, stored: Mapping[str, Tensor]) -> str:
    """The file's key for what the host calls `name`."""
    layer = key.removesuffix(".weight")
    names = [f"{layer}.{other}" for other in SCALES.get(name, (name,))]
    return next((other for other in names if other in stored), names[0])


def _smoothing(weight: Quantised, stored: Mapping[str, Tensor]) -> Tensor | None:
    key = f"{weight.key.removesuffix('.weight')}.{SMOOTHING}"
    if key not in stored:
        return None
    factors = stored[key].float()
    if not (factors != 0).all():
        raise LycorisError(
            "a quantised layer ignores some of its inputs, so no change of them can be stored",
            key=key,
            got="a factor of 0",
            hint="Merge into the file it was quantised from",
        )
    return factors


def _like(tensor: Tensor, stored: Tensor) -> Tensor:
    """In the shape it is stored in, and, where that is of 8 bits, as the dtype that it is kept as."""
    if tensor.itemsize == 1 and stored.itemsize == 1 and not stored.is_floating_point():
        tensor = tensor.view(stored.dtype)
    return tensor.contiguous().reshape(stored.shape) if tensor.numel() == stored.numel() else tensor
