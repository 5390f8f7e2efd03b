"""The configurations of PEFT, read from files and made for layers that are written.

Each kind of configuration (for LoRA, LoHa, OFT, ...) is a dataclass with PEFT's own names of the fields. A
configuration that is read gives what the tensors do not hold, such as alpha. One that is made for layers
holds what PEFT needs to rebuild them.
Source: the configuration classes of peft 0.21.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor

from ..algorithms import Layer
from ..algorithms.axes import ALPHA, DIFF_B, SET_BIAS
from ..algorithms.factored import DORA, SPARSE
from ..errors import LayerError
from ..maths.shapes import Shape
from ..messages import phrase
from . import patterns
from .fields import Fields

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
W = TypeVar("W", bound="Wanted")
R = TypeVar("R", bound="WantedRank")
PREFIX = "base_model.model."
"""The prefix that PEFT itself writes. A module's path follows; for image models, the path in diffusers'
model."""
BASE_BIAS = "base_layer.bias"
"""PEFT's suffix for the trained bias of an adapted layer. The tensor holds the bias itself, not its
change."""
LORA_ONLY = (DIFF_B, DORA, *SPARSE)
"""Suffixes that PEFT's kinds other than LoRA do not hold. LoRA holds the DoRA magnitude alone."""
INFERENCE = {"inference_mode": True}
"""Written in every configuration. It makes PEFT freeze the layers that it loads."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The values that one layer needs in the configuration. Each kind of configuration has its own
    subclass."""

    set_bias: bool = False
    """Whether the layer sets the values of the bias."""
    remarks: tuple[str, ...] = ()
    """How PEFT's tensors differ, in words; see `Encoded.remarks`."""
    weight: Shape = field(default=(), compare=False)
    """The shape of the weight that the layer is for; () where it is not known."""


@dataclass(frozen=True, kw_only=True)
class WantedRank(Wanted):
    """The values that one layer of a kind with ranks needs in the configuration."""

    r: int
    alpha: float
    """The layer's scale is alpha / r."""


@dataclass(frozen=True)
class ConfiguredLayer(Generic[W]):
    """A layer that a configuration is made for."""

    name: str
    """The layer's name in the file."""
    path: str
    """The layer's path in its module: the name without the prefix. For a layer on a parameter it is the
    parameter's path, which all its experts share."""
    kind: type[Config[W]]
    wanted: W
    on_parameter: bool = False
    """Whether the layer is on a parameter by itself, see `parameters`."""


@dataclass(frozen=True)
class Module:
    """The module that a configuration is made for. It is empty where the model is not known."""

    paths: Collection[str] = ()
    """The paths of all layers of the module, including layers that the adapter does not change."""
    kernels: Mapping[str, int] = field(default_factory=dict[str, int])
    """The number of values of each layer's kernel, by path: 9 for a 3x3 convolution, 1 for a linear layer."""
    ends: frozenset[str] = frozenset()
    """Ends of paths that name the adapted layers and no others of the module, as the source of the layers
    says; empty where it does not."""

    def targets(self, paths: Collection[str]) -> list[str] | str:
        """The value of `target_modules` that names these paths and no others: a list, or else one expression.

        PEFT takes the entries of a list as ends of paths. A list of `paths` would therefore also name any
        other path that ends like one of them. In that case, or without known paths, an expression is used.
        """
        if self.ends and not any(self.ends.isdisjoint(patterns.ends_of(path)) for path in paths):
            return sorted(self.ends)
        others = {end for path in self.paths for end in patterns.ends_of(path) if end != path}
        return sorted(paths) if self.paths and not others.intersection(paths) else patterns.one_of(paths)


class ConflictError(LayerError):
    """Layers that no single configuration can describe; `member` is the layer that differs from most
    others."""

    def __init__(self, code: str, member: ConfiguredLayer[Any], got: str, **values: Any) -> None:
        super().__init__(code, got=got, **values)
        self.member = member


