"""A weight that cannot be patched, for lack of memory or because of its device, stays as it was."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from layers import FEW, MIXED, WEIGHTS, base, home, load
from path_cases import FORMS, in_small_parts
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.algorithms import Layer
from lycoris_ops.maths import scratch
from lycoris_ops.patch import registry
from tests.harness.allocations import MemoryRunsOut


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain torch patch in small parts, so that memory can run out in the middle of a weight."""
    monkeypatch.setattr(registry, "PATHS", tuple(path for path in registry.PATHS if path.name == "torch"))
    in_small_parts(monkeypatch)


def halved(layer: Layer) -> Layer:
    """The layer with factors in 16 bits, as most files hold them."""
    values = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    return dataclasses.replace(
        layer,
        **{
            name: value.half()
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        },
    )


@pytest.mark.parametrize(
    ("kind", "weight", "dtype"),
    [(*case, torch.bfloat16) for case in MIXED]
    + [(*case, torch.float32) for case in FEW if case[1] == "linear-odd"],
)
def test_a_weight_is_patched_wholly_or_not_at_all(
    kind: str, weight: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [(load(kind, weight), 0.7), (halved(load(kind, weight)), -0.3)]
    check(base(weight, dtype), layers, monkeypatch)


@pytest.mark.parametrize("kind", [*dict(FORMS["all"]), "oft"])
def test_rows_of_a_weight_are_patched_together_or_not_at_all(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = WEIGHTS[home(kind)][0]
    layers = [(lyc.Part(load(kind, home(kind)), (n * size, (n + 1) * size)), 0.5 + n) for n in range(3)]
    check(torch.cat([base(home(kind), torch.bfloat16)] * 3), layers, monkeypatch)


def check(before: Tensor, layers: list[tuple[Any, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory run out at the first allocation while a plan is applied, then at the second, and so on.

    After each failure the weight must be unchanged, bit by bit. The last attempt has enough memory, and
    succeeds.
    """
    plan = lyc.PatchPlan.build(before.shape, "cpu", layers)
    done, at = False, 0
    while not done:
        at += 1
        found = before.clone()
        # A buffer that is kept from the last attempt would need no allocation.
        scratch.forget()
        with MemoryRunsOut(at):
            try:
                plan.apply_(found, plan.tensors, plan.strengths)
                done = True
            except torch.cuda.OutOfMemoryError as error:
                assert torch.equal(found, before), f"half patched at allocation {at}: {error}"
    assert not torch.equal(found, before)


@pytest.mark.parametrize("kind", ["lora", "loha", "lora-dora-out", "full"])
def test_a_weight_without_data_is_refused_by_its_device(kind: str) -> None:
    weight = torch.empty(WEIGHTS["linear"], device="meta")
    with pytest.raises(lyc.LayerError, match=r"no path can patch.*float32 on meta.*for cpu or cuda"):
        lyc.patch_(weight, [(load(kind, "linear"), 1.0)])
