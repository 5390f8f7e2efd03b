"""The `adapter_config.json` that PEFT writes beside its weights, which alone holds alpha.

PEFT scales a layer by alpha / r, or alpha / sqrt(r) with `use_rslora`; `rank_pattern` and
`alpha_pattern` override both by layer, the key being a regular expression that must match the end
of the layer's path. Source: the configuration classes of peft 0.21.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import FileFormatError

Number = TypeVar("Number", int, float)

CONFIG_NAME = "adapter_config.json"


@dataclass(frozen=True)
class PeftConfig:
    """What of an adapter_config.json decides the scale of a layer."""

    path: str
    alpha: float
    rank: int
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    use_rslora: bool = False

    def alpha_of(self, layer: str, rank: int) -> float:
        """The alpha for which alpha / rank is PEFT's scale of that layer."""
        alpha = _override(self.alpha_pattern, layer, self.alpha)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    def scale_of(self, layer: str) -> float:
        """PEFT's scale of a layer whose rank its tensors do not show."""
        rank = _override(self.rank_pattern, layer, self.rank)
        return self.alpha_of(layer, rank) / rank


def _table(config: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    return [(str(key), value) for key, value in cast("dict[Any, Any]", config.get(name) or {}).items()]


def _override(patterns: Mapping[str, Number], layer: str, default: Number) -> Number:
    matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer))
    return next(matching, default)


def read_peft_config(path: str) -> PeftConfig:
    """Read an adapter_config.json. Raises FileFormatError where it is damaged or of another kind."""
    try:
        loaded: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        config = cast("dict[str, Any]", loaded)
        alpha = config["lora_alpha"] if "lora_alpha" in config else config["alpha"]
        return PeftConfig(
            path=path,
            alpha=float(alpha),
            rank=int(config["r"]),
            rank_pattern={name: int(value) for name, value in _table(config, "rank_pattern")},
            alpha_pattern={name: float(value) for name, value in _table(config, "alpha_pattern")},
            use_rslora=bool(config.get("use_rslora", False)),
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            "this is no PEFT configuration",
            file=path,
            got=f"{type(error).__name__}: {error}",
            expected="a table with r and lora_alpha (or alpha)",
            hint="Restore it, or remove it to apply the adapter at scale 1",
        ) from error
