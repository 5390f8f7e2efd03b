"""PEFT's configuration, which lies beside its weights or in diffusers' metadata, and alone holds alpha."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...algorithms import Layer
from ...errors import FileFormatError
from .config import Config, ConflictError, Member, Module, Wanted, WantedRank
from .kinds import KINDS
from .kinds.lora import LoraConfig

__all__ = [
    "CONFIG_NAME",
    "METADATA_KEY",
    "Config",
    "ConflictError",
    "Member",
    "Module",
    "Wanted",
    "WantedRank",
    "config_for",
    "kind_of",
    "read_lora_metadata",
    "read_peft_config",
]

CONFIG_NAME = "adapter_config.json"
"""The name of the configuration beside PEFT's weights."""
METADATA_KEY = "lora_adapter_metadata"
"""The metadata key under which diffusers writes its configurations."""


def kind_of(layer: type[Layer]) -> type[Config[Any]] | None:
    """The kind of configuration that describes layers of an algorithm; None where PEFT has none."""
    return next((kind for kind in KINDS.values() if kind.algorithm is layer), None)


def config_for(members: Sequence[Member[Any]], module: Module) -> Config[Any]:
    """The configuration from which PEFT builds these layers of a module.

    Raises ConflictError where no configuration gives these very layers.
    """
    # The kind of most layers, so that the error names one of the few others.
    kind = Counter(member.kind for member in members).most_common(1)[0][0]
    for member in members:
        if member.kind is not kind:
            beside = f"{member.kind.peft_type} beside {kind.peft_type}"
            raise ConflictError("needs one kind in a file", member, beside)
    return kind.of(members, module)


def read_peft_config(path: str) -> Config[Any]:
    """Read an adapter_config.json. Raises FileFormatError where it cannot be read or followed."""
    try:
        # Some editors put a byte order mark in front, which utf-8-sig takes away.
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise FileFormatError("the file cannot be read", file=path, got=str(error.strerror)) from error
    return _parse(text, path, lambda table: {""})[""]


def read_lora_metadata(text: str, path: str) -> dict[str, Config[Any]]:
    """The configurations in diffusers' metadata, by the part of the pipeline: `unet`, `text_encoder`.

    `text` is the value of `METADATA_KEY`, and `path` the file for errors. It is one flat JSON table, in which
    each key has its part in front: `unet.lora_alpha`. Without a part in front the result's key is "".
    Raises FileFormatError where the table cannot be followed.
    """
    return _parse(text, f"{path} ({METADATA_KEY})", _parts)


def _parts(table: dict[str, Any]) -> set[str]:
    """The parts in front of the keys, told from those of the rank, which every configuration has."""
    found = {key.rpartition(".")[0] for key in table if key.rpartition(".")[2] == "r"}
    if not found:
        raise KeyError("r")
    return found


def _parse(text: str, path: str, parts: Callable[[dict[str, Any]], set[str]]) -> dict[str, Config[Any]]:
    try:
        table = cast("dict[str, Any]", json.loads(text))
        return {part: _config(table, f"{part}." if part else "", path) for part in parts(table)}
    except (
        # What may come of JSON in any form, such as a list for a table or an infinite rank.
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        re.error,
    ) as error:
        raise FileFormatError(
            "this is no PEFT configuration that can be followed",
            file=path,
            got=f"{type(error).__name__}: {error}",
            expected="a table with r and lora_alpha (or alpha)",
            hint="Restore it, or remove it to apply the adapter at scale 1",
        ) from error


def _config(table: Mapping[str, Any], prefix: str, path: str) -> Config[Any]:
    own = {key.removeprefix(prefix): value for key, value in table.items() if key.startswith(prefix)}
    if own.get("fan_in_fan_out"):
        raise ValueError("fan_in_fan_out: its factors are for transposed weights")
    # Where the kind is missing or not known, LoRA is the most usual.
    return KINDS.get(str(own.get("peft_type")), LoraConfig).read(own, path)
