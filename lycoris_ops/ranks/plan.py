"""Plans: the algorithm, rank and alpha of each layer, as data to read, edit and keep."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer, declaring
from ..algorithms.planning import Planned
from ..algorithms.training import Trained
from ..errors import PlanError, unknown_name
from ..files.dtypes import WRITABLE, dtype_name
from ..files.json_text import parse_json
from ..maths.shapes import Shape, factorization
from ..messages import number_of, phrase
from ..modules.sites import Site
from .gradients import FIRM
from .probe import Probe, Probed, check_layers

KINDS = declaring(Trained)
FORM = 1
"""The version of the JSON."""


@dataclass(frozen=True)
class PlanRow:
    """The plan for one layer."""

    path: str
    algorithm: str
    shape: Shape
    """The shape of the weight."""
    rank: int | None
    """None for a layer without a rank: a LoKr with a full second factor, IA3, a norm, a full difference."""
    alpha: float | None
    """The scale times the rank, or the scale itself where there is no rank; None for a scale of 1."""
    parameters: int
    """The number of trained values."""
    gain: float | None = None
    """The expected gain, as a share of ||G||^2 of all layers of the probe (see `ranks.offers`); None where it
    is not known."""
    factor: int | None = None
    """The factor of LoKr; None for kinds without one."""
    lr: float = 1.0
    """The learning rate, as a multiple of the training's."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / (self.rank or 1)

    def start(self, probe: Probe | None = None, *, seed: int = 0) -> Layer:
        """A new float32 layer for this row, which changes nothing; it starts from the gradient of `probe`, if
        given.

        Raises PlanError where the probe does not know this layer.
        """
        start: Mapping[str, Tensor] = {}
        if probe is not None:
            start = probe.start_of(self.path, self.algorithm, self.factor, self.rank)
        kind = KINDS[self.algorithm]
        if issubclass(kind, Planned):
            return kind.started(start, self.shape, self.rank, self.scale, seed=seed, factor=self.factor)
        rank = self.rank or 1
        return kind.init(self.shape, rank, self.scale * rank, seed=seed)


