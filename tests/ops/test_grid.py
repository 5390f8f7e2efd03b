"""Grids of strengths: what each picture of a batch gets."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import lycoris_ops as lyc


def entry(name: str, strength: float = 1.0) -> lyc.Entry:
    """An adapter with two layers of a small model."""
    tensors = {
        f"{layer}.{end}": torch.ones(shape)
        for layer in ("blocks.0.proj", "blocks.1.proj")
        for end, shape in (("lora_up.weight", (2, 1)), ("lora_down.weight", (1, 2)))
    }
    return lyc.Entry(lyc.adapter_of_tensors(tensors, name=name), strength)


STACK = lyc.Stack([entry("a", 0.5), entry("b", 2.0), entry("c")])
SHAPES = {"blocks.0.proj.weight": (2, 2), "blocks.1.proj.weight": (2, 2)}


def strengths(grid: lyc.Grid) -> list[dict[tuple[str, str], float]]:
    """For each picture the strength of each adapter in each layer, added up."""
    found: list[dict[tuple[str, str], float]] = [{} for _ in range(grid.count)]
    for one in lyc.resolve(grid.stack, SHAPES).entries:
        for match in one.matches:
            assert match.where is not None and match.where.factors is not None
            for picture, factor in zip(found, match.where.factors, strict=True):
                key = (one.entry.name, match.layer)
                picture[key] = picture.get(key, 0.0) + match.strength * factor
    return found


def test_values_are_listed_or_a_ramp() -> None:
    assert lyc.parse_values("0, 0.5;1") == (0.0, 0.5, 1.0)
    for text in ("0; 0,5; 1", "0\uff0c0.5\u30011", "\uff10\uff1b\uff10\uff0c\uff15\uff1b1"):
        assert lyc.parse_values(text) == (0.0, 0.5, 1.0)
    # A comma separates wherever a number has a decimal point or an item has several commas.
    assert lyc.parse_values("0,0.5;1") == (0.0, 0.5, 1.0) and lyc.parse_values("0,1,2;3") == (
        0.0,
        1.0,
        2.0,
        3.0,
    )
    assert lyc.parse_values("\u22121, 1") == lyc.parse_values("\u20131, 1") == (-1.0, 1.0)
    assert lyc.parse_values("0\u20261 in 3") == (0.0, 0.5, 1.0)
    assert lyc.parse_values("0..1.2 in 5, 2") == (0.0, 0.3, 0.6, 0.9, 1.2, 2.0)
    assert lyc.parse_values("-1 .. 1 in 3") == (-1.0, 0.0, 1.0) and lyc.parse_values("0.7..3 in 1") == (0.7,)


@pytest.mark.parametrize(
    "text", ["a", "0..1", "0..x in 3", "nan", "1e999", "", " , ", "0..1 in 257", "0..1 in 0"]
)
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(lyc.LycorisError, match="strength"):
        lyc.parse_values(text)


def test_a_strength_takes_the_place_of_a_row_s_own() -> None:
    grid = lyc.strength_grid(STACK, lyc.strength_axis(STACK, 2, (0.0, 0.7)))
    for picture, value in zip(strengths(grid), (0.0, 0.7), strict=True):
        for (name, _), found in picture.items():
            assert found == pytest.approx({"a": 0.5, "b": value, "c": 1.0}[name])
    assert (grid.columns, grid.rows, grid.labels) == (("b 0", "b 0.7"), (), "\tb 0\tb 0.7")


def test_row_0_multiplies_all_and_a_second_axis_goes_down() -> None:
    across = lyc.strength_axis(STACK, 0, (0.0, 1.0, 2.0))
    grid = lyc.strength_grid(STACK, across, lyc.strength_axis(STACK, 3, (0.5, 3.0)))
    wanted = list(product((0.5, 3.0), (0.0, 1.0, 2.0)))
    assert grid.count == len(wanted)
    for picture, (down, step) in zip(strengths(grid), wanted, strict=True):
        for (name, _), found in picture.items():
            assert found == pytest.approx({"a": 0.5, "b": 2.0, "c": down}[name] * step)
    assert grid.labels == "\tall 0\tall 1\tall 2\nc 0.5\nc 3"


def test_blocks_have_a_factor_and_the_others_keep_theirs() -> None:
    across = lyc.strength_axis(STACK, 1, (1.0,))
    grid = lyc.strength_grid(STACK, across, lyc.block_axis(STACK, "blocks.1", (0.0, 0.25)))
    for picture, factor in zip(strengths(grid), (0.0, 0.25), strict=True):
        for (name, layer), found in picture.items():
            own = {"a": 1.0, "b": 2.0, "c": 1.0}[name]
            assert found == pytest.approx(own * (factor if layer.startswith("blocks.1") else 1.0))
    with pytest.raises(lyc.RuleError):
        lyc.block_axis(STACK, "= 3", (1.0,))


def test_one_file_at_a_time() -> None:
    across = lyc.strength_axis(STACK, 0, (1.0,))
    chosen = lyc.strength_grid(STACK, across, lyc.file_axis(STACK, (1, 3)))
    assert chosen.rows == ("a", "c")
    for picture, name in zip(strengths(chosen), ("a", "c"), strict=True):
        assert {own for (own, _), found in picture.items() if found} == {name, "b"}
    assert lyc.strength_grid(STACK, across, lyc.file_axis(STACK)).rows == ("a", "b", "c")


def test_what_makes_no_grid() -> None:
    with pytest.raises(lyc.LycorisError, match=r"no such row.*4.*1 to 3"):
        lyc.strength_axis(STACK, 4, (1.0,))
    with pytest.raises(lyc.LycorisError, match="no such row"):
        lyc.file_axis(lyc.Stack(), (1,))
    axis = lyc.strength_axis(STACK, 0, tuple(range(20)))
    with pytest.raises(lyc.LycorisError, match=r"too large.*400 pictures"):
        lyc.strength_grid(STACK, axis, axis)
    once = lyc.strength_grid(STACK, axis)
    with pytest.raises(lyc.LycorisError, match="already"):
        lyc.strength_grid(once.stack, axis)
    with pytest.raises(lyc.LycorisError, match="differs over places or pictures"):
        once.stack.check_constant("be saved")
