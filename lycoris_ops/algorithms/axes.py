"""The table of a kind: the axes of its tensors, and all that follows from them.

A table lists the variants of a kind: the sets of tensors that it has in files. Each line gives the axes of
a tensor:

- `O` counts the outputs of the weight and `I` its inputs; `r` is the rank (for a rotation, the size of a
  block). Any other letter is a size of the variant's own: wherever a letter stands, its size is the same.
- `1*` stands for any number of further axes of size 1, and `k*` for those of the kernel, which may also be
  folded into the axis before. `I?` and what follows may be missing.
- `<O>` is a vector: one axis may be longer than 1, whatever the number of axes.

Notes follow after commas:

- number: says how other tensors are read. Training does not change it.
- shared: serves all layers of a file, which holds it once. Training does not change it.
- bias: is added to the bias, or sets it.
- value: is what the weight or bias becomes, or a factor whose product is the change only after a start that
  no file holds is subtracted. The change is not proportional to it.
- around one: changes nothing where it is 1.
- scaled: alpha / rank scales it, though it is no factor of the product.
- twice: the formula has the factor twice.
- may be empty: may have a size of 0.
- exact: its number of axes tells the kind from others with the same suffix.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch

from ..errors import LayerError
from ..maths.shapes import Extent, Shape, shown
from .checks import agree, dimensions, exactly, matrix, vector

ALPHA = "alpha"
DIFF_B = "diff_b"
SET_BIAS = "set_bias"
BIASES = {DIFF_B: "<O>, bias", SET_BIAS: "<O>, bias, value"}
"""A change of the bias, and the values that the bias gets. The first bias of a table is added as it is."""
NOTES = frozenset(
    {"number", "shared", "bias", "value", "around one", "scaled", "twice", "may be empty", "exact"}
)
KEPT = 4096
"""The most sets of shapes for which a variant keeps the result."""
COUNTS = {"c": "numbers of dimensions", "n": "numbers of values"}
WORDS = {"O": "output sizes", "I": "input sizes", **dict.fromkeys("pqrs", "ranks"), **COUNTS}
"""What messages call the sizes of a letter."""

Each = TypeVar("Each")

Described = Mapping[str, str]
"""The axes and notes of tensors, by suffix."""


@dataclass(frozen=True)
class Join:
    """How several layers of one kind are joined into one, tensor by tensor."""

    products: tuple[tuple[str, str], ...] = ()
    """The fields of the left factor (O, r, ...) and of the right one (r, ...) of each product."""
    rows: tuple[str, ...] = ()
    """Fields of tensors that have a row for each output."""
    scaled: tuple[str, ...] = ()
    """Further fields with a row for each output, which alpha / rank scales like the product."""


class AxesOf:
    """The axes of one tensor."""

    def __init__(self, suffix: str, text: str) -> None:
        axes, *notes = (note.strip() for note in text.split(","))
        self.suffix, self.field, self.notes = suffix, field_of(suffix), frozenset(notes)
        if unknown := self.notes - NOTES:
            raise TypeError(f"{suffix} has an unknown note: {', '.join(sorted(unknown))}")
        self.vector = axes.startswith("<")
        words = axes.strip("<>()").split()
        self.tail = words.pop() if words and words[-1].endswith("*") else ""
        self.axes = tuple(word.removesuffix("?") for word in words)
        if self.tail not in ("", "1*", "k*") or any(len(axis) != 1 for axis in self.axes):
            raise TypeError(f"{suffix} has axes that cannot be read: {axes}")
        self.least = next((n for n, word in enumerate(words) if word.endswith("?")), len(words))

    @property
    def factor(self) -> bool:
        """Whether the tensor is a factor of the change."""
        return not self.notes & {"number", "shared", "bias", "value", "around one"}

    def axis(self, letter: str) -> int | None:
        return self.axes.index(letter) if letter in self.axes else None

    def met(self, shapes: Mapping[str, Shape], *, core: bool) -> Shape:
        """The sizes of the axes, those of the kernel included. Raises LayerError for other axes."""
        if self.vector:
            return (vector(shapes, self.suffix),)
        if self.tail == "1*" and len(self.axes) == 2:
            return matrix(shapes, self.suffix)
        if self.tail:
            return dimensions(shapes, self.suffix, self.least + core)
        return exactly(shapes, self.suffix, self.least)


class Variant:
    """One set of tensors that a kind has in files. The change is the sum of its products."""

    def __init__(
        self,
        products: Sequence[Described],
        extras: Sequence[AxesOf],
        where: Mapping[str, str],
        weight: str | None,
    ) -> None:
        lines_of = [[AxesOf(*line) for line in product.items()] for product in products]
        own = [line for lines in lines_of for line in lines]
        self.own = own
        """The axes of its tensors, without the extras."""
        self.names = frozenset(line.suffix for line in own)
        self.weight = weight
        self.products = tuple(
            fields for lines in lines_of if (fields := tuple(line.field for line in lines if line.factor))
        )
        """The fields of each product's factors."""
        self._lines = [line for line in own if line.axes and "bias" not in line.notes]
        self.letters = {axis for line in self._lines for axis in line.axes}
        self.where = {
            side: tuple(f.split()) for side, f in where.items() if self.letters.issuperset(f.split())
        }
        self._beside = [line for line in extras if line.axes and "bias" not in line.notes]
        self.sides = {side: self.where.get(side, (side,)) for side in "OI"}
        """The letters whose product counts the outputs and the inputs, the outer one first."""
        self.rank_at = next(
            ((line.suffix, line.axes.index("r")) for line in own if "r" in line.axes and not line.vector),
            None,
        )
        rows, columns = self.sides["O"], self.sides["I"]
        self.dropped = {
            line.field: line.axes.index("r") if "twice" in line.notes else 0
            for line in self._lines
            if line.factor and len(line.axes) == 2
            if "twice" in line.notes or (line.axes[1] in columns and line.axes[0] not in (*rows, *columns))
        }
        """The factors that rank dropout acts on, those that take the inputs, with the axis of the rank."""
        self._cores = frozenset(
            line.suffix
            for line in self._lines
            if line.tail == "k*" and not {*rows, *columns}.intersection(line.axes)
        )
        self.cores = tuple(line.field for line in own if line.suffix in self._cores)
        # Each Tucker core with the input factor that it is multiplied by first.
        self._folded = [
            (line.suffix, right.suffix)
            for line in own
            if line.suffix in self._cores
            for right in own
            if right.axes[:1] == line.axes[1:2]
        ]
        self._extents: dict[tuple[tuple[str, Shape], ...], Extent] = {}

    @property
    def absorbing(self) -> tuple[str, ...]:
        """Fields of factors that may absorb the scale, in files that have no alpha."""
        if len(self.products) != 1 or any("twice" in line.notes for line in self.own):
            return ()
        return self.products[0]

    def axes_of(self, letter: str) -> dict[str, int]:
        """The fields that have an axis of this letter, and which one; -1 in a vector."""
        lines = [*self._lines, *self._beside]
        axes = ((line, line.axis(letter)) for line in lines)
        return {line.field: -1 if line.vector else axis for line, axis in axes if axis is not None}

    def join(self) -> Join | None:
        """How layers of this variant are joined; None where they cannot be."""
        factors = [line for line in self._lines if line.factor]
        if len(factors) < len(self._lines) or not factors or self.where or self.weight is not None:
            return None
        pairs = tuple(
            (left.field, right.field)
            for left in factors
            for right in factors
            if len(left.axes) == len(right.axes) == 2 and not left.vector
            if left.axes[0] == "O" and left.axes[1] == right.axes[0] and right.axes[1] == "I"
            if "twice" not in left.notes | right.notes
        )
        rows = tuple(line.field for line in factors if line.axes[:2] == ("O", "I"))
        joined = {field for pair in pairs for field in pair}.union(rows)
        return Join(pairs, rows) if joined == {line.field for line in factors} else None

    def sizes(self, shapes: Mapping[str, Shape]) -> tuple[dict[str, tuple[str, int]], dict[str, Shape]]:
        """The size of each letter, with the suffix that has it first, and the kernel after a letter.

        The kernel of a Tucker core is that of "". Raises LayerError where sizes contradict each other.
        """
        met: dict[str, tuple[str, int]] = {}
        kernels: dict[str, tuple[str, Shape]] = {}
        for line in self._lines:
            self._measure(line, shapes, met, kernels)
        for side, letters in self.where.items():
            met[side] = (met[letters[0]][0], math.prod(met[letter][1] for letter in letters))
        for line in self._beside:
            if line.suffix in shapes:
                self._measure(line, shapes, met, kernels)
        return met, {letter: kernel for letter, (_, kernel) in kernels.items()}

    def size(self, letter: str, shapes: Mapping[str, Shape]) -> int:
        """The size of a letter."""
        return self.sizes(shapes)[0][letter][1]

    def _measure(
        self,
        line: AxesOf,
        shapes: Mapping[str, Shape],
        met: dict[str, tuple[str, int]],
        kernels: dict[str, tuple[str, Shape]],
    ) -> None:
        suffix, core = line.suffix, line.suffix in self._cores
        sizes = line.met(shapes, core=core)
        count = len(line.axes)
        folding = "" if core or line.tail != "k*" else line.axes[-1]
        for number, (letter, size) in enumerate(zip(line.axes, sizes, strict=False)):
            if letter == folding and letter in kernels:
                # Compared below, together with its kernel.
                continue
            first = met.setdefault(letter, (suffix, size))
            if first[1] != size:
                same = letter in line.axes[:number]
                agree("sides" if same else WORDS.get(letter, "sizes"), first, (suffix, size))
        if line.tail != "k*" or len(sizes) < count:
            return
        kernel = tuple(sizes[count:])
        if folding not in kernels:
            kernels[folding] = suffix, kernel
            return
        # Either of the two may have its kernel folded into the axis before it.
        other, known = kernels[folding]
        if folding:
            size, first = sizes[count - 1], met[folding]
            flats = (first[1] * math.prod(known), size * math.prod(kernel))
            agree(WORDS.get(folding, "sizes"), (other, flats[0]), (suffix, flats[1]))
            full, own = (first[1], *known), (size, *kernel)
        else:
            full, own = known, kernel
        if known and kernel and full != own:
            raise LayerError(
                "E-kernels-disagree", other=other, suffix=suffix, full=shown(full), own=shown(own)
            )
        if len(kernel) > len(known):
            kernels[folding] = suffix, kernel
            met[folding] = suffix, own[0]

    def extent(self, shapes: Mapping[str, Shape]) -> Extent:
        """The shape of the change, see `Layer.shape`."""
        # Training asks in each pass. torch.compile traces no `lru_cache`.
        if torch.compiler.is_compiling():
            return self._extent(shapes)
        key = tuple(shapes.items())
        # Read once: another thread may clear the results.
        extent = self._extents.get(key)
        if extent is None:
            extent = self._extent(shapes)
            if len(self._extents) >= KEPT:
                self._extents.clear()
            self._extents[key] = extent
        return extent

    def _extent(self, shapes: Mapping[str, Shape]) -> Extent:
        met, kernels = self.sizes(shapes)
        (outputs, last), (inputs, wide) = ((met.get(side), self.sides[side][-1]) for side in "OI")
        if outputs is None and inputs is None:
            return ()
        if outputs is not None and (self.weight == "O" or (inputs is None and "I" in self.letters)):
            return (outputs[1],)
        if outputs is None or inputs is None:
            return (outputs and outputs[1], inputs and inputs[1])
        # The kernel is that after the inputs, else that of a core, else that after the outputs.
        return (outputs[1], inputs[1], *kernels.get(wide, kernels.get("", kernels.get(last, ()))))

    def rank(self, shapes: Mapping[str, Shape]) -> int | None:
        """The size of `r`."""
        return None if self.rank_at is None else shapes[self.rank_at[0]][self.rank_at[1]]

    def work(self, shapes: Mapping[str, Shape]) -> int:
        """The values of the largest product of a Tucker core (p, r, *kernel) and its input factor (r, I)."""
        return max(
            (
                shapes[core][0] * math.prod(shapes[core][2:]) * shapes[right][1]
                for core, right in self._folded
            ),
            default=0,
        )