@dataclass(frozen=True)
class Refusal:
    """Why some values of a field are refused: they give the tensors a meaning that is not implemented
    here."""

    why: str
    """The end of a sentence that begins with the field's name and value: `acts only after these tokens`."""
    matters: Callable[[Any], bool] = bool
    """Whether a value that is not null is refused. Most such fields are switches."""
    hint: str = "Use it in PEFT itself"


TOKENS = "trainable_token_indices"
"""The field that says which rows of an embedding were trained beside a layer of another kind."""
SELECTING = frozenset({"exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"})
"""Fields beside `target_modules` that say which layers PEFT adapts. The keys of the file say so too."""
PURPOSE = ("base_model_name_or_path", "revision", "task_type")
"""Fields that say what an adapter was made for. PEFT's and transformers' Auto classes need them."""
NOTES = frozenset({"peft_type", "auto_mapping", "peft_version", "inference_mode", *PURPOSE})
"""Fields that say what an adapter was made for, and by which software."""
TRANSPOSED_TENSORS = Refusal("its tensors are for transposed weights")
"""For `fan_in_fan_out`: GPT-2's layers keep their weights as (I, O)."""
MOST_RANK = 1 << 20
"""The largest rank that a configuration may give. No weight of a model has so many rows."""
KNOWN_RELEASE = (0, 21)
"""The newest release of PEFT whose fields are all known here."""
FOLLOWED = ".".join(map(str, (*KNOWN_RELEASE, 0)))
"""The release of PEFT by whose rules a configuration is written."""


