"""The configuration that PEFT writes beside its weights, or diffusers into them; it alone holds alpha.

PEFT scales a layer by alpha / r, or alpha / sqrt(r) with `use_rslora`; `rank_pattern` and
`alpha_pattern` override both by layer, the key being a regular expression that must match the end
of the layer's path. Source: the configuration classes of peft 0.21.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import FileFormatError

Number = TypeVar("Number", int, float)

WITHOUT_ALPHA = ("OFT", "BOFT", "IA3")
CONFIG_NAME = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class PeftConfig:
    """What of a PEFT configuration decides the scale of a layer, patterns as expressions to match."""

    path: str
    alpha: float | None
    """None for the kinds that have none (OFT, IA3)."""
    rank: int
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    use_rslora: bool = False
    rotation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The options of an OFT layer, by the names of the algorithm."""
    feedforward: tuple[str, ...] = ()
    """Ends of the paths of layers whose IA3 factors are for inputs."""

    def rank_at(self, layer: str) -> int | None:
        """The rank that a layer has by it; None for the kinds that have none."""
        return None if self.alpha is None else _override(self.rank_pattern, layer, self.rank)

    def options(self, algorithm: str, layer: str) -> dict[str, Any]:
        """What an algorithm needs to know of a layer beyond its scale."""
        if algorithm == "oftv2":
            return dict(self.rotation)
        if algorithm == "ia3":
            return {"feedforward": any(re.search(end, layer) for end in self.feedforward)}
        return {}

    def alpha_of(self, layer: str, rank: int) -> float:
        """The alpha for which alpha / rank is PEFT's scale of that layer."""
        default = float(rank) if self.alpha is None else self.alpha
        alpha = _override(self.alpha_pattern, layer, default)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    def scale_of(self, layer: str) -> float:
        """PEFT's scale of a layer whose rank its tensors do not show."""
        rank = _override(self.rank_pattern, layer, self.rank)
        return self.alpha_of(layer, rank) / rank


def _table(config: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    return [(str(key), value) for key, value in cast("dict[Any, Any]", config.get(name) or {}).items()]


def _override(patterns: Mapping[str, Number], layer: str, default: Number) -> Number:
    matching = (value for key, value in patterns.items() if re.match(key, layer))
    return next(matching, default)


def read_peft_config(path: str) -> PeftConfig:
    """Read an adapter_config.json. Raises FileFormatError where it is damaged or of another kind."""
    try:
        # Some editors put a mark of the byte order in front.
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise FileFormatError("the file cannot be read", file=path, got=str(error.strerror)) from error
    return _parse(text, path, lambda table: {""})[""]


def read_lora_metadata(text: str, path: str) -> dict[str, PeftConfig]:
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


def _parse(text: str, path: str, parts: Callable[[dict[str, Any]], set[str]]) -> dict[str, PeftConfig]:
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


def _config(table: dict[str, Any], prefix: str, path: str) -> PeftConfig:
    config = {key.removeprefix(prefix): value for key, value in table.items() if key.startswith(prefix)}
    if config.get("fan_in_fan_out"):
        raise ValueError("fan_in_fan_out: its factors are for transposed weights")
    return PeftConfig(
        path=path,
        alpha=_alpha(config),
        rank=_rank(config["r"]) if _has_rank(config) else 1,
        rank_pattern={_pattern(name): _rank(value) for name, value in _table(config, "rank_pattern")},
        alpha_pattern={_pattern(name): float(value) for name, value in _table(config, "alpha_pattern")},
        use_rslora=bool(config.get("use_rslora", False)),
        rotation=_rotation(config),
        feedforward=_feedforward(config),
    )


def _has_rank(config: dict[str, Any]) -> bool:
    return config.get("peft_type") not in WITHOUT_ALPHA


def _rank(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"a rank of {value}")
    return int(value)


def _alpha(config: dict[str, Any]) -> float | None:
    if not _has_rank(config):
        return None
    return float(config["lora_alpha"] if "lora_alpha" in config else config["alpha"])


def _constraint(config: dict[str, Any]) -> float | None:
    if not config.get("coft"):
        return None
    eps = float(config["eps"])
    if not eps > 0:
        raise ValueError(f"coft with an eps of {eps}")
    return eps


def _rotation(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("peft_type") != "OFT":
        return {}
    terms = int(config.get("num_cayley_neumann_terms", 5)) if config.get("use_cayley_neumann", True) else 0
    if terms < 0:
        raise ValueError(f"num_cayley_neumann_terms of {terms}")
    # Before 0.18, whose files name no version, the last term of the series counted twice as the others.
    release = tuple(int(part) for part in re.findall(r"\d+", str(config.get("peft_version", "0.0")))[:2])
    return {
        "terms": terms,
        "last": 1 if release >= (0, 18) else 2,
        "constraint": _constraint(config),
    }


def _feedforward(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("feedforward_modules") or ()
    if isinstance(names, str):
        return (rf"^({names})$",)
    return tuple(f"{re.escape(str(name))}$" for name in names)


def _pattern(text: str) -> str:
    """PEFT's rule: the expression must match the end of the path, from the start of a name on."""
    return re.compile(rf"(.*\.)?({text})$").pattern
