"""How many kernels a layer in training launches, and the derivatives of the functions that save launches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.maths import scaling
from lycoris_ops.maths.dora import learned_changed, learned_extra
from lycoris_ops.maths.rotations import series, skew_symmetric
from lycoris_ops.maths.scaling import scaled
from tests.harness.launches import launches_of


@pytest.mark.parametrize("form", ["auto", "bypass"])
@pytest.mark.parametrize(
    ("options", "forward", "step"),
    [
        # The numbers of PEFT 0.21, by `python -m benchmarks.launches`.
        ({"algorithm": "lora", "rank": 8}, 4, 10),
        ({"algorithm": "lora", "rank": 8, "dora": "output"}, 16, 31),
        ({"algorithm": "lora", "rank": 8, "dora": "input"}, 16, 31),
        ({"algorithm": "loha", "rank": 8}, 9, 21),
        ({"algorithm": "lokr", "rank": 2}, 8, 18),
        ({"algorithm": "lokr", "rank": 10**6}, 7, 15),
        ({"algorithm": "oftv2", "rank": 32}, 14, 35),
        ({"algorithm": "boft_peft", "rank": 8}, 18, 37),
        ({"algorithm": "ia3"}, 2, 6),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_step_launches_no_more_than_with_peft(
    options: dict[str, Any], forward: int, step: int, form: str
) -> None:
    def adapted(base: nn.Module) -> list[nn.Parameter]:
        return list(lyc.create_lycoris(base, form=form, seed=0, **options).apply_to().parameters())

    launches = launches_of(64, "cpu", {"module": lambda base: [], "layer": adapted})
    # The module alone: one product forward, and one for the gradient of the input.
    assert launches["module"] == [1, 2]
    assert launches["layer"][0] - 1 <= forward
    assert launches["layer"][1] - 2 <= step


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 15), ({"dora": "output"}, 25)],
    ids=["lora", "dora"],
)
def test_a_pass_makes_few_calls(options: dict[str, Any], most: int) -> None:
    """Of the library's own functions: on a small layer they take longer than the products."""
    base = nn.Sequential(nn.Linear(64, 64)).requires_grad_(False)
    lyc.create_lycoris(base, **{"algorithm": "lora", "rank": 8, **options}, seed=0).apply_to()
    x, own, calls = torch.randn(64, 64, requires_grad=True), str(Path(lyc.__file__).parent), list[str]()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(own):
            calls.append(frame.f_code.co_name)

    for _ in range(2):
        base(x)
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        base(x)
    finally:
        sys.setprofile(before)
    assert 0 < len(calls) <= most, calls


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


class Linear(nn.Linear):
    """It counts its passes. By its name it is known to multiply as torch's own layer does."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        Linear.runs += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("options", "width", "limit"),
    [
        ({"algorithm": "lora", "dora": "output"}, 192, 192),
        ({"algorithm": "oft"}, 192, 192),
        ({"algorithm": "oftv2"}, 192, 192),
        ({"algorithm": "lora", "dora": "output"}, 384, 2730),
        ({"algorithm": "boft"}, 384, 2730),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_module_runs_once_where_a_rebuilt_weight_would_take_over(
    options: dict[str, Any], width: int, limit: int
) -> None:
    """The hooks for passes of many tokens are there, and hide nothing in a pass of few."""
    base = nn.Sequential(Linear(width, width)).requires_grad_(False)
    network = lyc.create_lycoris(base, **options, rank=8, seed=0).apply_to()
    assert [one.form for one in network.members.values()] == [f"bypass up to {limit} tokens, else rebuilt"]
    for tokens in (8, limit + 8, 8):
        Linear.runs = 0
        base(torch.randn(tokens, width))
        assert Linear.runs == 1, tokens


@pytest.mark.parametrize("kernel", [(), (3, 2)], ids=["linear", "conv"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("learned", [learned_extra, learned_changed], ids=["factor", "weight"])
def test_derivatives_of_dora(learned: Callable[..., Tensor], axis: int, kernel: tuple[int, ...]) -> None:
    weight, up = torch.randn(5, 4, *kernel, dtype=torch.float64), leaf(5, 2)
    down, magnitude = leaf(2, weight[0].numel()), leaf(5 if axis == 0 else 4)

    def run(magnitude: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return learned(magnitude, weight, up, down, 0.7, axis)

    direction = weight + 0.7 * (up @ down).view(weight.shape)
    other = [n for n in range(weight.ndim) if n != axis]
    factor = magnitude.view(-1, *(1 for _ in weight[0, 0].shape), *(() if axis else (1,)))
    factor = factor / direction.square().sum(other, keepdim=True).sqrt()
    wanted = factor.flatten() - 1 if learned is learned_extra else factor * direction
    torch.testing.assert_close(run(magnitude, up, down), wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(run, (magnitude, up, down))
    assert torch.autograd.gradgradcheck(run, (magnitude, up, down))


@pytest.mark.parametrize("learned", [learned_extra, learned_changed], ids=["factor", "weight"])
def test_a_direction_of_zeros_has_no_gradient(learned: Callable[..., Tensor]) -> None:
    weight, up, down, magnitude = torch.zeros(3, 4), torch.zeros(3, 2), torch.randn(2, 4), torch.ones(3)
    given = [one.requires_grad_() for one in (magnitude, up, down)]
    result = learned(magnitude, weight, up, down, 1.0, 0)
    assert torch.equal(result, -torch.ones(3) if learned is learned_extra else weight)
    result.sum().backward()
    assert all(one.grad is not None and not one.grad.any() for one in given)


@pytest.mark.parametrize("factors", [(2.0,), (1.0, 3.0), (2.0, 2.0, 2.0, 1.0)], ids=str)
def test_derivatives_of_the_series_of_a_rotation(factors: tuple[float, ...]) -> None:
    def run(triangles: Tensor) -> Tensor:
        return series(skew_symmetric(triangles, 3), factors)

    triangles = leaf(2, 3)
    with torch.no_grad():
        skew = skew_symmetric(triangles, 3)
    assert torch.equal(skew, -skew.transpose(1, 2)) and torch.equal(skew[:, 0, 1:], triangles[:, :2])
    powers = [torch.linalg.matrix_power(skew, n) * factor for n, factor in enumerate(factors, start=1)]
    torch.testing.assert_close(run(triangles), torch.stack(powers).sum(0))
    assert torch.autograd.gradcheck(run, (triangles,))
    assert torch.autograd.gradgradcheck(run, (triangles,))


@pytest.mark.parametrize("wide", [True, False], ids=["wide", "narrow"])
@pytest.mark.parametrize("bias", [False, True])
def test_derivatives_of_scaled_outputs(bias: bool, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not wide:
        # Derivatives can only be checked in float64: let it count as narrow.
        monkeypatch.setattr(scaling, "compute_dtype", lambda dtype: torch.float32)
    y, extra, own = leaf(2, 3, 2), leaf(3, 1), torch.randn(3, 1, dtype=torch.float64) if bias else None

    def run(y: Tensor, extra: Tensor) -> Tensor:
        return scaled(y, extra, own)

    torch.testing.assert_close(run(y, extra), y * (1 + extra) - (0 if own is None else own * extra))
    assert torch.autograd.gradcheck(run, (y, extra))
    assert torch.autograd.gradgradcheck(run, (y, extra))


def test_a_factor_near_one_acts_on_narrow_outputs() -> None:
    # 1.003 is 1 in bfloat16.
    y, extra = torch.full((2, 3), 1.8984375).bfloat16(), torch.full((3,), 0.003).bfloat16().requires_grad_()
    assert (scaled(y, extra, None) > y).all()
