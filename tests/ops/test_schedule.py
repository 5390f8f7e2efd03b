"""Schedules: curves over the sampling, lines that give them to blocks, and what a bypass makes of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from layers import load
from safetensors.torch import save_file
from torch import nn

import lycoris_ops as lyc
from lycoris_ops.changes.timing import Timing, mean
from lycoris_ops.names.blocks import Blocks
from lycoris_ops.names.targets import Targets
from lycoris_ops.rules.scene import Scene

STEPS = [(0.0, 0.2), (0.5, 0.8), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("0:0.2, 0.5:0.8, 1:1", STEPS),
        ("0.2@0, 0.8@0.5, 1@1", STEPS),
        (" 0 : 0.2 ; 0.8 @ .5 \n 1:1e0, ", STEPS),
        ("0.7", [(0, 0.7)]),
        (" -1.5\n", [(0, -1.5)]),
        ("constant", [(0, 1)]),
        ("Constant 0.3", [(0, 0.3)]),
        ("linear", [(0, 0), (1, 1)]),
        ("linear 1, 0.5", [(0, 1), (1, 0.5)]),
        ("pulse 0.2 0.6", [(0, 0), (0.2, 0), (0.2, 1), (0.6, 1), (0.6, 0)]),
        ("off after", [(0, 1), (0.5, 1), (0.5, 0)]),
        ("on after 0.25", [(0, 0), (0.25, 0), (0.25, 1)]),
    ],
)
def test_texts_of_curves(text: str, points: list[tuple[float, float]]) -> None:
    curve = lyc.Curve.parse(text)
    assert curve.points == tuple(points) and curve.ease == "linear"
    assert lyc.Curve.parse(str(curve)) == curve


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("0:0, x:1", 6, "x:1"),
        ("0:0,\n 0.5", 7, "0.5"),
        ("0:1:2", 1, "0:1:2"),
        ("0:nan", 1, "0:nan"),
        ("wobble 1", 1, "wobble 1"),
        ("  ease in 0 up", 13, "up"),
        ("ease into", 1, "ease into"),
    ],
)
def test_a_text_that_is_no_curve_is_refused_with_its_place(text: str, place: int, word: str) -> None:
    with pytest.raises(lyc.ScheduleError, match=rf"at character {place}\b") as caught:
        lyc.Curve.parse(text)
    assert caught.value.got == word and text[place - 1 :].startswith(word)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (" , ;", "no points"),
        ("0:0, 1.5:1", "time of point 2 .* outside 0 to 1"),
        ("0:0, 0.6:1, 0.5:1", "point 3 .* before the previous point"),
        ("constant 1 2", "too many numbers"),
        ("pulse 0.7 0.3", "point 4 .* before the previous"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(lyc.ScheduleError, match=words):
        lyc.Curve.parse(text)


def test_the_place_in_a_text_of_several_lines_is_that_in_the_text() -> None:
    text = "# a comment\nmid = 0:1\n 0:1,  # more\n  0.5:x"
    with pytest.raises(lyc.ScheduleError, match=f"at character {text.index('0.5:x') + 1} "):
        lyc.Schedule.parse(text)
    assert (
        str(lyc.Schedule.parse(text.replace("x", "2"))) == "0:1, 0.5:2 by diffusion; mid = 0:1 by diffusion"
    )


def test_a_number_sign_in_an_expression_begins_no_comment() -> None:
    schedule = lyc.Schedule.parse("/attn#2/ = linear # from 0 to 1")
    assert [track.patterns[0].text for (track,) in schedule.stages] == ["/attn#2/"]


def test_values_between_points_and_beyond_them() -> None:
    curve = lyc.Curve.parse("0.2:1, 0.6:3, 0.6:-1, 0.8:0")
    wanted = {-1: 1, 0: 1, 0.2: 1, 0.3: 1.5, 0.6: -1, 0.7: -0.5, 0.8: 0, 1: 0, 2: 0}
    for time, value in wanted.items():
        assert curve.at(time) == pytest.approx(value, abs=1e-12)
    assert curve.at(math.nextafter(0.6, 0)) == pytest.approx(3)
    # x^2, x^2 reversed, and half a cosine, each from 2 down to 1.
    quarters = {"ease in": 1.9375, "ease out": 1.5625, "ease in-out": 1.5 + math.sqrt(0.125)}
    for name, value in quarters.items():
        eased = lyc.Curve.parse(f"{name} 2 1")
        assert eased.at(0.25) == pytest.approx(value, abs=1e-12)
        assert (eased.at(0), eased.at(1)) == (2, 1)
        assert eased.at(0.5) == pytest.approx({"ease in": 1.75, "ease out": 1.25}.get(name, 1.5))


def test_a_smooth_curve_passes_its_points_without_overshooting() -> None:
    peak = lyc.Curve(((0, 0), (0.5, 1), (1, 0)), "smooth")
    for share in (0.0, 0.2, 0.5, 0.9):
        # The cubic with the chord's slope at its start, and slope 0 at its end.
        wanted = share + share**2 - share**3
        assert peak.at(share / 2) == pytest.approx(wanted) == pytest.approx(peak.at(1 - share / 2))
    line = lyc.Curve(((0, 1), (0.3, 0.7), (1, 0)), "smooth")
    assert all(line.at(n / 20) == pytest.approx(1 - n / 20) for n in range(21))

    for _ in range(20):
        times = [0.0, *torch.rand(5, dtype=torch.float64).sort().values.tolist(), 1.0]
        values = torch.randn(7, dtype=torch.float64).pow(3).tolist()
        curve = lyc.Curve(tuple(zip(times, values, strict=True)), "smooth")
        assert [curve.at(time) for time in times] == pytest.approx(values)
        for (begin, first), (end, last) in itertools.pairwise(curve.points):
            inside = [curve.at(begin + (end - begin) * n / 50) for n in range(50)] + [last]
            way = math.copysign(1.0, last - first)
            assert all((two - one) * way > -1e-9 for one, two in itertools.pairwise(inside))


def test_the_mean_is_that_of_the_product() -> None:
    def timings(*texts: str) -> list[Timing]:
        return [Timing(lyc.Curve.parse(text)) for text in texts]

    assert mean([]) == 1
    assert mean(timings("linear")) == pytest.approx(1 / 2, abs=1e-6)
    assert mean(timings("linear", "linear")) == pytest.approx(1 / 3, abs=1e-6)
    assert mean(timings("ease in-out 1 0", "2")) == pytest.approx(1, abs=1e-6)
    assert mean(timings("pulse 0.1 0.35")) == pytest.approx(0.25, abs=1 / 1000)


PATHS = ("input_blocks.4.0.out_layers.3", "middle_block.0.in_layers.2", "output_blocks.5.1.proj_in")
TARGETS = Targets({f"diffusion_model.{path}.weight": (4, 4) for path in PATHS})
BLOCKS = Blocks(TARGETS)
SCENE = Scene(BLOCKS, {one.path: BLOCKS.of(one) for one in TARGETS.all})


def at(schedule: lyc.Schedule, diffusion: float, steps: float = 0.0) -> list[float]:
    """The values of the layers of input, middle and output at a moment."""
    found = schedule.on(SCENE)
    moment = lyc.Moment(diffusion, steps)
    return [math.prod(t.at(moment) for t in found.of[path]) for path in SCENE.layers]


def test_lines_are_for_the_layers_that_their_patterns_match() -> None:
    text = """
        0:1        # the rest, over two lines
        1:0
        out.* mid = off after 0.5
        OUT05 = constant 3
        double.7 = 0.5
    """
    one = lyc.Schedule.parse(text)
    assert at(one, 0.25) == [0.75, 1, 3] and at(one, 0.75) == [0.25, 0, 3]
    assert one.on(SCENE).idle == ("double.7: the model has nothing of that name",)
    # A curve given beside the text replaces the text's own for the rest. A second stage multiplies the first.
    given = lyc.Schedule.parse(text, "steps", lyc.Curve.parse("linear"))
    assert at(given, 0.9, 0.25) == [0.25, 1, 3]
    assert at(one.then(given), 0.75, 0.25) == [0.25 * 0.25, 0, 9]
    # Without a curve for the rest its strength is constant.
    assert at(lyc.Schedule.parse("mid = linear"), 0.5) == [1, 0.5, 1]
    # A = within a regular expression is a part of it, as in block rules.
    assert at(lyc.Schedule.parse("/middle|a=b|input/ = linear"), 0.5) == [0.5, 0.5, 1]
    empty = lyc.Schedule.parse("\n# nothing\n")
    assert not empty and at(empty, 0.5) == [1, 1, 1]


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("out.* = 0:0, up", lyc.ScheduleError, "line 3 .* at character 7"),
        ("= 0:0", lyc.ScheduleError, "line 3 .* has no pattern"),
        ("/(/ = 1", lyc.RuleError, "line 3 "),
        ("/a=b/", lyc.ScheduleError, "line 3 "),
    ],
)
def test_a_line_that_is_not_understood_is_refused_with_its_number(
    line: str, error: type[lyc.LycorisError], words: str
) -> None:
    with pytest.raises(error, match=words):
        lyc.Schedule.parse(f"1\n\n{line}\n")


def test_a_bypass_follows_its_timings_on_both_clocks() -> None:
    """At each moment the output is that of the weight patched at strength times curve, in float64."""
    module = nn.Linear(18, 12, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(3, 18, dtype=torch.float64)
    one, other, dependent = load("lora", "linear"), load("loha", "linear"), load("oft", "linear")
    fade, late = lyc.Curve.parse("linear 1 -1"), lyc.Curve.parse("on after 0.5")
    timings = ((Timing(fade), Timing(late, "steps")), (Timing(late, "steps"),))
    geometry = lyc.geometry_of(module)
    assert isinstance(geometry, lyc.Geometry)
    plan = lyc.BypassPlan.build(
        geometry,
        [
            lyc.Slot(lyc.Part(one), 0.8, timings[0]),
            (other, 0.3),
            lyc.Slot(lyc.Part(dependent), -0.6, timings[1]),
        ],
    )
    assert plan.timed
    hook = lyc.Bypass(module, plan).attach()
    values = {(0.0, 0.0): (0, 0), (0.1, 0.7): (0.8, 1), (0.5, 0.5): (0, 1), (1.0, 0.9): (-1, 1)}
    for moment, (first, last) in values.items():
        hook.strengths = plan.strengths_at(lyc.Moment(*moment))
        patched = module.weight.clone()
        lyc.patch_(patched, [(one, 0.8 * first), (other, 0.3), (dependent, -0.6 * last)])
        wanted = nn.functional.linear(x, patched, module.bias)
        # Operators act on W x without the bias, as in the patched weight.
        torch.testing.assert_close(module(x), wanted, rtol=1e-12, atol=1e-12)


def test_what_makes_one_file_refuses_a_schedule(tmp_path: Path) -> None:
    held = lyc.Adapter.of({"lora_unet_a": load("lora", "linear")}, name="held")
    stack = lyc.Stack([lyc.Entry(held)]).with_schedule(lyc.Schedule.parse("linear"))
    base = tmp_path / "base.safetensors"
    save_file({"model.diffusion_model.a.weight": torch.zeros(12, 18)}, base)
    (entry,) = stack
    for refused in (
        lambda: lyc.merge_checkpoint(base, stack, tmp_path / "out.safetensors"),
        lambda: lyc.weighted(entry),
        lambda: lyc.merge_adapters(stack),
    ):
        with pytest.raises(lyc.LycorisError, match="follows a schedule cannot") as caught:
            refused()
        assert "held" in str(caught.value) and "0:0, 1:1 by diffusion" in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()