class Table:
    """The variants of a kind and the tensors that may accompany them.

    - `variants`: the tensors of each are multiplied. Where a variant is a sequence of such products, the
      change is their sum.
    - `alpha` says what alpha does: alpha / rank "scales" the change, or alpha "bounds" the norm of a
      rotation.
    - `where` gives O or I as a product of sizes, the outer one first: O = l * m is `{"O": "l m"}`.
    - `weight` is "O" where the change is that of a vector, the weight of a norm.

    Raises TypeError for a table that cannot be read.
    """

    def __init__(
        self,
        *variants: Described | Sequence[Described],
        alpha: Literal["scales", "bounds"] | None,
        extras: Described = BIASES,
        where: Mapping[str, str] | None = None,
        weight: Literal["O"] | None = None,
    ) -> None:
        beside = [AxesOf(*line) for line in {ALPHA: "(), number", **extras}.items()]
        self.each = tuple(
            Variant([lines] if isinstance(lines, Mapping) else lines, beside, where or {}, weight)
            for lines in variants
        )
        # The largest variant first: others may be parts of it.
        self._by_size = sorted(self.each, key=lambda variant: -len(variant.names))
        self.variants = tuple(dict.fromkeys(variant.names for variant in self.each))
        """The sets of suffixes that occur together in a file."""
        self.extras = frozenset(line.suffix for line in beside)
        """The suffixes that may accompany any of the variants."""
        own = [line for variant in self.each for line in variant.own]
        lines = list({line.suffix: line for line in (*own, *beside)}.values())
        self.suffixes = self.extras.union(*self.variants)
        """Every suffix that the kind reads, alpha included."""
        self.fields = {suffix: field_of(suffix) for suffix in self.suffixes}
        """The field of each suffix."""

        def noted(note: str, among: Sequence[AxesOf] = lines) -> tuple[str, ...]:
            return tuple(dict.fromkeys(line.field for line in among if note in line.notes))

        self.scaled_by_alpha = alpha == "scales"
        self.constrained_by_alpha = alpha == "bounds"
        self.numbers = frozenset(line.suffix for line in lines if "number" in line.notes)
        """Suffixes of tensors that say how others are read: scales, flags, shapes and places, not factors."""
        self.single = self.numbers.intersection(line.suffix for line in lines if not line.axes)
        """Those of them that hold one number alone."""
        self.shared = frozenset(line.suffix for line in lines if "shared" in line.notes)
        """Suffixes of tensors that serve all layers of a file. They have no place of their own in it."""
        self.factors = frozenset(map(field_of, self.suffixes - self.numbers - self.shared))
        """The fields of tensors that training changes."""
        self.may_be_empty = frozenset(line.suffix for line in lines if "may be empty" in line.notes)
        self.dimensions = next((len(line.axes) for line in own if "exact" in line.notes), None)
        """The number of dimensions of the only tensor, where another kind has the same suffix."""
        self.biases = noted("bias", (*beside, *own))
        """The fields that hold the change of the bias, a value for each output. The first is added as it
        is."""
        self.bias_may_be_absent = not self.biases
        """Whether the layer works without a bias, because it only multiplies an existing one."""
        self.around_one = noted("around one")
        self.twice = frozenset(noted("twice"))
        """The fields of factors that the formula has twice. Strengths act on alpha in their place."""
        if self.twice and (alpha != "scales" or noted("scaled")):
            raise TypeError("a factor that the formula has twice needs an alpha that scales")
        self.vectors = frozenset(line.field for line in lines if line.vector and "number" not in line.notes)
        """The fields that hold a value for each output, input or component: biases, magnitudes and scales.

        They are no factors, and training does not draw them towards zero."""
        self.cores = _each(variant.cores for variant in self.each)
        """Fields of Tucker cores, which factor the kernel of a convolution."""
        self.beside = tuple((line.field,) for line in beside if line.factor and not line.vector)
        """The products that may accompany any variant."""
        self.products = _each(variant.products for variant in self.each) + self.beside
        """The fields of each product's factors. A rotation has its angles as a factor, because its change is
        about proportional to them."""
        join = next((rule for variant in self.each if (rule := variant.join()) is not None), None)
        self.join = join and replace(join, scaled=noted("scaled"))
        """How layers of this kind are joined; None where they cannot be."""
        self.for_norms = weight == "O"
        """Whether the kind is for the weights of norms alone."""

    def has_names(self, names: Collection[str]) -> bool:
        """Whether these suffixes are exactly one variant, with any of the extras."""
        held = frozenset(names)
        return any(variant <= held and held - variant <= self.extras for variant in self.variants)

    def variant_of(self, shapes: Mapping[str, Shape]) -> Variant:
        """The variant of tensors with these suffixes."""
        return next(variant for variant in self._by_size if variant.names <= shapes.keys())


def _each(several: Iterable[tuple[Each, ...]]) -> tuple[Each, ...]:
    return tuple(dict.fromkeys(each for axes in several for each in axes))


def field_of(suffix: str) -> str:
    """The field that holds the tensor of a key suffix: `lora_up` for `lora_up.weight`."""
    return suffix.removesuffix(".weight").replace(".", "_").lower()
