"""Bypass against patching, in float64.

A module with hooks must give the output of the same module with its weight and bias patched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bypass_cases import BOUNDS, FACTS, LAYERS, MODULES, Case, beside, chained, hook, layer
from layers import KINDS, rand
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.bypass import bound
from lycoris_ops.bypass.hook import PlainReader


def _alone() -> Iterator[tuple[str, str, torch.dtype]]:
    """Each kind on each kind of layer in float64, and on one module more in every dtype.

    The next kind is on the next module.
    """
    for number, kind in enumerate(dict(FACTS)):
        names = [name for one, name in FACTS if one == kind]
        in_turn = {dtype: names[(number + 2 * n) % len(names)] for n, dtype in enumerate(BOUNDS)}
        for name in names:
            for dtype in BOUNDS:
                if in_turn[dtype] == name or (dtype == torch.float64 and name in LAYERS):
                    yield kind, name, dtype


def patched(module: nn.Module, x: Tensor, *stages: Any) -> Tensor:
    """The module's output in float64, with its weight and bias patched stage by stage.

    The module itself is changed.
    """
    wide = module.double()
    for layers, *biases in stages:
        lyc.patch_(wide.weight, list(layers))
        for parts in biases:
            lyc.patch_(wide.bias, list(parts))
    return wide(x.double())


def compare(case: Case, *stages: Any, dtype: torch.dtype = torch.float64) -> float:
    """The largest error of the bypass, as a share of the largest output of the patched module.

    Asserts as well that the module gives its own output again once the hooks are gone.
    """
    module, x = case.module(dtype), case.input(dtype)
    base = module(x)
    hooks = hook(module, chained(case, *stages))
    found = module(x)
    hooks.remove()
    assert torch.equal(module(x), base)
    assert found.dtype == dtype and found.shape == base.shape
    wanted = patched(module, x, *stages)
    assert torch.isfinite(found).all()
    assert (wanted - base).abs().max() > 0.02 * wanted.abs().max(), "the layers change nothing"
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize(
    ("kind", "name", "dtype"),
    list(_alone()),
)
def test_each_kind_alone(kind: str, name: str, dtype: torch.dtype) -> None:
    """One layer beside a module, against the patched module in float64.

    Every module meets every dtype in the test of all kinds at once.
    """
    case = MODULES[name]
    assert compare(case, ([(layer(kind, case), -0.7)],), dtype=dtype) < BOUNDS[dtype]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_all_kinds_at_once_and_stage_after_stage(name: str, dtype: torch.dtype) -> None:
    """All kinds in one stage, and each kind in a stage of its own."""
    case = MODULES[name]
    kinds = [kind for kind, module in FACTS if module == name]
    pairs = [(layer(kind, case), 0.1) for kind in kinds]
    assert compare(case, (pairs,), dtype=dtype) < 2 * BOUNDS[dtype]
    assert compare(case, *(([pair],) for pair in pairs), dtype=dtype) < 4 * BOUNDS[dtype]


def fused(name: str) -> Case:
    """The case of a module with 36 outputs, as where q, k and v are one weight."""
    part = MODULES[name]
    return Case((36, *part.shape[1:]), part.options, leading=part.leading)


OF_12_ROWS = [
    (kind, name)
    for number, kind in enumerate(dict(FACTS))
    for n, name in enumerate(LAYERS)
    if (kind, name) in FACTS and (name in ("linear", "conv2d") or (n + number) % 3 == 0)
]
"""(kind, module) of modules with 12 outputs, which `fused` turns into 36."""


@pytest.mark.parametrize(("kind", "name"), OF_12_ROWS)
def test_rows_of_a_fused_weight(kind: str, name: str) -> None:
    """One layer is for the middle third of a fused weight, and another for the first."""
    case, one, other = fused(name), layer(kind, MODULES[name]), layer("lora", MODULES[name])
    pairs = [(lyc.Part(one, rows=(12, 24)), 0.8), (lyc.Part(other, rows=(0, 12)), 0.5)]
    assert compare(case, (pairs,)) < BOUNDS[torch.float64]
    assert compare(case, (pairs,), ([(layer("ia3", case), 0.5)],)) < BOUNDS[torch.float64]


@pytest.mark.parametrize(("kind", "name"), OF_12_ROWS)
def test_halves_of_a_layer_on_rows_of_a_fused_weight(kind: str, name: str) -> None:
    """Kinds whose rows depend on each other cannot be cut, and raise an error."""
    case, one = fused(name), layer(kind, MODULES[name])
    cut = [(lyc.Part(one, (18, 24), (6, 12)), 0.8), (lyc.Part(one, (0, 6), (0, 6)), 0.8)]
    # The cut goes through a block of oft.
    if one.row_axes() is not None and kind != "oft":
        assert compare(case, (cut,)) < BOUNDS[torch.float64]
    else:
        with pytest.raises(lyc.LayerError, match="part of its rows"):
            lyc.patch_(case.module().weight, cut)
        with pytest.raises(lyc.LayerError, match="part of its rows"):
            chained(case, (cut,)).meet(torch.float64, torch.device("cpu"), lambda: None, lambda: None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, name in FACTS if name in ("linear", "conv2d") and not KINDS[kind].additive],
)
def test_what_depends_on_the_weight_sees_what_earlier_stages_made_of_it(kind: str, name: str) -> None:
    """A kind that depends on the weight stands between two other stages.

    The reference patches the weight and the bias stage by stage.
    """
    case = MODULES[name]
    bias = [(beside(ALGORITHMS["full"].load({"diff_b": rand(case.shape[0])})), 0.5)]
    first = ([(layer("loha", case), 0.9), (layer("ia3", case), 0.4)], bias)
    last = ([(layer("lora-dora-out", case), 0.3), (layer("oft", case), 0.6)],)
    assert compare(case, first, ([(layer(kind, case), 0.7)],), last) < 1e-11


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("kind", ["lora", "oft", "oftv2", "boft-peft", "lora-dora-in"])
def test_changes_of_the_bias(name: str, kind: str) -> None:
    """One layer adds to the bias, and PEFT's IA3 of outputs scales the bias that it meets."""
    case = MODULES[name]
    added = ALGORITHMS["lora"].load({**KINDS["lora"].make(case.shape, 3), "lora_B.bias": rand(case.shape[0])})
    scaling = ALGORITHMS["ia3"].load({"ia3_l": 1 + rand(case.shape[0], 1)})
    both = [(added, 0.7), (layer(kind, case), 0.5), (scaling, -0.4)]
    biases = [(beside(added), 0.7), (beside(scaling), -0.4)]
    assert compare(case, (both, biases)) < BOUNDS[torch.float64]
    assert compare(case, (both, biases), (both, biases)) < BOUNDS[torch.float64]
    assert compare(case, ([], biases)) < BOUNDS[torch.float64]


