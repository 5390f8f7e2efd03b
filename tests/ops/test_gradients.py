"""Gradients through the bypass, for every kind on every kind of module.

The reference is torch's gradient through the rebuilt weight, W + strength * delta(W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import peft
import pytest
import torch
from bypass_cases import FACTS, LAYERS, MODULES, Case, beside, chained, hook, layer
from layers import rand
from networks import move
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.bypass.forwards import hadamard, kronecker
from lycoris_ops.bypass.forwards.forward import Item
from lycoris_ops.changes.forms import Kronecker
from lycoris_ops.maths import recompute
from lycoris_ops.maths.dora import changed_lengths, dora_factor, lengths
from lycoris_ops.maths.rotations import skew_symmetric

# Two steps, so that what the first step changed must be seen in the second.
STRENGTH, RATE, STEPS = 0.7, 0.05, 2
Layers = Sequence[tuple[lyc.Layer | lyc.Part, float]]


def learning(one: lyc.Layer) -> lyc.Layer:
    """The layer in float64, with its factors as parameters."""
    floats = {name: tensor for name, tensor in one.tensors().items() if tensor.is_floating_point()}
    return one.with_tensors({name: nn.Parameter(tensor.double()) for name, tensor in floats.items()})


def parameters(layers: Layers) -> list[Tensor]:
    """Every parameter of the layers once."""
    whole = (one.layer if isinstance(one, lyc.Part) else one for one, _ in layers)
    held = (tensor for one in whole for tensor in one.tensors().values() if tensor.requires_grad)
    return list({id(tensor): tensor for tensor in held}.values())


def rebuilt(module: nn.Module, layers: Layers, x: Tensor) -> Tensor:
    """What the module gives with W + s * delta(W) and b + s * change(b), by torch's own products."""
    weight, bias = module.weight, module.bias
    for one, strength in layers:
        part = one if isinstance(one, lyc.Part) else None
        if part is not None and part.parameter == "bias":
            change = part.layer.change(module.weight, module.bias).bias
            bias = bias if change is None else bias + strength * change
        elif part is not None and part.rows is not None:
            start, stop = part.rows
            changed = strength * part.layer.delta(module.weight[start:stop])
            weight = weight + nn.functional.pad(changed.flatten(1), (0, 0, start, len(weight) - stop)).view(
                weight.shape
            )
        else:
            weight = weight + strength * (one if part is None else part.layer).delta(module.weight)
    values: Mapping[str, Any] = {"weight": weight, **({} if bias is None else {"bias": bias})}
    return torch.func.functional_call(module, dict(values), x)


def check(case: Case, made: Layers, again: Layers) -> None:
    """Assert that the bypass and the rebuilt weight give equal outputs, gradients and optimiser steps.

    `made` are the layers beside the module. `again` are equal layers with parameters of their own, which go
    into the rebuilt weight.
    """
    module, x = case.module(), case.input()
    hooks = hook(module, chained(case, (made,)))
    plain = case.module()
    plain.load_state_dict(module.state_dict())
    ours, theirs = parameters(made), parameters(again)
    assert ours and len(ours) == len(theirs) and not {id(p) for p in ours} & {id(p) for p in theirs}
    steps = [torch.optim.SGD(found, RATE, momentum=0.9) for found in (ours, theirs)]
    target = torch.randn_like(plain(x))
    before = [tensor.detach().clone() for tensor in ours]
    for _ in range(STEPS):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        found, wanted = module(inputs[0]), rebuilt(plain, again, inputs[1])
        # Another pass before the gradients are taken, to notice a buffer that passes share.
        module(2 * x)
        same(found, wanted)
        for output, optimiser in zip((found, wanted), steps, strict=True):
            optimiser.zero_grad()
            (output - target).square().mean().backward()
        same(inputs[0].grad, inputs[1].grad)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.grad is None) == (other.grad is None)
            if mine.grad is not None and other.grad is not None:
                same(mine.grad, other.grad)
        for optimiser in steps:
            optimiser.step()
    assert all(
        not torch.equal(now, then) for now, then in zip(ours, before, strict=True) if now.grad is not None
    )
    assert any(tensor.grad is not None and tensor.grad.any() for tensor in ours)
    # A pass without gradients sees what the optimiser has changed, too.
    with torch.no_grad():
        same(module(x), rebuilt(plain, again, x))
    with torch.inference_mode():
        same(module(x), rebuilt(plain, again, x))
    assert hooks.met is None and hooks._pass is None
    assert module.weight.grad is None and not module.weight.requires_grad


