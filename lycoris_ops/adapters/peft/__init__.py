"""The configuration that PEFT writes beside its weights, or diffusers into them; it alone holds alpha."""

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
METADATA_KEY = "lora_adapter_metadata"


def kind_of(layer: type[Layer]) -> type[Config[Any]] | None:
    """The kind of configuration that describes layers of an algorithm; None where PEFT has none."""
    return next((kind for kind in KINDS.values() if kind.algorithm is layer), None)


def config_for(members: Sequence[Member[Any]], module: Module) -> Config[Any]:
    """The configuration for these layers. Raises ConflictError where none makes these very layers."""
    kind = Counter(member.kind for member in members).most_common(1)[0][0]
    for member in members:
        if member.kind is not kind:
            beside = f"{member.kind.peft_type} beside {kind.peft_type}"
            raise ConflictError("needs one kind in a file", member, beside)
    return kind.of(members, module)


def read_peft_config(path: str) -> Config[Any]:
    """Read an adapter_config.json. Raises FileFormatError where it is damaged or of another kind."""
    try:
        # Some editors put a mark of the byte order in front.
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise FileFormatError("the file cannot be read", file=path, got=str(error.strerror)) from error
    return _parse(text, path, lambda table: {""})[""]


def read_lora_metadata(text: str, path: str) -> dict[str, Config[Any]]:
    """The configurations that diffusers writes into a file's metadata, by part: `unet`, `text_encoder`.

    One flat JSON table holds them, each key with its part in front: `unet.lora_alpha`.
    Raises FileFormatError as `read_peft_config` does.
    """
    return _parse(text, f"{path} ({METADATA_KEY})", _parts)


def _parts(table: dict[str, Any]) -> set[str]:
    found = {key.rpartition(".")[0] for key in table if key.rpartition(".")[2] == "r"}
    if not found:
        raise KeyError("r")
    return found


def _parse(text: str, path: str, parts: Callable[[dict[str, Any]], set[str]]) -> dict[str, Config[Any]]:
    try:
        table = cast("dict[str, Any]", json.loads(text))
        return {part: _config(table, f"{part}." if part else "", path) for part in parts(table)}
    except (
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
    # A file that does not say its kind, or one that is not known, is read as the most usual one.
    return KINDS.get(str(own.get("peft_type")), LoraConfig).read(own, path)