def test_the_weight_is_read_once_and_only_where_it_is_needed() -> None:
    case = MODULES["linear"]
    reads: list[str] = []

    class Counted(PlainReader):
        def weight(self, *args: Any) -> Tensor:
            reads.append("weight")
            return super().weight(*args)

        def bias(self, *args: Any) -> Tensor | None:
            reads.append("bias")
            return super().bias(*args)

    def attached(*stages: Any) -> list[str]:
        module = case.module()
        hooks = hook(module, chained(case, *stages), reader=Counted())
        for _ in range(3):
            module(case.input())
        hooks.remove()
        again = hook(module, hooks.plan, reader=Counted(), met=hooks.met)
        module(case.input())
        again.remove()
        found, reads[:] = list(reads), []
        return found

    # What does not depend on the weight reads nothing.
    for kind in ("lora", "loha", "lokr-full-low", "full", "lora-sparse"):
        assert attached(([(layer(kind, case), 1.0)],)) == []
    # Operators apply to the module's own product, from which the bias is taken off first.
    for kind in ("oft", "boft", "ia3", "oftv2", "glora", "full-set"):
        assert set(attached(([(layer(kind, case), 1.0)],))) == {"bias"}
    # These need norms or singular values of the weight.
    for kind in ("tlora", "lora-dora-out", "loha-dora-in"):
        stage = ([(layer(kind, case), 1.0)],)
        assert attached(stage).count("weight") == 1
        # The weight that the last stage makes is formed in each of the four passes.
        assert attached(stage, stage, stage).count("weight") == 4


