"""A bypass under torch.compile: changing it compiles nothing again, and it gives the values of plain torch.

Graphs are counted by torch's own counters.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bypass_cases import MODULES, Case, hook, layer
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lycoris_ops as lyc
from lycoris_ops import Mask, Moment, Places, Where
from lycoris_ops.changes.timing import Curve, Timing

STACKS = {
    **{kind: (kind,) for kind in ("lora", "lokr-full-low", "lora-dora-out")},
    "mixed": ("lora", "oft", "lora-dora-out", "loha"),
}
CASES = {"linear": Case((12, 18), leading=(2, 24)), "conv2d": MODULES["conv2d"]}
BESIDE = pytest.mark.parametrize(
    ("stack", "name"),
    [
        *(("mixed", name) for name in CASES),
        ("lora", "linear"),
        ("lokr-full-low", "conv2d"),
        # Scaled outputs have a separate hook.
        ("lora-dora-out", "linear"),
    ],
)
PLACES = Places((0, 1), (4, 6))
TIMED = (Timing(Curve(((0.0, 0.2), (1.0, 0.9)))),)


class Beside:
    """A compiled model: a module between two others, with a stack beside it."""

    def __init__(self, kinds: tuple[str, ...], name: str) -> None:
        self.kinds, self.case = kinds, CASES[name]
        self.x = self.case.input(torch.float32)
        self.model = nn.Sequential(nn.Tanh(), self.case.module(torch.float32), nn.SiLU())
        found = lyc.geometry_of(self.model[1])
        assert not isinstance(found, str)
        self.geometry = found
        self.hooks = hook(self.model[1], self.plan())
        self.hooks.places = PLACES
        torch._dynamo.reset()
        counters.clear()
        self.compiled: Any = torch.compile(self.model, backend="aot_eager", fullgraph=True)

    def plan(self, mask: Tensor | None = None, rank: int = 3, **where: Any) -> lyc.BypassPlan:
        """The plan for a file of random values, with a mask and with a factor for each picture."""
        weights = torch.rand(1, 8, 12) if mask is None else mask
        at = Where(Mask(weights), where.get("factors", (1.0, 0.5)))
        layers = [layer(kind, self.case, rank) for kind in self.kinds]
        return lyc.BypassPlan.build(
            self.geometry, [lyc.Slot(lyc.Part(one), 0.5, TIMED, at) for one in layers]
        )

    def passed(self) -> Tensor:
        """The output of the compiled model, which must be that of the plain model."""
        found = self.compiled(self.x)
        assert torch.equal(found, self.model(self.x))
        return found


@BESIDE
def test_twenty_changes_compile_nothing_again(stack: str, name: str) -> None:
    beside = Beside(STACKS[stack], name)
    hooks, outputs = beside.hooks, [beside.passed()]
    graphs = counters["stats"]["unique_graphs"]
    for number in range(4):
        hooks.strengths = ((0.3 * number,) * len(beside.kinds),)
        outputs.append(beside.passed())
        hooks.strengths = hooks.plan.strengths_at(Moment(number / 4, number / 4))
        outputs.append(beside.passed())
        # Another file, then another mask, then other factors.
        for plan in (beside.plan(), beside.plan(torch.rand(1, 5, 7)), beside.plan(factors=(number, 2.0))):
            hooks.plan, hooks.strengths = plan, plan.strengths
            outputs.append(beside.passed())
    assert graphs == 1 == counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs) == 21


@BESIDE
def test_another_bypass_is_seen_and_compiles_nothing_again(stack: str, name: str) -> None:
    """The module was compiled without a bypass, and torch would not look at its hooks again."""
    beside = Beside(STACKS[stack], name)
    beside.hooks.remove()
    torch._dynamo.config.skip_nnmodule_hook_guards = True
    bare = beside.passed()
    outputs: list[Tensor] = []
    for number in range(6):
        beside.hooks = hook(beside.model[1], beside.plan())
        beside.hooks.places = PLACES
        outputs.append(beside.passed())
        assert counters["stats"]["unique_graphs"] == (3 if number else 2)
        beside.hooks.remove()
        assert torch.equal(beside.passed(), bare)
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 6


def test_it_is_the_base_at_a_strength_of_0() -> None:
    beside = Beside(STACKS["mixed"], "linear")
    beside.hooks.remove()
    base = beside.model(beside.x)
    beside.hooks.attach()
    beside.passed()
    beside.hooks.strengths = ((0.0,) * 4,)
    assert torch.equal(beside.passed(), base)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_copy_of_a_model_has_strengths_of_its_own() -> None:
    beside = Beside(("lora",), "linear")
    before = beside.passed()
    other: Any = copy.deepcopy(beside.model)
    (own,) = other[1]._forward_hooks.values()
    own.__self__.strengths = ((3.0,),)
    found = torch.compile(other, backend="aot_eager", fullgraph=True)(beside.x)
    assert torch.equal(found, other(beside.x)) and not torch.equal(found, before)
    assert torch.equal(beside.passed(), before)


@BESIDE
def test_autocast_narrows_what_is_not_in_the_graph(stack: str, name: str) -> None:
    beside = Beside(STACKS[stack], name)
    with torch.autocast("cpu", torch.bfloat16):
        assert beside.passed().dtype == torch.bfloat16
    assert beside.passed().dtype == torch.float32


@pytest.mark.parametrize("kind", ["lora", "lora-dora-out"])
def test_places_apart_in_a_graph(kind: str) -> None:
    beside = Beside((kind,), "linear")
    beside.hooks.apart = tuple(slot.where for slot in beside.hooks.plan.slots() if slot.where)
    assert len(beside.passed()) == 4


class Blended(nn.Module):
    """The blend of three outputs of an attention, by two masks."""

    def __init__(self) -> None:
        super().__init__()
        self.masks = [Mask(torch.rand(1, 8, 12)) for _ in range(2)]
        self.blend = lyc.Blend([Where(mask) for mask in self.masks], lambda shape: PLACES)

    def forward(self, base: Tensor, *others: Tensor) -> Tensor:
        return self.blend(base.tanh(), iter(others))


@pytest.mark.parametrize("heads", [(), (3,)], ids=["tokens", "heads"])
def test_other_masks_of_a_blend_compile_nothing_again(heads: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    counters.clear()
    for _ in range(3):
        module = Blended()
        base, *others = torch.randn(3, 2, *heads, 24, 5)
        found = torch.compile(module, backend="aot_eager", fullgraph=True)(base, *others)
        assert torch.equal(found, module(base, *others))
        first = base.tanh().double()
        shares = [mask.on((4, 6)).flatten()[:, None].double() for mask in module.masks]
        wanted = first + sum(m * (one - first) for m, one in zip(shares, others, strict=True))
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize("kind", ["lora", "lokr-full-low"])
def test_passes_with_gradients_are_traced(kind: str) -> None:
    beside = Beside((kind,), "linear")
    plan = lyc.BypassPlan.build(beside.geometry, [(layer(kind, beside.case), 0.7)])
    beside.hooks.plan, beside.hooks.strengths = plan, plan.strengths
    given = [beside.x.clone().requires_grad_() for _ in range(2)]
    for x, run in zip(given, (beside.model, beside.compiled), strict=True):
        run(x).square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
