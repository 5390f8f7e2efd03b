"""Schedules: how the strength of an adapter, or of some of its blocks, changes over the sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..changes.timing import Clock, Curve, Timing
from ..errors import LycorisError, RuleError, ScheduleError
from ..expressions import of_one_text
from .patterns import Pattern, assigned, unmet
from .rules import check_length, without_comment
from .scene import Outcome, Scene


class Track(NamedTuple):
    """The timing of the layers that any of the patterns matches; without patterns, of all layers."""

    patterns: tuple[Pattern, ...]
    timing: Timing


@dataclass(frozen=True)
class Schedule:
    """Curves over the sampling, in stages. The values of all stages are multiplied; within a stage later
    tracks win."""

    stages: tuple[tuple[Track, ...], ...] = ()

    @classmethod
    @of_one_text()
    def parse(cls, text: str, clock: Clock = "diffusion", curve: Curve | None = None) -> Schedule:
        """A schedule of one stage from the lines of a text. Blank lines and comments are ignored.

        Lines `pattern = curve` are for the blocks or layers that the patterns match, as in block rules. All
        other lines together are one curve for the rest, see `Curve.parse`; `curve` replaces it. Raises
        ScheduleError and RuleError; for a line with patterns they give its number.
        """
        check_length(text, "the schedule is")
        plain: list[str] = []
        tracks: list[Track] = []
        for number, raw in enumerate(text.splitlines(), start=1):
            code = without_comment(raw)
            line = code.strip()
            try:
                track = assigned(line)
                # Lines with patterns become spaces, so that errors in the rest name the right columns.
                plain.append((code if track is None else "").ljust(len(raw)))
                if track is None:
                    continue
                if not track.patterns:
                    raise ScheduleError("E-schedule-line-without-pattern", got=line)
                tracks.append(Track(track.patterns, Timing(Curve.parse(track.right), clock)))
            except RuleError as error:
                raise RuleError("E-schedule-line", **_in_line(number, error)) from None
            except LycorisError as error:
                raise ScheduleError("E-schedule-line", **_in_line(number, error)) from None
        rest = "\n".join(plain)
        if curve is None and rest.strip():
            curve = Curve.parse(rest)
        if curve is not None:
            tracks.insert(0, Track((), Timing(curve, clock)))
        return cls((tuple(tracks),) if tracks else ())

    def then(self, other: Schedule | None) -> Schedule:
        """The stages of both, so that their values are multiplied."""
        return Schedule(self.stages + other.stages) if other else self

    def on(self, scene: Scene) -> Outcome[tuple[Timing, ...]]:
        """The timings of each layer of an adapter, at its place in a model.

        Their values at a moment are multiplied; () is a constant strength. Raises RuleError where it takes
        too long.
        """
        scene.begin()
        timings: dict[str, tuple[Timing, ...]] = dict.fromkeys(scene.layers, ())
        for stage in self.stages:
            own: dict[str, Timing] = {}
            for patterns, timing in stage:
                for layer, named in scene.layers.items():
                    scene.check_time()
                    if not patterns or any(pattern.matches(scene, named) for pattern in patterns):
                        own[layer] = timing
            for layer, timing in own.items():
                timings[layer] += (timing,)
        patterns = [p for stage in self.stages for track in stage for p in track.patterns]
        return Outcome(timings, *unmet(dict.fromkeys(patterns), scene))

    def __bool__(self) -> bool:
        return bool(self.stages)

    def __str__(self) -> str:
        return " | ".join("; ".join(map(_shown, stage)) for stage in self.stages)


def _shown(track: Track) -> str:
    patterns = " ".join(pattern.text for pattern in track.patterns)
    return f"{patterns} = {track.timing}" if patterns else str(track.timing)


def _in_line(number: int, error: LycorisError) -> dict[str, Any]:
    """What an error says of a line, in the words of the error in that line."""
    parts = {"key": error.key, "got": error.got, "expected": error.expected, "hint": error.hint}
    return {"number": number, "fault": error, **parts}
