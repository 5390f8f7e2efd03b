"""Sizes of adapters, as values that planning, resizing and extraction take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, cast

import torch

from ..errors import PlanError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
"""Bytes of each unit of a budget. MB is a million bytes, as disks count, and MiB is 2^20."""


@dataclass(frozen=True)
class Rank:
    """This rank for every layer, or the layer's highest possible rank if that is lower."""

    rank: int

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise PlanError("E-size-rank-unusable", got=repr(self.rank))


@dataclass(frozen=True)
class Energy:
    """The smallest adapter, to within one rank, that gains this share of what full weights would gain.

    The share is over all layers together, so layers that gain more get more parameters.
    """

    share: float

    def __post_init__(self) -> None:
        if not _is_number(self.share) or not 0 < self.share <= 1:
            raise PlanError("E-size-energy-out-of-range", got=repr(self.share))


@dataclass(frozen=True)
class Ratio:
    """At most the number of parameters in the full weights of the layers, divided by `ratio`."""

    ratio: float

    def __post_init__(self) -> None:
        if not _is_number(self.ratio) or not 1 <= self.ratio < math.inf:
            raise PlanError("E-size-ratio-out-of-range", got=repr(self.ratio))


@dataclass(frozen=True)
class Budget:
    """At most so many bytes, as a number or a text ("50MB", "48 MiB"), or at most so many parameters.

    Bytes are counted in the file's `dtype`, bfloat16 unless given.
    """

    size: int | str | None = None
    parameters: int | None = field(default=None, kw_only=True)
    dtype: torch.dtype = field(default=torch.bfloat16, kw_only=True)

    def __post_init__(self) -> None:
        if (self.size is None) == (self.parameters is None):
            raise PlanError("E-size-budget-ambiguous", got="both" if self.size is not None else "neither")
        if not self.dtype.is_floating_point:
            raise PlanError("E-budget-dtype-not-floating", got=str(self.dtype))
        if self.most < 1:
            got = self.parameters if self.size is None else self.size
            raise PlanError("E-budget-below-one-parameter", got=repr(got))

    @property
    def most(self) -> int:
        """The largest number of parameters."""
        if self.parameters is not None:
            return _integer(self.parameters)
        return bytes_of(cast("int | str", self.size)) // self.dtype.itemsize


Size = Rank | Energy | Ratio | Budget | Literal["auto"]
"""The sizes that a caller can ask for. "auto" stops at the knee of the gain: where the next parameter would
gain less than the average parameter of the full weights."""


TEXTS = "auto, 50MB, 2000000, rank 16, 90% or 1/100"
"""Examples of the texts that `parse_size` reads."""


def parse_size(text: str) -> Size:
    """A size in words, as a person writes it in a settings file or a node.

    `auto`; `50MB` or `48 MiB`, a budget in bytes of bfloat16; `2000000` or `2_000_000 parameters`; `rank 16`;
    `90%`, a share of the energy; `1/100`, a share of the full weights. Raises PlanError for other texts and
    for values out of their range.
    """
    try:
        return _size_of(text.strip().lower())
    except PlanError as error:
        error.within(key="size").values.update(got=text, expected=TEXTS)
        raise
    except (OverflowError, ValueError) as error:
        raise PlanError("E-number-too-large", key="size", got=text, expected=TEXTS) from error


def _size_of(words: str) -> Size:
    number = r"(\d[\d_]*(?:\.\d+)?)"
    if words == "auto":
        return "auto"
    if match := re.fullmatch(r"rank\s*(\d+)", words):
        return Rank(int(match[1]))
    if match := re.fullmatch(rf"{number}\s*%", words):
        return Energy(float(match[1]) / 100)
    if match := re.fullmatch(rf"1\s*/\s*{number}", words):
        return Ratio(float(match[1]))
    if match := re.fullmatch(r"(\d[\d_]*)(\s*parameters)?", words):
        return Budget(parameters=int(match[1].replace("_", "")))
    if re.fullmatch(rf"{number}\s*[a-z]+", words):
        return Budget(words)
    raise PlanError("E-size-not-understood")


def check_size(size: object) -> Size:
    """Return `size` if it is a size. Raises PlanError otherwise, with a hint for a bare number."""
    if isinstance(size, (Rank, Energy, Ratio, Budget)) or size == "auto":
        return cast("Size", size)
    if type(size) is int:
        raise PlanError("E-size-a-bare-number", got=size)
    raise PlanError("E-size-not-a-size", got=repr(size))


def bytes_of(size: int | str) -> int:
    """The bytes that a number or a text such as "50MB" means. Raises PlanError for others."""
    if not isinstance(size, str):
        return _integer(size)
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", size)
    unit = UNITS.get((match[2] or "B").upper()) if match else None
    if not match or unit is None:
        raise PlanError("E-size-not-bytes", got=repr(size))
    return int(float(match[1].replace("_", "")) * unit)


def parameters_of(size: Budget | Ratio, full: int) -> int:
    """The most parameters for layers whose full weights have `full` values."""
    return size.most if isinstance(size, Budget) else int(full / size.ratio)


def _integer(number: object) -> int:
    if type(number) is not int:
        raise PlanError("E-size-not-whole", got=repr(number))
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