def same(found: Tensor | None, wanted: Tensor | None) -> None:
    """Assert that two tensors are equal up to rounding in float64."""
    assert found is not None and wanted is not None
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max().clamp_min(1e-10)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in FACTS if name in LAYERS])
def test_gradients_of_every_kind_on_every_kind_of_layer(kind: str, name: str) -> None:
    case = MODULES[name]
    one = layer(kind, case)
    made, again = learning(one), learning(one)
    check(case, [(made, STRENGTH)], [(again, STRENGTH)])


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("kind", ["ia3-peft", "diff_b", "lora_B.bias"])
def test_gradients_of_changes_of_the_bias(kind: str, name: str) -> None:
    case = MODULES[name]
    if kind == "ia3-peft":
        one = layer(kind, case) if name == "linear" else ia3_of_outputs(case)
    else:
        one = layer("lora", case, **{kind: rand(case.shape[0])})
    pairs = [[(found, 0.7), (beside(found), 0.7)] for found in (learning(one), learning(one))]
    check(case, *pairs)


def ia3_of_outputs(case: Case) -> lyc.Layer:
    """PEFT's IA3 of a convolution. Only PEFT's configuration tells that it is for outputs."""
    factors = {"ia3_l": 1 + rand(1, case.shape[0], 1, 1)}
    return ALGORITHMS["ia3"].load(factors, {"feedforward": False})


@pytest.mark.parametrize("name", [name for name, case in MODULES.items() if case.shape[0] == 12])
def test_gradients_of_several_kinds_at_once(name: str) -> None:
    """All kinds are on one module, with two more layers on some of its rows and a frozen layer."""
    case = MODULES[name]
    kinds = [kind for kind, at in FACTS if at == name and "dora" not in kind]
    ones = [layer(kind, case) for kind in kinds]
    half = Case((6, *case.shape[1:]), case.options)
    rows = [lyc.Part(layer(kind, half), rows=at) for kind, at in (("lora", (0, 6)), ("loha", (6, 12)))]
    frozen = layer("lokr-full-low", case)

    def together() -> Layers:
        own = [(learning(one), 0.2) for one in ones]
        parts = [(lyc.Part(learning(part.layer), rows=part.rows), 0.3) for part in rows]
        return [*own, *parts, (frozen, 0.4)]

    check(case, together(), together())


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_gradients_of_both_ways_of_a_hadamard_product(
    name: str, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hadamard.HadamardForward, "_khatri_rao_is_cheaper", lambda *_: not tiles)
    monkeypatch.setattr(hadamard, "TILE", 50)
    case = MODULES[name]
    ones = layer("loha", case), layer("loha", case, rank=2)
    pairs = [[(learning(one), strength) for one, strength in zip(ones, (0.6, -0.9), strict=True)]]
    pairs.append([(learning(one), strength) for one, strength in zip(ones, (0.6, -0.9), strict=True)])
    check(case, *pairs)


def test_lokr_keeps_its_input_alone() -> None:
    case = Case((12, 18), MODULES["linear"].options)
    module, one = case.module(), learning(layer("lokr-full-full", case))
    hook(module, chained(case, ([(one, 0.7)],)))
    x = torch.randn(50, 18, dtype=torch.float64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda held: held
    ):
        module(x)
    assert {tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel()} == {x.data_ptr()}