@pytest.mark.parametrize("kind", ["ia3-inputs", "oftv2", "glora", "lora-dora-in"])
def test_changes_of_the_input_cost_no_second_product(kind: str) -> None:
    """The module's own product is given the changed input.

    A second product is needed only where a change of the outputs needs the product of the unchanged input
    too.
    """
    case = MODULES["linear"]
    made = (
        ALGORITHMS["ia3"].load({"weight": rand(18), "on_input": torch.tensor(1)})
        if kind == "ia3-inputs"
        else layer(kind, case)
    )

    def passes(*layers: lyc.Layer) -> int:
        module = case.module()
        calls: list[Tensor] = []
        forward = module.forward
        module.forward = lambda x: (calls.append(x), forward(x))[1]
        hook(module, chained(case, [[(one, 0.5) for one in layers]]))
        module(case.input())
        return len(calls)

    assert passes(made) == passes(made, layer("oftv2", case), layer("lora", case)) == 1
    assert passes(made, layer("oft", case)) == 2
    assert passes(made, layer("boft-peft", case), layer("boft-peft", case), layer("oftv2", case)) == 2


@pytest.mark.parametrize(
    "kind", ["lora", "loha", "lokr-full-low", "oft", "oftv2", "lora-dora-out", "boft-peft"]
)
def test_strengths_may_change_between_passes(kind: str) -> None:
    case = MODULES["linear"]
    module, x = case.module(), case.input()
    base = module(x)
    pairs = [(layer(kind, case), 1.0), (layer("full", case), 0.5), (layer("lora", case), 0.5)]
    hooks = hook(module, chained(case, (pairs,)))
    for strengths in ((0.5, 0.0, -1.0), (0.0, 0.0, 0.0), (-2.0, 0.25, 0.5)):
        hooks.strengths = (strengths,)
        found = module(x)
        if not any(strengths):
            assert torch.equal(found, base)
        changed = [(one, strength) for (one, _), strength in zip(pairs, strengths, strict=True)]
        plain = case.module()
        plain.load_state_dict(module.state_dict())
        torch.testing.assert_close(found, patched(plain, x, (changed,)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["lora-dora-out", "boft-peft", "glora"])
def test_a_stage_meets_the_weight_at_the_strengths_that_those_before_it_have_now(kind: str) -> None:
    case = MODULES["linear"]
    module, x = case.module(), case.input()
    first, second = layer("lora", case), layer(kind, case)
    hooks = hook(module, chained(case, ([(first, 1.0)],), ([(second, 1.0)],)))
    module(x)
    for strengths in ((0.2, 1.0), (0.0, -0.5), (1.0, 1.0)):
        hooks.strengths = tuple((value,) for value in strengths)
        found = module(x)
        plain = case.module()
        plain.load_state_dict(module.state_dict())
        wanted = patched(plain, x, ([(first, strengths[0])],), ([(second, strengths[1])],))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


def test_two_bypasses_of_one_module_only_where_both_add() -> None:
    case = MODULES["linear"]
    module, x = case.module(), case.input()
    lora, loha = layer("lora", case), layer("loha", case)
    both = hook(module, chained(case, ([(lora, 1.0)],))), hook(module, chained(case, ([(loha, 1.0)],)))
    found = module(x)
    with pytest.raises(lyc.LycorisError, match=r"another bypass is on this module.*BypassPlan\.then"):
        hook(module, chained(case, ([(layer("lora-dora-out", case), 1.0)],)))
    for hooks in both:
        hooks.remove()
    torch.testing.assert_close(found, patched(module, x, ([(lora, 1.0), (loha, 1.0)],)), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, name in FACTS if name in ("linear", "conv2d") and not KINDS[kind].needs_kernel],
)
def test_what_others_add_in_forward_is_left_as_it_is(kind: str, name: str) -> None:
    """As where a host's own bypass has wrapped the module's `forward`."""

    class Inner(PlainReader):
        def forward(self, module: nn.Module) -> Any:
            return own

    case = MODULES[name]
    module, x, other = case.module(), case.input(), case.module()
    own = module.forward
    module.forward = lambda x: own(x) + other(x)
    change = layer(kind, case)
    hooks = hook(module, chained(case, ([(change, 0.7)],)), reader=Inner())
    found = module(x)
    hooks.remove()
    del module.forward
    wanted = patched(module, x, ([(change, 0.7)],)) + other(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


def test_an_input_whose_channels_come_last() -> None:
    """The memory format `channels_last` is another order of the same values."""
    case = MODULES["conv2d"]
    module, x = case.module(), case.input().to(memory_format=torch.channels_last)
    factors = {"lokr_w1": rand(2, 1).double(), "lokr_w2": rand(6, 18, 3, 3).double()}
    lokr = ALGORITHMS["lokr"].load(factors)
    hooks = hook(module, chained(case, ([(lokr, 0.5)],)))
    found = module(x)
    hooks.remove()
    torch.testing.assert_close(found, patched(module, x, ([(lokr, 0.5)],)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_strength_zero_changes_no_bit(dtype: torch.dtype) -> None:
    for name, case in MODULES.items():
        module, x = case.module(dtype), case.input(dtype)
        base = module(x)
        pairs = [(layer(kind, case), 0.0) for kind, at in FACTS if at == name]
        with torch.inference_mode():
            hooks = hook(module, chained(case, (pairs,)))
            assert torch.equal(module(x), base)
        assert hooks.plan.stages[0].layers == ()


def test_attaching_and_removing_twice_leaves_the_module_as_it_was() -> None:
    """Attaching twice adds one hook, and removing twice is no error.

    After that the module has the attributes that it had before.
    """
    case = MODULES["linear"]
    module = case.module()
    before = dict(vars(module))
    hooks = hook(module, chained(case, ([(layer("lora", case), 1.0)],)))
    assert hooks.attach() is hooks and len(module._forward_hooks) == 1
    assert "forward" not in vars(module)
    hooks.remove()
    hooks.remove()
    assert vars(module) == before and not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr-full-full", "full"])
def test_what_others_make_of_the_input_is_what_a_layer_sees(kind: str) -> None:
    """One hook behind the pass is all that a plan without operators needs."""
    case = MODULES["linear"]
    module, x, one = case.module(), case.input(), layer(kind, case)
    wanted = patched(copy.deepcopy(module), 2 * x, ([(one, 0.5)],))
    hooks = hook(module, chained(case, ([(one, 0.5)],)))
    assert not module._forward_pre_hooks
    module.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-11)
    hooks.remove()


KINDS_OF_HOOKS = ("ia3-peft", "loha", "lora-dora-out", "ia3-peft", "oftv2", "loha")


def test_another_plan_in_place_of_the_first() -> None:
    """It adds, scales outputs, or turns the input, which takes other hooks."""
    case = MODULES["linear"]
    module, x = case.module(), case.input()
    plain = copy.deepcopy(module)
    plans = [(layer(kind, case), 0.5) for kind in ("lora", *KINDS_OF_HOOKS)]
    hooks = hook(module, chained(case, ([plans[0]],)))
    for one in plans[1:]:
        hooks.plan = chained(case, ([one],))
        hooks.strengths = hooks.plan.strengths
        wanted = patched(copy.deepcopy(plain), x, ([one],))
        torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-11)
    # One that scales outputs needs the hook of one that adds, so a pass may begin with it.
    hooks.plan = chained(case, ([plans[0]],))
    hooks.before_pass = lambda x: setattr(hooks, "plan", chained(case, ([plans[1]],)))
    wanted = patched(copy.deepcopy(plain), x, ([plans[1]],))
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-11)
    hooks.before_pass = lambda x: setattr(hooks, "plan", chained(case, ([plans[-2]],)))
    with pytest.raises(lyc.LycorisError, match=r"`before_pass` has set a plan that needs other hooks"):
        module(x)
    hooks.remove()
    assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr-full-full", "lokr-low-low", "lora-dora-out"])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_a_batch_of_nothing(kind: str, name: str) -> None:
    case = MODULES[name]
    module, x = case.module(), case.input()[:0]
    wanted = module(x).shape
    hooks = hook(module, chained(case, ([(layer(kind, case), 0.5)],)))
    assert module(x).shape == wanted
    hooks.remove()


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_a_small_scale_keeps_a_large_product_within_float16(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; on a CPU float16 is worked on in float32."""
    monkeypatch.setattr(bound, "working_dtype", lambda x: x.dtype)
    case = MODULES[name]
    tensors = {
        key: torch.full_like(value, 20.0) for key, value in KINDS["lokr-low-low"].make(case.shape, 2).items()
    }
    one = ALGORITHMS["lokr"].load({**tensors, "alpha": torch.tensor(2e-5)})
    module, x = case.module(torch.float16), case.input(torch.float16)
    hooks = hook(module, chained(case, ([(one, 1.0)],)))
    assert module(x).isfinite().all()
    hooks.remove()


def test_a_pass_that_is_interrupted_leaves_nothing_behind() -> None:
    case = MODULES["linear"]
    module, x = case.module(), case.input()
    hooks = hook(module, chained(case, ([(layer("oftv2", case), 1.0)],)))
    wanted = module(x)
    with pytest.raises(RuntimeError):
        module(torch.randn(2, 18, dtype=torch.float32))  # another dtype than the weight's
    assert hooks._pass is None, "the input is held until the next pass"
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)
    hooks.remove()
    assert hooks._pass is None and hooks._bound is None


@pytest.mark.parametrize("kind", ["lora", "full", "loha", "lora-dora-out"])
def test_gradients_pass_through_after_a_pass_without_gradients(kind: str) -> None:
    """A pass that records gradients must not use tensors that a pass in inference mode has kept.

    Nor those of a file that was read in inference mode, which are of the dtype that is computed in.
    """
    case = MODULES["linear"]
    module, x = case.module(torch.float32), case.input(torch.float32)
    with torch.inference_mode():
        hook(module, chained(case, ([(layer(kind, case), 1.0), (layer(kind, case), 0.5)],)))
        module(x)
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_an_input_by_keyword_and_of_another_dtype() -> None:
    case = MODULES["linear"]
    module, x = case.module(), case.input()
    hook(module, chained(case, ([(layer("oftv2", case), 1.0), (layer("lora", case), 1.0)],)))
    torch.testing.assert_close(module(input=x), module(x), rtol=0, atol=0)
    module.float()
    torch.testing.assert_close(module(x.float()).double(), module.double()(x), rtol=1e-4, atol=1e-4)


class Padded(nn.Conv2d):
    """A convolution that pads its input itself, so that its weight alone does not tell its output."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (2, 0, 2, 0)))


class Scaled(nn.Linear):
    """A linear layer that does not multiply by the weight that it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Embedding(4, 4), "not a linear layer or a convolution"),
        (nn.ConvTranspose2d(4, 4, 2), "not a linear layer or a convolution"),
        (nn.LayerNorm(4), "not a linear layer or a convolution"),
        (Padded(4, 4, 3), "multiplies in its own way"),
        (Scaled(4, 4), "multiplies in its own way"),
        (nn.MultiheadAttention(4, 2).out_proj, "without the layer being called"),
    ],
)
def test_what_is_not_a_plain_product_is_refused(module: nn.Module, reason: str) -> None:
    found = lyc.geometry_of(module)
    assert isinstance(found, str) and reason in found


def test_layers_that_cannot_be_bypassed_or_do_not_fit_are_errors() -> None:
    case = MODULES["linear"]
    larger = layer("lora", case, reshape_weight=torch.tensor([12, 18]))
    with pytest.raises(lyc.LayerError, match="enlarges"):
        chained(case, ([(larger, 1.0)],))
    with pytest.raises(lyc.LayerError, match=r"\[12, 18\].*\[35, 21\]"):
        chained(MODULES["linear-odd"], ([(layer("lora", case), 1.0)],))
    with pytest.raises(lyc.LayerError, match=r"\[12\]"):
        chained(case, ([], [(beside(ALGORITHMS["full"].load({"diff_b": rand(11)})), 1.0)]))
    with pytest.raises(lyc.LycorisError, match="another module"):
        hook(MODULES["linear-odd"].module(), chained(case, ([(layer("lora", case), 1.0)],)))
    bad = layer("oft", case, alpha=torch.tensor(math.nan))
    other = case.module()
    hook(other, chained(case, ([(bad, 1.0)],)), name="blocks.3")
    with pytest.raises(lyc.LayerError, match=r"blocks\.3.*alpha"):
        other(case.input())
