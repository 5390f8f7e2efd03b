"""PEFT's LoKrConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...algorithms import Layer
from ...algorithms.base import alpha_of
from ...algorithms.lokr import W1, W2, Lokr
from ...errors import LayerError
from ...maths.shapes import Shape, factorization
from ..config import ConfiguredLayer, ConflictError, Module, RankedConfig
from ..cores import WantedCore, common_core, with_core

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class WantedLokr(WantedCore):
    outer: tuple[int, int]
    """The shape (l, i) of w1."""
    inner: tuple[int, int]
    """The shape (k, j) of w2 without the kernel."""
    full: tuple[bool, bool]
    """Whether w1, and whether w2, is full rather than low-rank."""
    folded: bool
    """Whether j is inputs times kernel, so that no shape gives the number of inputs."""

    @property
    def needs_core(self) -> bool:
        # PEFT makes a core only where w2 is low-rank.
        return not self.full[1]


@dataclass(frozen=True, kw_only=True)
class LokrConfig(RankedConfig[WantedLokr]):
    """`decompose_factor` splits the numbers of outputs and of inputs, see `maths.shapes.factorization`.

    w2 is low-rank where r is below half of its larger size, else full. With `decompose_both` the same rule
    holds for w1; without it w1 is always full.
    """

    peft_type: ClassVar[str] = "LOKR"
    algorithm: ClassVar[type[Layer]] = Lokr
    without_effect: ClassVar[frozenset[str]] = RankedConfig.without_effect | {
        *("rank_dropout", "rank_dropout_scale", "module_dropout", "init_weights"),
    }

    use_effective_conv2d: bool = False
    decompose_both: bool = False
    decompose_factor: int = -1

    def read_tensors(self, tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
        """PEFT scales a layer of two full factors too. LyCORIS and `Lokr` do not, so w1 takes the scale."""
        if not {W1, W2} <= tensors.keys():
            return tensors
        rank = self.rank_at(path)
        return {**tensors, W1: tensors[W1].float() * (self.alpha_at(path, rank) / rank)}

    def options(self, algorithm: type[Layer], path: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        conv1d = algorithm is self.algorithm and len(shapes.get(W2, ())) == 3
        return {"product_of": "peft"} if conv1d else {}

    @classmethod
    def encoded(cls, layer: Layer) -> tuple[dict[str, Tensor], WantedLokr]:
        assert isinstance(layer, Lokr)
        if layer.lokr_w2 is not None and layer.lokr_w2.ndim == 3 and not layer.of_peft:
            raise LayerError("E-peft-conv1d-product", got=str(list(layer.lokr_w2.shape)))
        tensors = with_core(layer, layer.lokr_t2)
        shapes = layer.shapes
        w1 = shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
        outputs, inputs, *_ = layer.plain_shape(shapes)
        inner = (outputs // w1[0], inputs // w1[1])
        rank = layer.rank
        # Two full factors have no rank. PEFT makes a factor full where the rank is at least half of its
        # larger size, so with the largest size as the rank it makes both full.
        full = max(w1[0], w1[1], *inner)
        return tensors, WantedLokr(
            r=full if rank is None else rank,
            alpha=float(full) if rank is None else alpha_of(layer) or 0.0,
            tucker=layer.lokr_t2 is not None,
            outer=(w1[0], w1[1]),
            inner=inner,
            full=(layer.lokr_w1 is not None, layer.lokr_w2 is not None),
            folded="lokr_w2_b" in shapes and layer.lokr_t2 is None,
        )

    @classmethod
    def of(cls, members: Sequence[ConfiguredLayer[WantedLokr]], module: Module) -> Self:
        both, factor = _cut(members)
        return replace(
            super().of(members, module),
            use_effective_conv2d=common_core(members, module),
            decompose_both=both,
            decompose_factor=factor,
        )


def _cut(members: Sequence[ConfiguredLayer[WantedLokr]]) -> tuple[bool, int]:
    """The `decompose_both` and `decompose_factor` with which PEFT gives the factors of each layer the shapes
    that they have.

    Raises ConflictError where there are none.
    """
    sizes = {size for member in members for size in (*member.wanted.outer, *member.wanted.inner)}
    best: ConfiguredLayer[WantedLokr] | None = None
    # PEFT's defaults first, then the smaller factors.
    for both in (False, True):
        for factor in (-1, *sorted(sizes)):
            wrong = next((member for member in members if not _makes(member.wanted, factor, both)), None)
            if wrong is None:
                return both, factor
            best = best or wrong
    assert best is not None
    shapes = f"factors of {list(best.wanted.outer)} and {list(best.wanted.inner)}"
    raise ConflictError("E-peft-lokr-options", best, shapes)


def _makes(wanted: WantedLokr, factor: int, both: bool) -> bool:
    """Whether PEFT with these options gives a layer its factors in the wanted shapes, full or low-rank."""
    (rows, columns), (k, j) = wanted.outer, wanted.inner
    if factorization(rows * k, factor, ordered=False) != (rows, k):
        return False
    # Where j is inputs times kernel, any divisor of it may be the number of inputs.
    inputs = [size for size in range(1, j + 1) if j % size == 0] if wanted.folded else [j]
    if not any(factorization(columns * size, factor, ordered=False) == (columns, size) for size in inputs):
        return False
    # For a folded w2 the rank does not say whether PEFT makes it full: the number of inputs is not known.
    full = (not (both and wanted.r < max(rows, columns) / 2), wanted.r >= max(k, j) / 2)
    return full == wanted.full or (wanted.folded and full[0] == wanted.full[0])
