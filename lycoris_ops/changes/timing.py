"""Values that change during sampling: curves, and the two clocks for reading them."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

from ..errors import ScheduleError
from ..messages import either

Clock = Literal["diffusion", "steps"]
Ease = Literal["linear", "ease in", "ease out", "ease in-out", "smooth"]

CLOCKS: tuple[Clock, ...] = get_args(Clock)
"""The clocks that a curve can follow."""

EASES: dict[Ease, Callable[[float], float]] = {
    "linear": lambda x: x,
    "ease in": lambda x: x * x,
    "ease out": lambda x: 1 - (1 - x) ** 2,
    "ease in-out": lambda x: (1 - math.cos(math.pi * x)) / 2,
}
"""From a share of the time between two points of a curve to a share of the way between their values.

These are the eases of ComfyUI's hook keyframes (comfy/hooks.py)."""

SAMPLES = 1000
"""A mean divides the time into this many parts. It can be off by half a part at a jump."""


class Moment(NamedTuple):
    """A moment of the sampling on both clocks, each from 0 to 1.

    `diffusion` is the share of the whole diffusion, from pure noise, in the model's unshifted time: what
    ComfyUI calls percent. A run with a denoise of 0.5 begins at 0.5. `steps` is the share of the steps that
    this run takes: step i of N, counted from 0, is at i / N.
    """

    diffusion: float
    steps: float


@dataclass(frozen=True)
class Curve:
    """A value over the time from 0 to 1, by points (time, value) in order of time.

    It is constant before the first point and after the last. Between two points it follows `ease`; `smooth`
    is the monotone cubic of Fritsch and Carlson (SIAM J. Numer. Anal. 17, 1980). Two points at one time are a
    jump, and the later one counts at that time. Raises ScheduleError for no points, a time outside 0 to 1 or
    before the previous point's, and a value that is not finite.
    """

    points: tuple[tuple[float, float], ...]
    ease: Ease = "linear"

    def __post_init__(self) -> None:
        if not self.points:
            raise ScheduleError("E-curve-without-points")
        for number, (time, value) in enumerate(self.points, 1):
            before = self.points[number - 2][0] if number > 1 else 0.0
            if not 0 <= time <= 1:
                raise ScheduleError("E-curve-time-out-of-range", number=number, got=f"{time:g}")
            if time < before:
                raise ScheduleError(
                    "E-curve-points-out-of-order", number=number, time=f"{time:g}", before=f"{before:g}"
                )
            if not math.isfinite(value):
                raise ScheduleError("E-curve-value-not-finite", number=number, got=str(value))

    @classmethod
    def parse(cls, text: str) -> Curve:
        """A curve from a text.

        A number alone is a constant. `0:0.2, 0.5:0.8, 1:1` has times before values, `0.2@0, 0.8@0.5, 1@1`
        values before times. A name of `CURVES` may be followed by numbers: `ease in 0 1`. Commas, semicolons
        and new lines separate points. Raises ScheduleError with the place in the text.
        """
        words = text.strip()
        if not words:
            raise ScheduleError("E-curve-empty", expected=EXPECTED)
        for name, shape in CURVES.items():
            match = re.match(rf"{name}(?![\w-])", words.lower())
            if match:
                return shape(_numbers(text, len(text) - len(text.lstrip()) + match.end()))
        pieces = [piece for piece in re.finditer(r"[^,;\n]+", text) if piece[0].strip()]
        if len(pieces) == 1 and _number(pieces[0][0]) is not None:
            return cls(((0.0, float(pieces[0][0])),))
        return cls(tuple(_point(piece[0], piece.start()) for piece in pieces))

    def at(self, time: float) -> float:
        """The value at a time. Times below 0 and above 1 have the values at 0 and 1."""
        after = bisect_right(self._times, time)
        if after == 0 or after == len(self.points):
            return self.points[max(after - 1, 0)][1]
        (begin, first), (end, last) = self.points[after - 1], self.points[after]
        share = (time - begin) / (end - begin)
        if self.ease == "smooth":
            return self._cubic(after - 1, share)
        return first + (last - first) * EASES[self.ease](share)

    @cached_property
    def _times(self) -> tuple[float, ...]:
        return tuple(time for time, _ in self.points)

    @cached_property
    def _slopes(self) -> tuple[float, ...]:
        """The slope at each point: the mean of its two sides, or less where the curve would overshoot."""
        # At a jump there is no slope, and the curve arrives and leaves flat.
        rises = [
            (value - before) / (time - begin) if time > begin else 0.0
            for (begin, before), (time, value) in zip(self.points, self.points[1:], strict=False)
        ]
        slopes = [
            0.0 if first * second <= 0 else (first + second) / 2
            for first, second in zip([*rises[:1], *rises], [*rises, *rises[-1:]], strict=True)
        ]
        for index, rise in enumerate(rises):
            sides = math.hypot(slopes[index], slopes[index + 1])
            # The cubic is monotone where the two slopes lie within a circle of three times the rise (section
            # 4).
            if sides > 3 * abs(rise):
                for side in (index, index + 1):
                    slopes[side] *= 3 * abs(rise) / sides
        return tuple(slopes)

    def _cubic(self, index: int, share: float) -> float:
        (begin, first), (end, last) = self.points[index], self.points[index + 1]
        width, (start, stop) = end - begin, self._slopes[index : index + 2]
        square, cube = share**2, share**3
        return (
            (2 * cube - 3 * square + 1) * first
            + (cube - 2 * square + share) * width * start
            + (3 * square - 2 * cube) * last
            + (cube - square) * width * stop
        )

    def __str__(self) -> str:
        points = ", ".join(f"{time:g}:{value:g}" for time, value in self.points)
        return points if self.ease == "linear" else f"{points} ({self.ease})"


