"""What a configuration of PEFT says, kind by kind, in both directions.

A kind is one dataclass, whose fields are named as PEFT names them: read from a file, it says what no
tensor of a layer tells; made of layers, it is what PEFT needs to build them again.
Source: the configuration classes of peft 0.21.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.base import ALPHA, DIFF_B
from ...algorithms.factored import DORA, SPARSE
from ...errors import LayerError
from . import patterns

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
W = TypeVar("W", bound="Wanted")
UNSCALED = (DIFF_B, DORA, *SPARSE)
"""Tensors that only a LoRA layer can have beside it in PEFT, or none."""
INFERENCE = {"inference_mode": True}
"""Written for every kind: PEFT then freezes what it loads."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the configuration must say for one layer; each kind adds its own."""


@dataclass(frozen=True, kw_only=True)
class WantedRank(Wanted):
    """The same of a kind that has ranks."""

    r: int
    alpha: float
    """For which alpha / r is the layer's scale."""


@dataclass(frozen=True)
class Member(Generic[W]):
    """A layer that a configuration is made for."""

    name: str
    """In the file."""
    path: str
    """In its module."""
    kind: type[Config[W]]
    wanted: W


@dataclass(frozen=True)
class Module:
    """The module that a configuration is made for, as far as it is known."""

    paths: Collection[str] = ()
    kernels: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of values of each layer's kernel, by its path."""


class ConflictError(LayerError):
    """Layers that no one configuration can describe; `member` is the one that differs."""

    def __init__(self, why: str, member: Member[Any], got: str) -> None:
        super().__init__(why, got=got)
        self.member = member


@dataclass(frozen=True, kw_only=True)
class Config(ABC, Generic[W]):
    """A configuration of one kind. A module in `kinds` that defines a subclass registers it."""

    peft_type: ClassVar[str]
    algorithm: ClassVar[type[Layer]]

    path: str = ""
    """The file that it was read from."""
    target_modules: Sequence[str] | str = ()
    """The layers that PEFT adapts, as it is written; a file's own layers tell that when it is read."""

    # What it says of a layer that is read.

    @classmethod
    @abstractmethod
    def read(cls, table: Mapping[str, Any], path: str) -> Self:
        """From the table of a file.

        Raises KeyError, TypeError, ValueError, AttributeError, OverflowError or re.error where it
        cannot be followed.
        """

    def rank_at(self, path: str) -> int | None:
        """The rank of the layer at a path of the module; None for the kinds that have none."""
        return None

    def alpha_at(self, path: str, rank: int) -> float:
        """The alpha for which alpha / rank is PEFT's scale of that layer."""
        return float(rank)

    def scale_at(self, path: str) -> float:
        """PEFT's scale of a layer whose rank its tensors do not show."""
        return 1.0

    def options(self, algorithm: type[Layer], path: str) -> dict[str, Any]:
        """What a layer of an algorithm needs to know and no tensor tells."""
        return {}

    # What it must say of layers that are written.

    @classmethod
    @abstractmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], W]:
        """The tensors by PEFT's suffixes, and what the configuration must say.

        Raises LayerError where PEFT has no place for some of the layer.
        """

    @classmethod
    @abstractmethod
    def of(cls, members: Sequence[Member[W]], module: Module) -> Self:
        """The configuration for these layers. Raises ConflictError where none makes these very layers."""

    def table(self) -> dict[str, Any]:
        """As PEFT writes it."""
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "path"}
        return {"peft_type": self.peft_type, **INFERENCE, **fields}


@dataclass(frozen=True, kw_only=True)
class RankedConfig(Config[W]):
    """scale = alpha / r, where both may differ from layer to layer.

    The keys of `rank_pattern` and `alpha_pattern` are expressions, see `patterns`.
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])

    alpha_name: ClassVar[str] = "alpha"
    """What the kind calls alpha."""

    @classmethod
    def read(cls, table: Mapping[str, Any], path: str) -> Self:
        # Files that do not say their kind have either name.
        alpha = table["lora_alpha"] if "lora_alpha" in table else table["alpha"]
        return cls(
            path=path,
            r=_rank(table["r"]),
            alpha=float(alpha),
            rank_pattern={
                patterns.check(key): _rank(value) for key, value in _entries(table, "rank_pattern")
            },
            alpha_pattern={patterns.check(key): float(v) for key, v in _entries(table, "alpha_pattern")},
        )

    def rank_at(self, path: str) -> int:
        return patterns.override(self.rank_pattern, path, self.r)

    def alpha_at(self, path: str, rank: int) -> float:
        return patterns.override(self.alpha_pattern, path, self.alpha)

    def scale_at(self, path: str) -> float:
        rank = self.rank_at(path)
        return self.alpha_at(path, rank) / rank

    def table(self) -> dict[str, Any]:
        table = super().table()
        alpha = table.pop("alpha")
        by_layer = {key: _number(value) for key, value in self.alpha_pattern.items()}
        return {**table, self.alpha_name: _number(alpha), "alpha_pattern": by_layer}


def ranks_of(members: Sequence[Member[Any]], module: Module) -> dict[str, Any]:
    """The fields of `RankedConfig` for layers that want a `WantedRank`: what most have, then the others."""
    ranks = {member.path: int(member.wanted.r) for member in members}
    alphas = {member.path: float(member.wanted.alpha) for member in members}
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    return {
        "target_modules": patterns.modules(list(ranks), module.paths),
        "r": rank,
        "alpha": alpha,
        "rank_pattern": {patterns.alone(path): found for path, found in ranks.items() if found != rank},
        "alpha_pattern": {patterns.alone(path): found for path, found in alphas.items() if found != alpha},
    }


def common(members: Sequence[Member[W]], needed: str, value_of: Callable[[W], T]) -> T:
    """The value that all layers want.

    Raises ConflictError where they differ, naming the first that is not as most are.
    """
    value = Counter(value_of(member.wanted) for member in members).most_common(1)[0][0]
    for member in members:
        found = value_of(member.wanted)
        if found != value:
            raise ConflictError(f"needs {needed}", member, f"{found} beside {value}")
    return value


def plain_tensors(layer: Layer, *refused: str) -> dict[str, Tensor]:
    """The tensors by suffix, alpha left out. Raises LayerError for one that has no place in PEFT."""
    tensors = layer.dump()
    tensors.pop(ALPHA, None)
    if found := next((suffix for suffix in refused if suffix in tensors), None):
        raise LayerError(f"has no place for {found}", got=found)
    return tensors


def _entries(table: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    return [(str(key), value) for key, value in cast("dict[Any, Any]", table.get(name) or {}).items()]


def _rank(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"a rank of {value}")
    return int(value)


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value
