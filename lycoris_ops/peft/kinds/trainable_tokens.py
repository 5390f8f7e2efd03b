"""PEFT's TrainableTokensConfig."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.full import ROWS_AT, SET_ROWS, Full, numbers_of
from ...errors import LayerError
from ..config import Config, ConfiguredLayer, Module, Wanted, common
from ..fields import Fields

if TYPE_CHECKING:
    from typing_extensions import Self

DELTA = "trainable_tokens_delta"
"""PEFT's name of the tensor. It holds the values of the rows, not their change."""
BESIDE = {DELTA: f"token_adapter.{DELTA}"}
"""Its name in a file of another kind."""


@dataclass(frozen=True, kw_only=True)
class WantedRows(Wanted):
    rows: tuple[int, ...]
    """The numbers of the rows, in the order of the tensor."""


@dataclass(frozen=True, kw_only=True)
class TrainableTokensConfig(Config[WantedRows]):
    """The tensors are the values of rows of a weight, such as those of new tokens."""

    peft_type: ClassVar[str] = "TRAINABLE_TOKENS"
    algorithm: ClassVar[type[Layer]] = Full
    # `kind_of` gives LnTuningConfig for `Full`; this kind is for rows alone.
    read_only: ClassVar[bool] = True
    without_effect: ClassVar[frozenset[str]] = Config.without_effect | {"init_weights"}

    token_indices: Sequence[int] = ()

    @classmethod
    def read(cls, fields: Fields) -> Self:
        rows = fields.rows("token_indices")
        return cls(path=fields.file, trainable_token_indices=rows, token_indices=rows.get("", ()))

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedRows]:
        tensors = layer.dump()
        if tensors.keys() != {SET_ROWS, ROWS_AT}:
            raise LayerError("E-dialect-set-rows-only", got=", ".join(sorted(tensors)))
        rows = tuple(map(int, numbers_of(tensors[ROWS_AT])))
        return {DELTA: tensors[SET_ROWS]}, WantedRows(rows=rows)

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedRows]], module: Module) -> Self:
        return replace(
            super().of(members, module),
            token_indices=common(members, "the same rows in every layer", lambda wanted: wanted.rows),
        )

    def table(self) -> dict[str, Any]:
        return {**super().table(), "token_indices": list(self.token_indices)}