@dataclass(frozen=True)
class Plan:
    """The plan of a model, layer by layer; immutable.

    `energy` is ||G||^2 of the layers that were probed. `left_out` names the layers that get nothing, and
    `full` counts the parameters of the full weights of all layers. Sizes in bytes are for a file of `dtype`.
    `probe` is in memory only: with it the layers start from the gradient, unless the plan became uniform
    because dividing its size gained no more. `refused` is the gain of the division that was refused, as a
    share of ||G||^2.
    """

    rows: tuple[PlanRow, ...]
    left_out: tuple[str, ...] = ()
    full: int = 0
    energy: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    refused: float | None = None
    probe: Probe | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for row in self.rows:
            if row.path in seen:
                raise PlanError("E-plan-rows-collide", key=row.path)
            seen.add(row.path)

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> PlanRow:
        row = next((row for row in self.rows if row.path == path), None)
        if row is None:
            raise PlanError("E-plan-layer-absent", key=path, count=len(self))
        return row

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in a file of `dtype`."""
        return self.parameters * self.dtype.itemsize

    @property
    def gain(self) -> float:
        """The gain of all layers together, as a share of ||G||^2."""
        return sum(row.gain or 0.0 for row in self.rows)

    @property
    def uniform(self) -> float | None:
        """The gain of a LoRA with one rank for all layers and as many parameters, as a share of ||G||^2.

        None where it is not known: without a probe, and for plans that have other kinds too.
        """
        if self.probe is None or not self.energy or any(row.algorithm != "lora" for row in self):
            return None
        gain = self.probe.uniform_gain(self.parameters)
        return None if gain is None else gain / self.energy

    @property
    def origin(self) -> Probe | None:
        """The probe from which the layers start; None where they start as without a plan.

        A uniform LoRA started from the gradient had the higher loss on two of the three tasks of
        docs/quality.md.
        """
        return None if self.refused is not None else self.probe

    def with_row(self, path: str, **changes: Any) -> Plan:
        """The plan with other values in one row: `algorithm`, `rank`, `factor`, `alpha` or `lr`.

        Unless alpha is given, it follows the rank, so that the scale stays. Parameters and gain are counted
        anew; without a probe the gain is not known. A layer that was left out gets a row, if the plan has its
        probe. Raises PlanError for an unknown layer and for values that it cannot have.
        """
        wrong = sorted(changes.keys() - {"algorithm", "rank", "factor", "alpha", "lr"})
        if wrong:
            raise PlanError("E-plan-value-unknown", key=path, got=", ".join(wrong))
        old = next((row for row in self.rows if row.path == path), None) or self._blank(path)
        kind = KINDS.get(changes.get("algorithm", old.algorithm))
        if kind is not None and "factor" not in kind.init_options():
            # The old factor was for another kind.
            changes.setdefault("factor", None)
        new = replace(old, **changes)
        _check_row(new)
        if "alpha" not in changes:
            new = replace(new, alpha=old.scale * (new.rank or 1))
        if "algorithm" in changes and "lr" not in changes:
            # Every kind that starts from an offer trains at LoRA's rate.
            other = KINDS[new.algorithm]
            new = replace(new, lr=1.0 if issubclass(other, Planned) else other.fresh_rate)
        known = None if self.probe is None else self.probe.gain_of(path, new.algorithm, new.factor, new.rank)
        gain = None if known is None or not self.energy else known / self.energy
        new = replace(new, parameters=count(new.start()), gain=gain)
        rows = [row for row in self.rows if row.path != path]
        order = {each.path: index for index, each in enumerate(self.rows)}
        rows.insert(order.get(path, len(rows)), new)
        return replace(self, rows=tuple(rows), left_out=tuple(p for p in self.left_out if p != path))

    def _blank(self, path: str) -> PlanRow:
        """A row for a layer that has none."""
        if self.probe is None or path not in self.probe.layers:
            raise PlanError("E-plan-layer-not-among", key=path, count=len(self))
        shape = self.probe.layers[path].shape
        scale = self.rows[0].scale if self.rows else 1.0
        return PlanRow(path=path, algorithm="lora", shape=shape, rank=1, alpha=scale, parameters=0)

    def without(self, *paths: str) -> Plan:
        """The plan without these layers."""
        for path in paths:
            _ = self[path]
        rows = tuple(row for row in self.rows if row.path not in paths)
        return replace(self, rows=rows, left_out=(*self.left_out, *paths))

    def check_model(self, sites: Mapping[str, Site] | Mapping[str, Probed]) -> None:
        """Raise PlanError unless the sites of a model hold the plan's layers, in the same shapes."""
        check_layers({row.path: row.shape for row in self.rows}, sites, "plan")

    def json(self) -> str:
        """The plan as JSON, without the probe; `of_json` gives the plan back."""
        content: dict[str, Any] = {
            "form": FORM,
            "dtype": dtype_name(self.dtype),
            "full": self.full,
            "energy": self.energy,
            "left_out": list(self.left_out),
            "refused": self.refused,
            "rows": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
        }
        return json.dumps(content, indent=1)

    @classmethod
    def of_json(cls, text: str, *, probe: Probe | None = None) -> Plan:
        """Read a plan that `json` wrote, edited or not. Raises PlanError for any other text.

        Parameters are counted anew, and the gain of a row whose size was edited is not known. alpha is read
        as it is: it does not follow an edited rank. With `probe` the layers start from the gradient again.
        """
        try:
            read: Any = parse_json(text)
            if read["form"] != FORM:
                raise PlanError("E-plan-version-unknown", got=str(read["form"]), expected=str(FORM))
            rows = tuple(_row(row) for row in read["rows"])
            plan = cls(
                rows=rows,
                left_out=tuple(map(str, read["left_out"])),
                full=int(read["full"]),
                energy=float(read["energy"]),
                dtype=WRITABLE[read["dtype"]],
                # Plans of earlier versions have none.
                refused=None if read.get("refused") is None else float(read["refused"]),
                probe=probe,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = phrase("R-nothing-called", error=error) if isinstance(error, KeyError) else str(error)
            raise PlanError("E-plan-damaged", got=problem) from error
        if probe is not None:
            plan.check_model(probe.layers)
        return plan

    def __str__(self) -> str:
        """A table with a line for each layer, and the totals."""
        head = ("layer", "kind", "rank", "alpha", "parameters", "bytes", "gain", "lr")
        lines = table((head, *(_cells(row, self.dtype) for row in self.rows)), texts=2)
        return "\n".join([*lines, "", *self._totals()])

    def verdict(self) -> str:
        """A summary of the plan in one sentence."""
        ranks = [row.rank for row in self if row.rank is not None]
        low, high = min(ranks, default=0), max(ranks, default=0)
        size = phrase("R-parameters-mb", parameters=self.parameters, nbytes=self.nbytes / 1000000.0)
        if not ranks:
            return f"{number_of(len(self), 'layer')}: {size}"
        words = f"{low if low == high else f'{low} to {high}'}{'' if self.refused is None else ', uniform'}"
        return phrase("R-rank", count=len(self), words=words, size=size)

    def _totals(self) -> list[str]:
        share = phrase("R-1-full-weights", full=self.full / self.parameters) if self.parameters else ""
        lines = [
            phrase(
                "R-parameters-mb-2",
                count=len(self),
                parameters=self.parameters,
                share=share,
                nbytes=self.nbytes / 1000000.0,
                dtype=dtype_name(self.dtype),
            )
        ]
        if self.gain:
            uniform = "" if self.uniform is None else phrase("R-uniform-rank-size", uniform=self.uniform)
            lines.append(phrase("R-captures-gradient-s-energy", gain=self.gain, uniform=uniform))
        if self.refused is not None:
            lines.append(phrase("R-uniform-started-without-plan-size", refused=self.refused))
        if self.probe is not None:
            lines.append(_measured(self.probe))
        if self.probe is not None and self.probe.left_out is not None:
            lines.append(phrase("R-not-measured", left_out=self.probe.left_out))
        if self.left_out:
            groups = _grouped(self.left_out, [row.path for row in self.rows])
            lines.append(phrase("R-left-out-3", count=len(self.left_out), groups=groups))
        return lines


def _measured(probe: Probe) -> str:
    """The number of a probe's batches, and how far they agree."""
    batches = phrase("R-measured-on", batches=probe.batches)
    if probe.agreement is None:
        return batches
    agree = phrase("R-whose-halves-agree", batches=batches, value=max(0.0, probe.agreement))
    if probe.agreement >= FIRM:
        return agree
    return phrase("R-gradient-mostly-chance-more-batches", agree=agree)


def _grouped(paths: Sequence[str], others: Sequence[str]) -> list[str]:
    """Paths in few words: paths that differ only in numbers are joined, as in `all 12 layers.*.mlp`."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(_starred(path), []).append(path)
    rest = Counter(map(_starred, others))
    words: list[str] = []
    for name, group in groups.items():
        share = (
            phrase("R-of", count=len(group), count_2=len(group) + rest[name])
            if rest[name]
            else phrase("R-all", count=len(group))
        )
        words.append(group[0] if len(group) == 1 else f"{share} {name}")
    return words


def _starred(path: str) -> str:
    """A path with `*` for each part that is a number."""
    return ".".join("*" if segment.isdecimal() else segment for segment in path.split("."))


def count(layer: Layer) -> int:
    """The number of trained values of a layer."""
    trained = layer.table.factors
    return sum(tensor.numel() for name, tensor in layer.tensors().items() if name in trained)


def _check_row(row: PlanRow) -> None:
    """Raise PlanError for values that no row has."""
    if type(row.path) is not str:
        raise PlanError("E-plan-row-without-path", got=repr(row.path))
    if row.algorithm not in KINDS:
        raise unknown_name("E-plan-kind-unknown", row.algorithm, KINDS, error=PlanError, key=row.path)
    if row.rank is not None and (type(row.rank) is not int or row.rank < 1):
        raise PlanError("E-plan-rank-not-whole", key=row.path, got=repr(row.rank))
    for name, value in (("alpha", row.alpha), ("lr", row.lr), ("gain", row.gain)):
        if value is None and name != "lr":
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise PlanError("E-plan-number-not-finite", key=row.path, name=name, got=repr(value))
    _check_sizes(row)


def _check_sizes(row: PlanRow) -> None:
    """Raise PlanError where the kind has no layer of this rank and factor on a weight of this shape."""
    kind, shape = KINDS[row.algorithm], list(row.shape)
    most = kind.most_rank(row.shape)
    if most is not None and not 1 <= (row.rank or 0) <= most:
        raise PlanError(
            "E-plan-rank-unusable",
            key=row.path,
            rank=row.rank,
            algorithm=row.algorithm,
            shape=shape,
            most=most,
        )
    if row.factor is None:
        return
    if "factor" not in kind.init_options():
        raise PlanError(
            "E-plan-factor-not-for-kind", key=row.path, algorithm=row.algorithm, factor=row.factor
        )
    valid = type(row.factor) is int and (row.factor > 0 or row.factor == -1)
    if not valid or math.prod(factorization(size, row.factor)[0] for size in row.shape[:2]) == 1:
        raise PlanError("E-plan-factor-indivisible", key=row.path, factor=f"{row.factor!r}", shape=shape)


def _row(read: Any) -> PlanRow:
    values: dict[str, Any] = {**read, "shape": tuple(map(int, read["shape"]))}
    # Plans of earlier versions have it.
    values.pop("stored", None)
    row = PlanRow(**values)
    _check_row(row)
    counted = count(row.start())
    # The row was edited, so its gain is unknown.
    return row if counted == row.parameters else replace(row, parameters=counted, gain=None)


def _cells(row: PlanRow, dtype: torch.dtype) -> tuple[str, ...]:
    kind = row.algorithm if row.factor is None else f"{row.algorithm} {row.factor}"
    return (
        row.path,
        kind,
        "-" if row.rank is None else str(row.rank),
        "-" if row.alpha is None else f"{row.alpha:g}",
        f"{row.parameters:,}",
        f"{row.parameters * dtype.itemsize:,}",
        "-" if row.gain is None else f"{row.gain:.2%}",
        f"{row.lr:g}",
    )


def table(rows: Sequence[Sequence[str]], *, texts: int) -> list[str]:
    """The lines of a table. The first `texts` columns are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
