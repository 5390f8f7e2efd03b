"""PEFT's LoraConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.axes import DIFF_B
from ...algorithms.base import alpha_of
from ...algorithms.factored import DORA, SPARSE
from ...algorithms.lora import BIAS, DOWN, EMBEDDING_UP, MID, RESHAPE, STARTS, UP, Lora, Start
from ...errors import LayerError
from ...maths.shapes import Shape
from ...messages import phrase
from ..config import (
    BiasedConfig,
    ConfiguredLayer,
    ConflictError,
    Module,
    RankedConfig,
    Refusal,
    WantedRank,
    common,
    plain_tensors,
)
from ..fields import Fields

if TYPE_CHECKING:
    from typing_extensions import Self

SUFFIXES = {
    DOWN: "lora_A.weight",
    UP: "lora_B.weight",
    DORA: "lora_magnitude_vector",
}
"""For each suffix of a LoRA layer's tensors here, the suffix in PEFT and diffusers."""


PLAIN = ("gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights`, beside true and false, that only choose how the factors are initialised. The
base weight is not changed."""
SHIFTED: Mapping[str, str] = {
    "corda": "the start comes from the training data",
    "lora_ga": "the start comes from a gradient",
    "loftq": "the start comes with a quantised base",
    "pissa_niter_": "the start comes from a random projection, and differs each time it is computed",
}
"""Prefixes of values for which PEFT subtracts the product of the initial factors from the base weight, and
why these factors cannot be computed again. With `pissa_niter_16` and rank 16, two runs on a random 640 x 640
weight start from factors that differ by 70 percent."""


def _is_given(value: Any) -> bool:
    """Whether a table of settings is given. An empty one means the defaults."""
    return value is not False


CONVERT = (
    "Save it in PEFT with path_initial_model_for_weight_conversion, which makes a LoRA of the unchanged base"
)


@dataclass(frozen=True, kw_only=True)
class WantedLora(WantedRank):
    use_dora: bool
    lora_bias: bool
    start: Start | None


@dataclass(frozen=True, kw_only=True)
class LoraConfig(BiasedConfig[WantedLora], RankedConfig[WantedLora]):
    """With `use_rslora` the scale is alpha / sqrt(r) instead of alpha / r.

    With `init_lora_weights` "pissa" or "olora" PEFT initialises the factors from a part of the base weight
    and subtracts it from the base. The factors then belong to the reduced base; see `Lora.start`. A file that
    was converted when it was saved has true there, and is an ordinary LoRA.
    """

    peft_type: ClassVar[str] = "LORA"
    algorithm: ClassVar[type[Layer]] = Lora
    alpha_name: ClassVar[str] = "lora_alpha"
    without_effect: ClassVar[frozenset[str]] = RankedConfig.without_effect | {
        # They affect training alone; the tensors are those of any LoRA.
        *("lora_dropout", "megatron_config", "megatron_core", "runtime_config", "velora_config"),
        *("monteclora_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        # Without `use_qalora` it has no meaning.
        "qalora_group_size",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "alora_invocation_tokens": Refusal("the adapter acts only after these tokens of a text"),
        "layer_replication": Refusal("its layers are numbered in a model with repeated layers"),
        "use_qalora": Refusal("its factors act on the means of groups of inputs"),
        "use_bdlora": Refusal("its factors hold the blocks of block-diagonal matrices", _is_given),
        "arrow_config": Refusal("it chooses among several adapters for each token", _is_given),
        "kasa_config": Refusal("it takes the smallest singular values out of the base", _is_given),
    }

    init_lora_weights: bool | str = True
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    target_parameters: Sequence[str] = ()
    """Parameters that are adapted by themselves, by the ends of their paths. See `peft.parameters`."""

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return replace(
            super().read(fields),
            use_rslora=fields.flag("use_rslora", False),
            init_lora_weights=_start(fields),
            fan_in_fan_out=fields.flag("fan_in_fan_out", False),
            target_parameters=tuple(fields.texts("target_parameters")),
        )

    @property
    def start(self) -> Start | None:
        return cast("Start", self.init_lora_weights) if self.init_lora_weights in STARTS else None

    def alpha_at(self, path: str, rank: int) -> float:
        alpha = super().alpha_at(path, rank)
        if self.start is not None and rank < (asked := self.rank_at(path)):
            # With fewer rows or columns than r, the start has that lower rank, but PEFT's scale still uses r.
            return alpha * rank / (math.sqrt(asked) if self.use_rslora else asked)
        # Callers divide this by the rank, which gives alpha / sqrt(rank).
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    def options(self, algorithm: type[Layer], path: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        # On embeddings PEFT ignores such a start.
        shifted = algorithm is self.algorithm and EMBEDDING_UP not in shapes and self.start
        return {"start": self.start} if shifted else {}

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedLora]:
        tensors = named_tensors(layer)
        assert isinstance(layer, Lora)
        return tensors, wanted(tensors, layer.rank or 1, alpha_of(layer) or 0.0, layer.start)

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedLora]], module: Module) -> Self:
        members, parameters = _by_parameter(members)
        own = [member.path for member in members if member.path not in parameters]
        config = super().of(members, module)
        if parameters:
            config = replace(config, target_modules=module.targets(own) if own else [])
        return replace(
            config,
            target_parameters=parameters,
            lora_bias=common(
                members, "lora_B.bias in every layer, or in none", lambda wanted: wanted.lora_bias
            ),
            use_dora=common(members, "DoRA in every layer, or in none", lambda wanted: wanted.use_dora),
            init_lora_weights=common(members, "one start for all layers", lambda wanted: wanted.start)
            or True,
        )

    def table(self) -> dict[str, Any]:
        table = super().table()
        if self.init_lora_weights is True:
            # PEFT's default, which only training needs.
            del table["init_lora_weights"]
        if not self.target_parameters:
            del table["target_parameters"]
        return table


def _by_parameter(
    members: Sequence[ConfiguredLayer[WantedLora]],
) -> tuple[list[ConfiguredLayer[WantedLora]], list[str]]:
    """The layers, where all experts of a parameter count as one layer, and the paths of all parameters.

    Raises ConflictError where experts of one parameter differ in a value that the configuration gives once.
    """
    layers: dict[str, ConfiguredLayer[WantedLora]] = {}
    parameters: set[str] = set()
    for member in members:
        if member.on_parameter:
            parameters.add(member.path)
            if (known := layers.get(member.path)) and known.wanted != member.wanted:
                got = f"rank {member.wanted.r} beside {known.wanted.r}"
                raise ConflictError("E-peft-expert-ranks", member, got)
        layers.setdefault(member.path, member)
    return list(layers.values()), sorted(parameters)


def _start(fields: Fields) -> bool | str:
    """The value of `init_lora_weights`; true for every start that leaves the base weight as it is.

    Raises FileFormatError for a start that shifts the base weight and cannot be computed again, and for an
    unknown value.
    """
    value = fields.stated.get("init_lora_weights", True)
    if isinstance(value, bool):
        return True
    name = value.lower() if isinstance(value, str) else ""
    if name in STARTS:
        return name
    if name in PLAIN:
        return True
    why = next((why for begin, why in SHIFTED.items() if name.startswith(begin)), None)
    raise fields.error(
        "init_lora_weights",
        phrase("R-factors-belong-base-weight-was", why=why)
        if why
        else phrase("R-start-name-unknown-may-change"),
        value,
        ", ".join(["true", "false", *PLAIN, *STARTS]),
        CONVERT,
    )


def wanted(tensors: Mapping[str, Tensor], r: int, alpha: float, start: Start | None) -> WantedLora:
    """The values that a layer with these tensors, by PEFT's suffixes, needs in the configuration."""
    return WantedLora(
        r=r,
        alpha=alpha,
        use_dora=SUFFIXES[DORA] in tensors,
        lora_bias=BIAS in tensors,
        start=start,
    )


def named_tensors(layer: Layer) -> dict[str, Tensor]:
    """The tensors of a LoRA layer by PEFT's suffixes, without alpha.

    Raises LayerError for a layer of another kind, and for tensors that PEFT does not hold.
    """
    if not isinstance(layer, Lora):
        raise LayerError("E-dialect-without-kind", algorithm=layer.algorithm, got=layer.algorithm)
    tensors = plain_tensors(layer, MID, DIFF_B, RESHAPE, *SPARSE)
    if DORA in tensors:
        # PEFT's magnitude is for outputs. On an embedding (V, D) it is for the D features, here the inputs.
        if layer.magnitude_axis() != (1 if EMBEDDING_UP in tensors else 0):
            raise LayerError("E-dialect-without-input-dora", got=str(list(tensors[DORA].shape)))
        # PEFT's magnitude is (O,), or on a convolution (1, O, 1, ...), like the outputs of a batch.
        ones = tuple(1 for _ in layer.extent[2:])
        tensors[DORA] = tensors[DORA].reshape(1, -1, *ones) if ones else tensors[DORA].flatten()
    return {SUFFIXES.get(suffix, suffix): tensor for suffix, tensor in tensors.items()}