@dataclass(frozen=True, kw_only=True)
class Config(ABC, Generic[W]):
    """A configuration of one kind. A module in `kinds` that defines a subclass registers it.

    Each field of PEFT's is a field here too, or is in `without_effect` or `refused`. Any other field comes
    from a newer release of PEFT or from another tool. See `check`.
    """

    peft_type: ClassVar[str]
    algorithm: ClassVar[type[Layer]]
    read_only: ClassVar[bool] = False
    """Whether layers of the algorithm are written with another kind of configuration."""
    without_effect: ClassVar[frozenset[str]] = SELECTING | NOTES
    """PEFT's further fields, which change nothing for a trained adapter."""
    refused: ClassVar[Mapping[str, Refusal]] = {}
    """PEFT's fields that are refused at some of their values."""

    path: str = ""
    """The file that it was read from."""
    target_modules: Sequence[str] | str = ()
    """The layers that PEFT adapts, see `Module.targets`. The keys of a file show which layers there are, so
    this is only read to be written again, and only where it is a list and no other field selects layers."""
    modules_to_save: Sequence[str] = ()
    """Modules whose whole values the file holds, such as a new head, by the ends of their paths."""
    trainable_token_indices: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    """The trained rows of modules, by the ends of the modules' paths; "" if only one embedding has any."""
    fan_in_fan_out: bool = False
    """Whether its linear layers are for weights that are stored as (I, O). PEFT writes the value that fits
    the last of these layers."""
    purpose: Mapping[str, str] = field(default_factory=dict[str, str])
    """The fields of `PURPOSE` that are texts."""

    # What a configuration says of layers that are read.

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """A configuration from a JSON table. Raises FileFormatError where a field cannot be followed."""
        return cls(path=fields.file)

    @classmethod
    def check(cls, fields: Fields) -> None:
        """Raise FileFormatError for a field that changes what the tensors mean in a way not computed here.

        A field that is not known is ignored, as PEFT ignores it, unless a newer release of PEFT wrote the
        file. Then a value that switches something on is refused: true, or a table or list that is not empty.
        Numbers and texts are ignored even then, because PEFT also writes them for features that are off.
        """
        known = cls.without_effect.union(each.name for each in dataclasses.fields(cls))
        newer = release(fields) > KNOWN_RELEASE
        for name, value in fields.stated.items():
            if name in cls.refused:
                refusal = cls.refused[name]
                if refusal.matters(value):
                    raise fields.error(name, refusal.why, value, phrase("R-file-without"), refusal.hint)
            elif newer and name not in known and _switches_on(value):
                raise fields.error(
                    name,
                    phrase("R-field-from-newer-release-peft"),
                    value,
                    phrase("R-fields-peft-or-before", value=".".join(map(str, KNOWN_RELEASE))),
                    phrase("R-take-field-out-file-if"),
                )

    def rank_at(self, path: str) -> int | None:
        """The rank of the layer at a path of the module; None for the kinds that have none."""
        return None

    def alpha_at(self, path: str, rank: int) -> float:
        """The alpha for which alpha / rank is PEFT's scale of the layer at a path.

        For kinds without an alpha it is the rank itself, which means a scale of 1.
        """
        return float(rank)

    def read_tensors(self, tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
        """The tensors of the layer at a path as the algorithm defines them, by its suffixes."""
        return tensors

    @property
    def sets_biases(self) -> bool:
        """Whether PEFT also trained the biases of layers that it did not adapt.

        The file then holds their values, under the names that they have in the model.
        """
        return False

    def with_biases(self, members: Sequence[ConfiguredLayer[Any]]) -> Self:
        """The configuration of a file that also holds biases of modules without a layer.

        `members` are these biases. Raises ConflictError where PEFT trains none beside this kind.
        """
        got = f"a bias beside {self.peft_type}"
        raise ConflictError("E-peft-biases-beside-kind", members[0], got)

    def options(self, algorithm: type[Layer], path: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        """Values of the algorithm's options for the layer at a path, see `reading.adapter.options_of`.

        `shapes` are the shapes of the layer's tensors, by the algorithm's suffixes.
        """
        return {}

    # What a configuration must say for layers that are written.

    @classmethod
    def check_weight(cls, weight: Shape) -> None:
        """Raise LayerError for a weight's shape for which PEFT computes the layer differently.

        () stands for an unknown weight.
        """

    @classmethod
    def check_bias(cls, layer: Layer) -> None:
        """Raise LayerError where PEFT would change the bias too, and the layer itself does not."""

    @classmethod
    @abstractmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], W]:
        """The tensors of a layer by PEFT's suffixes, and the values that the layer needs in the
        configuration.

        Raises LayerError where PEFT does not hold all of the layer.
        """

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[W]], module: Module) -> Self:
        """The configuration from which PEFT builds these layers of a module.

        Raises ConflictError where no configuration of this kind gives exactly these layers.
        """
        return cls(target_modules=module.targets([member.path for member in members]))

    def table(self) -> dict[str, Any]:
        """The configuration as the JSON table that PEFT writes."""
        # PEFT has no fields `path` and `purpose`, and sets `fan_in_fan_out` itself.
        own = {"path", "purpose", "fan_in_fan_out"}
        own |= {name for name in ("modules_to_save", TOKENS) if not getattr(self, name)}
        names = [each.name for each in dataclasses.fields(self) if each.name not in own]
        fields = {name: getattr(self, name) for name in names}
        return {"peft_type": self.peft_type, "peft_version": FOLLOWED, **INFERENCE, **fields}

    def saves(self, path: str) -> bool:
        """Whether the file holds the whole values of the module at a path, or of a module around it.

        By PEFT's rule a name is the end of a module's path, with or without a dot before it.
        """
        return any(module in self._whole for module in accumulate(path.split("."), "{}.{}".format))

    def rows_at(self, path: str) -> Sequence[int] | None:
        """The numbers of the trained rows of the module at a path; None if it has none."""
        named = self.trainable_token_indices.items()
        return next((rows for end, rows in named if path.endswith(end)), None)

    @cached_property
    def _whole(self) -> patterns.Names:
        return patterns.Names(self.modules_to_save, self.path, "modules_to_save")


@dataclass(frozen=True, kw_only=True)
class BiasedConfig(Config[W]):
    """A configuration of a kind with which PEFT can also train biases.

    `bias` says which: "none", "all" (every bias of the model), or a name such as "lora_only" (the biases of
    the adapted layers).
    """

    bias: str = "none"

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return replace(super().read(fields), bias=fields.text("bias", "none"))

    @property
    def sets_biases(self) -> bool:
        return self.bias == "all"

    def with_biases(self, members: Sequence[ConfiguredLayer[Any]]) -> Self:
        return replace(self, bias="all")

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[W]], module: Module) -> Self:
        some = any(member.wanted.set_bias for member in members)
        bias = f"{cls.peft_type.lower()}_only" if some else "none"
        return replace(super().of(members, module), bias=bias)


