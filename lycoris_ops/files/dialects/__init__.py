"""The dialects of adapter files. A module in this folder that defines DIALECT registers it."""

from __future__ import annotations

import importlib
import pkgutil

from .base import Dialect, Part, Prefix

__all__ = ["DIALECTS", "Dialect", "Part", "Prefix", "split_key", "split_prefix"]


def _discover() -> dict[str, Dialect]:
    found: dict[str, Dialect] = {}
    for module_info in pkgutil.iter_modules(__path__):
        dialect = getattr(importlib.import_module(f"{__name__}.{module_info.name}"), "DIALECT", None)
        if dialect is None:
            continue
        if dialect.name in found:
            raise TypeError(f"two modules register the dialect {dialect.name!r}")
        found[dialect.name] = dialect
    return found


DIALECTS: dict[str, Dialect] = _discover()
"""Dialect name to dialect."""


UNREAD = (
    "dora_scale",
    "diff",
    "diff_b",
    "set_weight",
    "reshape_weight",
    "w_norm",
    "b_norm",
    "oft_blocks",
    "rescale",
    "oft_R.weight",
    "on_input",
    "lora_B.bias",
    "bias_indices",
    "bias_values",
    "bias_size",
    "scalar",
    *(f"{factor}.weight" for factor in ("a1", "a2", "b1", "b2", "bm", "q_layer", "p_layer")),
    "lambda_layer",
)
"""Suffixes of kinds that no algorithm here reads: a layer that has one is reported, not half applied."""


def _suffixes() -> dict[str, str]:
    merged: dict[str, str] = {suffix: suffix for suffix in UNREAD}
    for dialect in DIALECTS.values():
        for written, canonical in dialect.suffixes.items():
            if merged.setdefault(written, canonical) != canonical:
                raise TypeError(f"dialects disagree on the suffix {written!r}")
    return merged


_SUFFIXES = _suffixes()
_DEPTHS = sorted({suffix.count(".") + 1 for suffix in _SUFFIXES}, reverse=True)
_PREFIXES = sorted(
    ((prefix, dialect.name) for dialect in DIALECTS.values() for prefix in dialect.prefixes),
    key=lambda item: -len(item[0].text),
)


def split_key(key: str) -> tuple[str, str] | None:
    """A tensor's name as (layer name, canonical suffix); None where the suffix is unknown."""
    parts = key.split(".")
    for depth in _DEPTHS:
        if depth < len(parts):
            canonical = _SUFFIXES.get(".".join(parts[-depth:]))
            if canonical is not None:
                return ".".join(parts[:-depth]), canonical
    return None


def split_prefix(layer: str) -> tuple[str | None, Prefix, str]:
    """A layer's name as (dialect, prefix, path); a name without a known prefix keeps all of it."""
    for prefix, dialect in _PREFIXES:
        if layer.startswith(prefix.text):
            return dialect, prefix, layer[len(prefix.text) :]
    return None, Prefix(""), layer
