"""Curves of strengths: from a link of the host, and from a text for the front end to draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...lycoris_ops import Curve, LycorisError, Schedule, ScheduleError

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


def drawn(text: str) -> dict[str, Any]:
    """The curves of a schedule's text as points to draw, with their names; or the error in words."""
    try:
        schedule = Schedule.parse(text)
    except LycorisError as error:
        return {"error": str(error)}
    return {
        "curves": [
            {
                "name": " ".join(pattern.text for pattern in track.patterns),
                "values": [track.timing.curve.at(step / SAMPLES) for step in range(SAMPLES + 1)],
            }
            for stage in schedule.stages
            for track in stage
        ]
    }
