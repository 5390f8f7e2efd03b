"""PEFT's IA3Config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.ia3 import Ia3
from ...errors import LayerError
from ...maths.shapes import Shape
from .. import patterns
from ..config import (
    LORA_ONLY,
    Config,
    ConfiguredLayer,
    Module,
    Wanted,
    plain_tensors,
)
from ..fields import Fields

if TYPE_CHECKING:
    from typing_extensions import Self


ONE_ADDED = "1 + w written in place of w for {count} ia3 layer{s}"


@dataclass(frozen=True, kw_only=True)
class WantedIa3(Wanted):
    feedforward: bool
    """Whether the factors scale the layer's inputs, not its outputs."""


@dataclass(frozen=True, kw_only=True)
class Ia3Config(Config[WantedIa3]):
    """`feedforward_modules` names the layers whose inputs are scaled, in the same form as
    `target_modules`."""

    peft_type: ClassVar[str] = "IA3"
    algorithm: ClassVar[type[Layer]] = Ia3
    without_effect: ClassVar[frozenset[str]] = Config.without_effect | {"init_ia3_weights"}

    feedforward_modules: Sequence[str] | str = ()

    @classmethod
    def read(cls, fields: Fields) -> Self:
        config = cls(
            path=fields.file,
            feedforward_modules=fields.texts("feedforward_modules"),
            fan_in_fan_out=fields.flag("fan_in_fan_out", False),
        )
        # Compile now, to raise the error of an invalid expression.
        _ = config._fed
        return config

    @cached_property
    def _fed(self) -> patterns.Names:
        return patterns.Names(self.feedforward_modules, self.path, "feedforward_modules")

    def options(self, algorithm: type[Layer], path: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        if algorithm is not self.algorithm:
            return {}
        return {"feedforward": path in self._fed}

    @classmethod
    def check_bias(cls, layer: Layer) -> None:
        assert isinstance(layer, Ia3)
        if layer.ia3_l is None and not layer.of_inputs:
            raise LayerError("E-peft-ia3-bias")

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedIa3]:
        assert isinstance(layer, Ia3)
        remarks = () if layer.ia3_l is not None else (ONE_ADDED,)
        wanted = WantedIa3(feedforward=layer.of_inputs, remarks=remarks)
        return plain_tensors(layer.by_factor(), *LORA_ONLY), wanted

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedIa3]], module: Module) -> Self:
        paths = [member.path for member in members]
        fed = [member.path for member in members if member.wanted.feedforward]
        # Both fields get the same form: if both are lists, PEFT checks that one contains the other.
        module = replace(module, ends=frozenset())
        targets, inputs = (module.targets(some) for some in (paths, fed))
        if isinstance(targets, str) or isinstance(inputs, str):
            targets, inputs = patterns.one_of(paths), patterns.one_of(fed)
        return cls(target_modules=targets, feedforward_modules=inputs)
