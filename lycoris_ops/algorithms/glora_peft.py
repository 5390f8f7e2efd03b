"""GLoRA as PEFT has it: each value of the weight, and of the bias, has a factor and a summand of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..changes.forms import Additive, Dense, LowRank
from ..changes.operators import Diagonal, Sides
from ..errors import LayerError
from ..maths.shapes import Extent, Shape, flat_shape
from .base import ALPHA, SET_BIAS, Layer, field_of, shared
from .checks import agree, exactly, vector

if TYPE_CHECKING:
    from typing_extensions import Self

XD, XU, X, ZEROS = "Xd", "Xu", "X", "zeros"


def named(path: str, *parts: str) -> tuple[str, ...]:
    """The suffixes of some tensors of one of the five paths A to E."""
    return tuple(f"glora_{path}.{part}" for part in parts)


FORMS: dict[tuple[str, ...], str] = {(XD, XU): "lora", (X,): "vector", (ZEROS,): "none"}
"""The tensors of each form of a path, to the value of PEFT's `config_A_B`, `config_C` or `config_D_E`. A
constant has the tensor of a vector, see `GloraPeft.form`."""


def _beside(path: str) -> frozenset[str]:
    return frozenset(named(path, *((XD, XU, X, ZEROS) if path == "C" else (X, ZEROS))))


@dataclass(frozen=True, eq=False, kw_only=True)
class GloraPeft(Layer):
    """W' = W + W * A + B, value by value over the flattened inputs, and b' = b + b * D + E + W C.

    Each of A and B is Xd @ Xu with Xd (O, r) and Xu (r, K), or X (O, 1) for a value for each output, or X
    (1,) for one value. D and E are X (O,) or X (1,). `zeros` stands for a path that is switched off: (O, K)
    for A and B, (O,) for D and E. The layers of modules without a bias have it for C, D and E.

    C is Xd (K, r) @ Xu (r, 1), X (K, 1) or `zeros` (K, 1). It makes the change of the bias depend on the
    weight W before any change, see `beside`.

    Source: Chavan et al., "One-for-All" (2306.07967), eq. 9; formula and layout by PEFT
    (`tuners/glora/layer.py` of peft 0.21).
    """

    algorithm: ClassVar[str] = "glora_peft"
    in_comfy: ClassVar[bool] = False
    variants: ClassVar[tuple[frozenset[str], ...]] = tuple(
        frozenset(named("A", *form) + named("B", *form)) for form in FORMS
    )
    extras: ClassVar[frozenset[str]] = frozenset({ALPHA, SET_BIAS}).union(*map(_beside, "CDE"))

    glora_a_xd: Tensor | None = None
    glora_a_xu: Tensor | None = None
    glora_a_x: Tensor | None = None
    glora_a_zeros: Tensor | None = None
    glora_b_xd: Tensor | None = None
    glora_b_xu: Tensor | None = None
    glora_b_x: Tensor | None = None
    glora_b_zeros: Tensor | None = None
    glora_c_xd: Tensor | None = None
    glora_c_xu: Tensor | None = None
    glora_c_x: Tensor | None = None
    glora_c_zeros: Tensor | None = None
    glora_d_x: Tensor | None = None
    glora_d_zeros: Tensor | None = None
    glora_e_x: Tensor | None = None
    glora_e_zeros: Tensor | None = None

    @classmethod
    def form(cls, shapes: Mapping[str, Shape], path: str) -> str:
        """The form of a path as PEFT's configuration calls it; "none" also where its tensors are missing.

        Raises LayerError where tensors of two forms are there, or only some of one.
        """
        names = named(path, XD, XU, X, ZEROS)
        found = tuple(name for name in names if name in shapes)
        for parts, form in FORMS.items():
            if found == named(path, *parts):
                # One value is (1,) for any path. Vectors are (n, 1) for A, B and C, and (n,) for D and E.
                return "constant" if form == "vector" and shapes[found[0]] == (1,) else form
        if found:
            raise LayerError(
                "the tensors of a path of GLoRA are not those of one form",
                got=", ".join(found),
                expected=" or ".join(", ".join(named(path, *parts)) for parts in FORMS),
            )
        return "none"

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        rows, columns = _sizes(shapes)
        return (rows, columns)

    @classmethod
    def bias_shape(
        cls, shapes: Mapping[str, Shape], options: Mapping[str, Any] | None = None
    ) -> Extent | None:
        changes = SET_BIAS in shapes or named("D", X)[0] in shapes or cls.bias_reads_weight(shapes)
        return (_sizes(shapes)[0],) if changes else None

    @classmethod
    def bias_reads_weight(cls, shapes: Mapping[str, Shape]) -> bool:
        return cls.form(shapes, "C") != "none"

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int | None:
        return shapes[named("A", XU)[0]][0] if named("A", XU)[0] in shapes else None

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """Xu uniform (Kaiming, a = sqrt(5)), Xd zero, the bias unchanged; alpha has no meaning."""
        generator = torch.Generator().manual_seed(seed)
        rows, columns = flat_shape(shape)
        bound = columns**-0.5
        right = [torch.empty(rank, columns).uniform_(-bound, bound, generator=generator) for _ in "AB"]
        left = [torch.zeros(rows, rank) for _ in "AB"]
        return cls(glora_a_xd=left[0], glora_a_xu=right[0], glora_b_xd=left[1], glora_b_xu=right[1])

    def check_values(self) -> None:
        held = self.tensors()
        for path in "ABCDE":
            (name,) = named(path, ZEROS)
            zeros = held.get(field_of(name))
            if zeros is not None and zeros.float().any():
                raise LayerError(
                    "a path of GLoRA that is switched off holds values", key=name, expected="zeros"
                )

    def additive(self) -> tuple[Additive, ...] | None:
        return None if self.glora_a_zeros is None else ()

    @property
    def reads_weight(self) -> bool:
        return self.glora_a_xd is not None

    @classmethod
    def vectors(cls) -> frozenset[str]:
        return super().vectors() | {f"glora_{path}_x" for path in "abcde"}

    def exponents(self) -> Mapping[str, float]:
        pairs = (("glora_a_xd", "glora_a_xu"), ("glora_b_xd", "glora_b_xu"))
        return {name: power for pair in pairs for name, power in shared(self, *pair).items()}

    def sides(self, weight: Tensor) -> Sides:
        rows, columns = flat_shape(weight.shape)
        if self.glora_a_xd is not None and self.glora_a_xu is not None:
            assert self.glora_b_xd is not None and self.glora_b_xu is not None
            factors = LowRank(self.glora_a_xd, self.glora_a_xu, 1.0).dense(weight.dtype, weight.device)
            multiplied = Dense(weight.reshape(rows, columns) * factors)
            return Sides(beside=(multiplied, LowRank(self.glora_b_xd, self.glora_b_xu, 1.0)))
        assert self.glora_a_x is not None and self.glora_b_x is not None
        factor, added = (part.to(weight).flatten().expand(rows) for part in (self.glora_a_x, self.glora_b_x))
        ones = torch.ones(1, columns, dtype=weight.dtype, device=weight.device)
        return Sides(outputs=Diagonal(factor), beside=(LowRank(added.reshape(-1, 1), ones, 1.0),))

    def bias_additive(self) -> tuple[Additive, ...] | None:
        """None where C, or D and E, change the bias; `dependent_bias` has the formula."""
        return () if self.glora_d_x is None and not self.bias_reads_weight(self.shapes) else None

    def beside(self, weight: Tensor) -> GloraPeft:
        """The same layer with E + W C in place of E, and without C."""
        if not self.bias_reads_weight(self.shapes):
            return self
        flat = weight.flatten(1)
        if self.glora_c_xd is not None and self.glora_c_xu is not None:
            added = (flat @ self.glora_c_xd.to(flat)) @ self.glora_c_xu.to(flat)
        else:
            assert self.glora_c_x is not None
            added = flat @ self.glora_c_x.to(flat)
        added = added.flatten()
        if self.glora_d_x is None or self.glora_e_x is None:
            factor = torch.zeros_like(added)
        else:
            factor, added = self.glora_d_x.to(added).expand_as(added), added + self.glora_e_x.to(added)
        dropped = ("glora_c_xd", "glora_c_xu", "glora_c_x", "glora_d_zeros", "glora_e_zeros")
        return self.with_tensors({**dict.fromkeys(dropped), "glora_d_x": factor, "glora_e_x": added})

    def dependent_bias(self, bias: Tensor) -> Tensor:
        """b D + E for the bias b, or for the values that the layer sets it to first."""
        if self.bias_reads_weight(self.shapes):
            raise LayerError(
                "the change of a bias depends on the weight beside it",
                got="a GLoRA layer with C, and no weight",
                hint="Give `Match.read` the weights of the base, or take `layer.beside(weight)`",
            )
        met = bias if self.set_bias is None else self.set_bias.flatten().to(bias)
        total = met - bias
        if self.glora_d_x is not None and self.glora_e_x is not None:
            total = total + met * self.glora_d_x.to(bias) + self.glora_e_x.to(bias)
        return total

    def row_axes(self) -> Mapping[str, int]:
        """Xd and `zeros` of A and B, their X (O, 1), and the tensors of D and E of more than one value."""
        cut = {
            *("glora_a_xd", "glora_b_xd", "glora_a_zeros", "glora_b_zeros"),
            *("glora_d_zeros", "glora_e_zeros"),
        }
        for names, path in ((("glora_a_x", "glora_b_x"), "A"), (("glora_d_x", "glora_e_x"), "D")):
            if self.form(self.shapes, path) == "vector":
                cut.update(names)
        return dict.fromkeys(sorted(cut), 0)


def _sizes(shapes: Mapping[str, Shape]) -> tuple[int | None, int | None]:
    """The numbers of outputs and of flattened inputs; None where no tensor tells.

    Raises LayerError where the tensors contradict each other.
    """
    rows: list[tuple[str, int]] = []
    columns: list[tuple[str, int]] = []
    ranks: list[tuple[str, int]] = []
    forms = {path: GloraPeft.form(shapes, path) for path in "ABCDE"}
    for first, second in ("AB", "DE"):
        if forms[first] != forms[second] or (named(first, ZEROS)[0] in shapes) != (
            named(second, ZEROS)[0] in shapes
        ):
            raise LayerError(
                f"the paths {first} and {second} of GLoRA are not of one form",
                got=f"{forms[first]} and {forms[second]}",
                expected="one form",
            )
    for path, form in forms.items():
        xd, xu, x, zeros = named(path, XD, XU, X, ZEROS)
        # C is a column for the inputs, and has no rows of the weight.
        long, wide = (columns, None) if path == "C" else (rows, columns)
        if form == "lora":
            size, rank = exactly(shapes, xd, 2)
            inner, width = exactly(shapes, xu, 2)
            long.append((xd, size))
            ranks += [(xd, rank), (xu, inner)]
            if wide is None:
                agree("columns", (xu, width), ("a single column", 1))
            else:
                wide.append((xu, width))
        # PEFT has no constant for C, so that X (1,) is a wrong shape there.
        elif form == "vector" or zeros in shapes or (form == "constant" and path == "C"):
            name = zeros if zeros in shapes else x
            if path in "DE":
                (size,) = exactly(shapes, name, 1)
            else:
                size, width = exactly(shapes, name, 2)
                if wide is not None and name == zeros:
                    wide.append((name, width))
                else:
                    agree("columns", (name, width), ("a single column", 1))
            long.append((name, size))
    if SET_BIAS in shapes:
        rows.append((SET_BIAS, vector(shapes, SET_BIAS)))
    for what, found in (("output sizes", rows), ("input sizes", columns), ("ranks", ranks)):
        for other in found[1:]:
            agree(what, found[0], other)
    return (rows[0][1] if rows else None, columns[0][1] if columns else None)