@dataclass(frozen=True, kw_only=True)
class RankedConfig(Config[R]):
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
    def read(cls, fields: Fields) -> Self:
        # A configuration without a kind is read as LoRA's, but may have the other kinds' name for alpha.
        other = cls.alpha_name not in fields and "alpha" in fields
        config = cls(
            path=fields.file,
            r=fields.integer("r", low=1, high=MOST_RANK),
            alpha=fields.number("alpha" if other else cls.alpha_name),
            rank_pattern=fields.integers("rank_pattern", low=1, high=MOST_RANK),
            alpha_pattern=fields.numbers("alpha_pattern"),
        )
        # Compile now, to raise the errors of invalid patterns.
        _ = config._ranks, config._alphas
        return config

    @cached_property
    def _ranks(self) -> patterns.Patterns[int]:
        return patterns.Patterns(self.rank_pattern, self.path, "rank_pattern")

    @cached_property
    def _alphas(self) -> patterns.Patterns[float]:
        return patterns.Patterns(self.alpha_pattern, self.path, "alpha_pattern")

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[R]], module: Module) -> Self:
        # The most common rank and alpha are the defaults. Other layers get patterns of their own.
        ranks = {member.path: member.wanted.r for member in members}
        alphas = {member.path: member.wanted.alpha for member in members}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        return cls(
            target_modules=module.targets(ranks),
            r=int(rank),
            alpha=float(alpha),
            rank_pattern={patterns.alone(path): value for path, value in ranks.items() if value != rank},
            alpha_pattern={patterns.alone(path): value for path, value in alphas.items() if value != alpha},
        )

    def rank_at(self, path: str) -> int:
        return self._ranks.at(path, self.r)

    def alpha_at(self, path: str, rank: int) -> float:
        return self._alphas.at(path, self.alpha)

    def table(self) -> dict[str, Any]:
        table = super().table()
        alpha = table.pop("alpha")
        by_layer = {key: _number(value) for key, value in self.alpha_pattern.items()}
        return {**table, self.alpha_name: _number(alpha), "alpha_pattern": by_layer}


def common(members: Sequence[ConfiguredLayer[W]], needed: str, value_of: Callable[[W], T]) -> T:
    """The value that all layers want.

    Raises ConflictError, with the first layer that differs from most, where layers want different ones.
    `needed` says in the error what PEFT needs: `one size of block`.
    """
    value = Counter(value_of(member.wanted) for member in members).most_common(1)[0][0]
    for member in members:
        other = value_of(member.wanted)
        if other != value:
            raise ConflictError(
                "E-peft-values-mixed",
                member,
                phrase("R-beside", other=other, value=value),
                needed=needed,
            )
    return value


def plain_tensors(layer: Layer, *refused: str) -> dict[str, Tensor]:
    """The tensors of a layer by suffix, without alpha. A bias that the layer sets gets PEFT's suffix.

    Raises LayerError for a suffix among the `refused`.
    """
    tensors = layer.dump()
    tensors.pop(ALPHA, None)
    if suffix := next((suffix for suffix in refused if suffix in tensors), None):
        raise LayerError("E-dialect-without-tensor", suffix=suffix, got=suffix)
    return {BASE_BIAS if suffix == SET_BIAS else suffix: tensor for suffix, tensor in tensors.items()}


def _switches_on(value: Any) -> bool:
    return value is True or (isinstance(value, dict | list) and bool(cast("list[Any]", value)))


def release(fields: Fields) -> tuple[int, ...]:
    """The first two numbers of the release of PEFT that wrote a configuration; () where it names none."""
    # Read only the first characters: the text comes from a file, and may be of any length.
    text = fields.text("peft_version", "")[:32]
    return tuple(int(number) for number in re.findall(r"[0-9]+", text)[:2])


def _number(value: float) -> int | float:
    # 16 and not 16.0, as PEFT writes r and lora_alpha.
    return int(value) if value.is_integer() else value