@dataclass(frozen=True)
class Timing:
    """A curve and its clock."""

    curve: Curve
    clock: Clock = "diffusion"

    def at(self, moment: Moment) -> float:
        return self.curve.at(moment.diffusion if self.clock == "diffusion" else moment.steps)

    def __str__(self) -> str:
        return f"{self.curve} by {self.clock}"


def product(timings: Sequence[Timing], moment: Moment) -> float:
    """The product of the values of several timings at a moment; 1 for none."""
    return math.prod(timing.at(moment) for timing in timings)


def mean(timings: Sequence[Timing]) -> float:
    """The mean over time of the product of timings, as if both clocks were the same; 1 for none."""
    times = ((index + 0.5) / SAMPLES for index in range(SAMPLES))
    return math.fsum(product(timings, Moment(time, time)) for time in times) / SAMPLES if timings else 1.0


def _between(ease: Ease) -> Callable[[Sequence[float]], Curve]:
    def shape(numbers: Sequence[float]) -> Curve:
        first, last = _taken(numbers, ease, ("its first value", 0.0), ("its last value", 1.0))
        return Curve(((0.0, first), (1.0, last)), ease)

    return shape


def _constant(numbers: Sequence[float]) -> Curve:
    (value,) = _taken(numbers, "constant", ("its value", 1.0))
    return Curve(((0.0, value),))


def _pulse(numbers: Sequence[float]) -> Curve:
    begin, end = _taken(numbers, "pulse", ("the time that it begins", 0.25), ("the time that it ends", 0.75))
    return Curve(((0.0, 0.0), (begin, 0.0), (begin, 1.0), (end, 1.0), (end, 0.0)))


def _jump(name: str, before: float, after: float) -> Callable[[Sequence[float]], Curve]:
    def shape(numbers: Sequence[float]) -> Curve:
        (time,) = _taken(numbers, name, ("the time", 0.5))
        return Curve(((0.0, before), (time, before), (time, after)))

    return shape


def _taken(numbers: Sequence[float], name: str, *wanted: tuple[str, float]) -> list[float]:
    """The numbers after a shape's name, with defaults for the missing ones."""
    if len(numbers) > len(wanted):
        raise ScheduleError(
            "E-curve-too-many-numbers",
            name=name,
            got=str(len(numbers)),
            expected=" and ".join(word for word, _ in wanted),
        )
    return [*numbers, *(usual for _, usual in wanted[len(numbers) :])]


# The first match counts, so a name that begins with another comes before it.
CURVES: dict[str, Callable[[Sequence[float]], Curve]] = {
    "constant": _constant,
    "linear": _between("linear"),
    "ease in-out": _between("ease in-out"),
    "ease in": _between("ease in"),
    "ease out": _between("ease out"),
    "pulse": _pulse,
    "off after": _jump("off after", 1.0, 0.0),
    "on after": _jump("on after", 0.0, 1.0),
}
"""The curves that have names. A name may be followed by numbers: the value of a constant, the first and the
last value of linear and the eases, the start and the end of a pulse, the time of the jump of the last two."""

EXPECTED = f"points such as 0:0.2, 0.5:0.8 or 0.2@0, 0.8@0.5, or {either(list(CURVES))}"


def _number(text: str) -> float | None:
    """The finite number that a text holds; None where it holds none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbers(text: str, start: int) -> list[float]:
    """The numbers of a text from `start` on, separated by spaces, commas or semicolons."""
    numbers: list[float] = []
    for word in re.compile(r"[^\s,;]+").finditer(text, start):
        value = _number(word[0])
        if value is None:
            raise _misread(word[0], word.start(), "a number")
        numbers.append(value)
    return numbers


def _point(text: str, start: int) -> tuple[float, float]:
    column = start + len(text) - len(text.lstrip())
    for mark, order in ((":", 1), ("@", -1)):
        time, sign, value = (piece.strip() for piece in text.partition(mark))
        if sign:
            numbers = [_number(time), _number(value)][::order]
            if numbers[0] is None or numbers[1] is None:
                break
            return numbers[0], numbers[1]
    raise _misread(text.strip(), column, EXPECTED)


def _misread(text: str, column: int, expected: str) -> ScheduleError:
    return ScheduleError("E-curve-not-understood", column=column + 1, got=text, expected=expected)