def test_derivatives_of_a_kronecker_product_of_any_order_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((5, 12), (5, 18), (3, 6), (4, 3))
    given = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)

    def run(y: Tensor, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        factors = Kronecker((w1,), (w2,), 1.0)
        one = kronecker._factors(Item(factors, 0), y.dtype, y.device)
        # It may write over what it is given.
        return kronecker._plus_product(y.clone(), x, one.w1, one, 0.7)

    # So small that the input is worked on in pieces.
    monkeypatch.setattr(kronecker, "PIECE", 18)
    y, x, w1, w2 = given
    of_any_order_and_mode(run, given, y + 0.7 * x @ torch.kron(w1, w2).T)
    over = torch.func.vmap(lambda y, x: run(y[None], x[None], w1, w2)[0])
    same(over(y, x), run(*given))


def test_derivatives_of_a_hadamard_product_of_any_order_and_mode() -> None:
    shapes = ((5, 2), (2, 4), (5, 3), (3, 4))
    given = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)

    def run(*factors: Tensor) -> Tensor:
        return recompute.hadamard(*factors, scale=0.7)

    one, two, three, four = given
    of_any_order_and_mode(run, given, 0.7 * (one @ two) * (three @ four))
    # Autograd keeps the factors, and no matrix.
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: one):
        run(*given)
    assert sorted(kept) == sorted(tensor.numel() for tensor in given)


def of_any_order_and_mode(run: Callable[..., Tensor], given: tuple[Tensor, ...], wanted: Tensor) -> None:
    same(run(*given), wanted)
    assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, given)
    places = tuple(range(len(given)))
    ours = torch.func.grad(lambda *values: run(*values).square().sum(), places)(*given)
    theirs = torch.autograd.grad(wanted.square().sum(), given, retain_graph=True)
    for mine, other in zip(ours, theirs, strict=True):
        same(mine, other)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kernel", [(), (3, 2)], ids=["linear", "conv"])
def test_norms_of_a_weight_with_a_low_rank_change(kernel: tuple[int, ...], axis: int) -> None:
    """The reference is the norm of the sum. One output and one input are zero, even with their change."""
    weight = torch.randn(7, 5, *kernel, dtype=torch.float64)
    left, right = (
        torch.randn(7, 3, dtype=torch.float64),
        torch.randn(3, weight[0].numel(), dtype=torch.float64),
    )
    weight[2:4], weight[:, 1] = 0, 0
    left[2], right.view(3, 5, -1)[:, 1] = 0, 0
    given = [tensor.requires_grad_() for tensor in (left, right)]
    found, wanted = (
        changed_lengths(weight, left, right, axis),
        lengths(weight + (left @ right).view(weight.shape), axis),
    )
    same(found, wanted)
    for mine, other in zip(
        *(torch.autograd.grad((one**3).sum(), given) for one in (found, wanted)), strict=True
    ):
        same(mine, other)
    magnitude = torch.ones(found.shape, dtype=torch.float64, requires_grad=True)
    dora_factor(magnitude, changed_lengths(weight, left, right, axis)).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (*given, magnitude))
    # A change of zero leaves the norms as they are, bit for bit.
    none = torch.zeros_like(left, dtype=torch.float32)
    narrow = weight.float()
    assert torch.equal(changed_lengths(narrow, none, right.detach().float(), axis), lengths(narrow, axis))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "oft"])
