"""Curves of strengths: from a link of the host, and from a text for the front end to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...lycoris_ops import Curve, Schedule, ScheduleError

SAMPLES = 96
"""The number of intervals that are drawn: a node is a few hundred pixels wide."""
EASES: Mapping[str, Any] = {"linear": "linear", "monotone_cubic": "smooth"}
"""The host's names of interpolations to ours."""


def wired(value: Any) -> Curve:
    """The curve of a CURVE link: points with an interpolation, or a plain list of points.

    Raises ScheduleError for anything else.
    """
    points, ease = getattr(value, "points", value), "monotone_cubic"
    if type(value).__name__ == "LinearCurve":
        ease = "linear"
    if isinstance(value, Mapping):
        points, ease = value.get("points"), value.get("interpolation", ease)
    try:
        points_of_curve = tuple(
            sorted(((float(time), float(height)) for time, height in points or ()), key=lambda p: p[0])
        )
    except (TypeError, ValueError):
        points_of_curve = None
    if points_of_curve is None or ease not in EASES:
        raise ScheduleError("E-curve-unreadable", got=type(value).__name__)
    return Curve(points_of_curve, EASES[ease])


@dataclass(frozen=True)
class DrawnCurve:
    name: str
    values: Sequence[float]
    """At evenly spaced times from 0 to 1."""


@dataclass(frozen=True)
class DrawnCurves:
    curves: Sequence[DrawnCurve]


def drawn(text: str) -> DrawnCurves:
    """The curves of a schedule's text as points to draw.

    Raises LycorisError for a text that is no schedule.
    """
    return DrawnCurves(
        [
            DrawnCurve(
                " ".join(pattern.text for pattern in track.patterns),
                [track.timing.curve.at(step / SAMPLES) for step in range(SAMPLES + 1)],
            )
            for stage in Schedule.parse(text).stages
            for track in stage
        ]
    )
