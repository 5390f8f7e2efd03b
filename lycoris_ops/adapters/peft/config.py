"""The configurations of PEFT, read from files and made for layers that are written.

Each kind of configuration (for LoRA, LoHa, OFT, ...) is a dataclass with PEFT's own names of the fields. A
configuration that is read says what no tensor of a layer tells, such as alpha. One that is made of layers
holds what PEFT needs to build these layers again.
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
LORA_ONLY = (DIFF_B, DORA, *SPARSE)
"""Suffixes that PEFT's other kinds have no place for: the DoRA magnitude is LoRA's alone, and the rest has no
place in PEFT at all."""
INFERENCE = {"inference_mode": True}
"""Written in every configuration. By it PEFT freezes the layers that it loads."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the configuration must say for one layer. Each kind of configuration has its own subclass."""


@dataclass(frozen=True, kw_only=True)
class WantedRank(Wanted):
    """What the configuration must say for one layer of a kind that has ranks."""

    r: int
    alpha: float
    """The number for which alpha / r is the layer's scale."""


@dataclass(frozen=True)
class Member(Generic[W]):
    """A layer that a configuration is made for."""

    name: str
    """The layer's name in the file."""
    path: str
    """The layer's path in its module: the name without the prefix."""
    kind: type[Config[W]]
    wanted: W


@dataclass(frozen=True)
class Module:
    """The module that a configuration is made for. It is empty where the model is not known."""

    paths: Collection[str] = ()
    """The paths of all layers of the module, also of those that the adapter does not change."""
    kernels: Mapping[str, int] = field(default_factory=dict[str, int])
    """The number of values of each layer's kernel, by path: 9 for a 3x3 convolution, 1 for a linear layer."""


class ConflictError(LayerError):
    """Layers that no single configuration can describe; `member` is the one that differs from most."""

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
    """The layers that PEFT adapts, see `patterns.modules`. This is only written, never read: the keys of a
    file tell which layers there are."""

    # What a configuration that was read says of a layer.

    @classmethod
    @abstractmethod
    def read(cls, table: Mapping[str, Any], path: str) -> Self:
        """A configuration from a JSON table; `path` is the file that holds it.

        Raises KeyError, TypeError, ValueError, AttributeError, OverflowError or re.error where the table
        cannot be followed.
        """

    def rank_at(self, path: str) -> int | None:
        """The rank of the layer at a path of the module; None for the kinds that have none."""
        return None

    def alpha_at(self, path: str, rank: int) -> float:
        """The alpha for which alpha / rank is PEFT's scale of the layer at a path.

        For kinds without an alpha it is the rank itself, which means a scale of 1.
        """
        return float(rank)

    def scale_at(self, path: str) -> float:
        """PEFT's scale of the layer at a path, for a layer whose tensors do not show its rank."""
        return 1.0

    def options(self, algorithm: type[Layer], path: str) -> dict[str, Any]:
        """Values of the algorithm's options for the layer at a path, see `adapters.options`."""
        return {}

    # What a configuration must say for layers that are written.

    @classmethod
    @abstractmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], W]:
        """The tensors of a layer by PEFT's suffixes, and what the configuration must say for the layer.

        Raises LayerError where PEFT has no place for some part of the layer.
        """

    @classmethod
    @abstractmethod
    def of(cls, members: Sequence[Member[W]], module: Module) -> Self:
        """The configuration from which PEFT builds these layers of a module.

        Raises ConflictError where no configuration of this kind gives these very layers.
        """

    def table(self) -> dict[str, Any]:
        """The configuration as the JSON table that PEFT writes."""
        # `path` is where it was read from, and no field of PEFT's.
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "path"}
        return {"peft_type": self.peft_type, **INFERENCE, **fields}


@dataclass(frozen=True, kw_only=True)
class RankedConfig(Config[W]):
    """A configuration of a kind with ranks: scale = alpha / r, where both may differ from layer to layer.

    `r` and `alpha` hold for every layer whose path matches no key of `rank_pattern` and `alpha_pattern`. The
    keys of these are regular expressions, see `patterns`.
    """

    r: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])

    alpha_name: ClassVar[str] = "alpha"
    """PEFT's name for alpha in this kind of configuration."""

    @classmethod
    def read(cls, table: Mapping[str, Any], path: str) -> Self:
        # A configuration without a kind is read as LoRA's, but may have the other kinds' name for alpha.
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
    """The fields of a `RankedConfig` for these layers.

    The rank and the alpha of most layers hold for all. The others get patterns of their own.
    """
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

    Raises ConflictError where layers want different ones, naming the first that differs from most. `needed`
    says in the error what PEFT needs: `one size of block`.
    """
    value = Counter(value_of(member.wanted) for member in members).most_common(1)[0][0]
    for member in members:
        found = value_of(member.wanted)
        if found != value:
            raise ConflictError(f"needs {needed}", member, f"{found} beside {value}")
    return value


def plain_tensors(layer: Layer, *refused: str) -> dict[str, Tensor]:
    """The tensors of a layer by suffix, without alpha. Raises LayerError for a suffix among the `refused`."""
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
    # A whole number without a fraction, like PEFT's own r and lora_alpha.
    return int(value) if value.is_integer() else value