def test_a_bypass_that_is_kept_sees_what_becomes_of_the_parameters(kind: str, dtype: torch.dtype) -> None:
    """Their values, dtypes, whether they require gradients, and the strength, each in the next pass."""
    case = MODULES["linear"]
    module, x = case.module(dtype), case.input(dtype)
    options: dict[str, Any] = {"algorithm": kind, "rank": 4, "form": "bypass", "seed": 1}
    network = lyc.create_lycoris(nn.Sequential(module), **options).apply_to()
    (member,) = network.members.values()
    hooks = member._bypass
    assert hooks is not None

    def passes() -> Tensor:
        found = module(x)
        wanted = nn.functional.linear(
            x, module.weight + network.multiplier * member.layer.delta(module.weight), module.bias
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        return found

    move(network)
    passes()
    bound = hooks._bound
    move(network)
    passes().square().sum().backward()
    # A rotation that learns is computed in each pass.
    assert (bound is None) is (kind == "oft") and hooks._bound is bound
    assert all(value.grad is not None and value.grad.any() for value in network.parameters())
    network.double()
    passes()
    network.float().set_multiplier(0.5)
    move(network)
    with torch.no_grad():
        passes()
    network.requires_grad_(False)
    passes()
    bound = hooks._bound
    passes()
    # Nothing is computed again until a value changes.
    assert bound is not None and hooks._bound is bound
    for value in network.parameters():
        value.add_(0.1)
    passes()
    network.double()
    passes()
    network.float().requires_grad_(True)
    move(network)
    assert passes().requires_grad
    for value in network.parameters():
        value.data = value.data + 0.1
    passes()
    network.load_state_dict({k: v + 0.1 for k, v in network.state_dict().items()}, assign=True)
    assert passes().requires_grad
    network.restore()


@pytest.mark.parametrize("form", ["bypass", "rebuilt"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_transforms_of_torch_func_see_a_network(kind: str, form: str) -> None:
    module = nn.Sequential(nn.Linear(6, 4)).double()
    network = lyc.create_lycoris(module, algorithm=kind, rank=2, form=form, seed=0).double()
    for value in network.parameters():
        nn.init.normal_(value)
    network.apply_to()
    x = torch.randn(3, 6, dtype=torch.float64)
    names = dict(network.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        # In place of the parameters of the network, whose layers the module runs.
        return torch.func.functional_call(Running(module, network), values, (x,)).square().sum()

    class Running(nn.Module):
        def __init__(self, module: nn.Module, network: nn.Module) -> None:
            super().__init__()
            self.module, self.network = module, network

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    values = {f"network.{name}": value.detach() for name, value in names.items()}
    found = torch.func.grad(loss)(values, x)
    module(x).square().sum().backward()
    for name, value in names.items():
        same(found[f"network.{name}"], value.grad)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_vmap_takes_a_batch_of_weights_that_are_rebuilt(kind: str) -> None:
    module = nn.Sequential(nn.Linear(6, 4)).double()
    network = lyc.create_lycoris(module, algorithm=kind, rank=2, form="rebuilt", seed=0).double()
    for value in network.parameters():
        nn.init.normal_(value)
    network.apply_to()
    weights, x = rand(3, 4, 6).double(), rand(5, 6).double()

    def run(weight: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"0.weight": weight}, (x,))

    same(torch.func.vmap(run)(weights), torch.stack([run(weight) for weight in weights]))


def test_a_patch_of_learning_layers_records_nothing() -> None:
    weight = torch.randn(12, 18)
    one = learning(layer("loha", MODULES["linear"]))
    plan = lyc.PatchPlan.build(weight.shape, "cpu", [(one, 1.0)])
    assert not any(tensor.requires_grad for tensor in plan.tensors)
    assert not plan.apply_(weight, plan.tensors, plan.strengths).requires_grad


@pytest.mark.parametrize("real", [False, True])
def test_a_pass_of_fake_tensors_leaves_none_for_those_behind_it(real: bool) -> None:
    size = 7
    triangles = torch.randn(3, size * (size - 1) // 2, requires_grad=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        skew_symmetric(triangles if real else mode.from_tensor(triangles), size).sum().backward()
    found = skew_symmetric(triangles, size)
    assert torch.equal(found, skew_symmetric(triangles.detach(), size))
    with FakeTensorMode() as mode:
        skew_symmetric(mode.from_tensor(triangles), size).sum().backward()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (peft.LoraConfig(r=8, target_modules=["0", "2"], use_dora=True), {"rank": 8, "dora": "output"}),
        (
            peft.OFTConfig(oft_block_size=32, target_modules=["0", "2"]),
            {"algorithm": "oftv2", "rank": 32},
        ),
    ],
    ids=["dora", "oftv2"],
)
@pytest.mark.parametrize(("width", "tokens"), [(64, 8), (64, 48), (128, 8), (256, 64)])
def test_few_tokens_keep_at_most_the_bytes_of_peft(
    theirs: peft.PeftConfig, ours: dict[str, Any], width: int, tokens: int
) -> None:
    """For the backward pass of few tokens through two layers."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def kept(module: nn.Module, parameters: nn.Module) -> int:
        held = {one.untyped_storage().data_ptr() for one in (*module.parameters(), *parameters.parameters())}
        storages: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: storages.setdefault(one.untyped_storage().data_ptr(), one), lambda one: one
        ):
            module(torch.randn(tokens, width, requires_grad=True))
        return sum(one.untyped_storage().nbytes() for at, one in storages.items() if at not in held)

    adapted = model()
    network = lyc.create_lycoris(adapted, **ours).apply_to()
    wrapped = peft.get_peft_model(cast("Any", model()), theirs)
    assert tokens * width * 4 < kept(adapted, network) <= kept(wrapped, wrapped)
