"""Ranks that move during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.algorithms.components import chosen
from lycoris_ops.train.reallocation import Reallocation, Reallocator, _turned

SHAPES = [(12, 18), (12, 8, 3)]
KINDS = [
    *("lora", "loha", "lokr", "glora"),
    *("lora-tucker", "loha-tucker", "lokr-tucker"),
]


def options_of(kind: str) -> dict[str, Any]:
    """The options of a kind's layers, as `init` takes them."""
    factor = {"factor": 2} if kind.startswith("lokr") else {}
    return factor | ({"tucker": True} if kind.endswith("tucker") else {})


def trained(kind: str, shape: tuple[int, ...]) -> lyc.Layer:
    """A layer whose factors are all different from zero."""
    generator = torch.Generator().manual_seed(0)
    algorithm = kind.partition("-")[0]
    layer = ALGORITHMS[algorithm].init(shape, 2, 4.0, seed=0, **options_of(kind))
    return layer.with_tensors(
        {
            name: torch.randn(tensor.shape, generator=generator) if name in layer.factors() else tensor
            for name, tensor in layer.tensors().items()
        }
    )


def gradients(layer: lyc.Layer, gradient: Tensor) -> dict[str, Tensor]:
    """The gradients of a layer's factors, given that of the weight, by autograd through `delta`."""
    leaves = {n: t.clone().requires_grad_() for n, t in layer.tensors().items() if n in layer.factors()}
    delta = layer.with_tensors(dict(leaves)).delta(torch.zeros(gradient.shape))
    return dict(
        zip(leaves, torch.autograd.grad((delta * gradient).sum(), list(leaves.values())), strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, shape) for kind in KINDS for shape in SHAPES[kind.endswith("tucker") :]],
)
def test_new_components_change_nothing_and_gain_what_they_say(kind: str, shape: tuple[int, ...]) -> None:
    layer, weight = trained(kind, shape), torch.randn(shape)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found, axes = layer.growth(gradient, 2), layer.rank_axes()
    assert found is not None and len(found.gains) == 2
    grown = layer.grown(found.first(2, axes))
    assert grown.rank == 4 and grown.alpha == 8
    torch.testing.assert_close(grown.delta(weight), layer.delta(weight))
    back = grown.with_components([0, 1])
    assert all(torch.equal(tensor, back.tensors()[name]) for name, tensor in layer.tensors().items())
    # The scale is 2, and so the energy is four times that of the scale 1.
    # What glora's input side gains is in none of them: it has no weight here.
    new = {
        name: chosen(each, axes[name], (2, 3))
        for name, each in gradients(grown, gradient).items()
        if name in axes
    }
    assert sum(float(each.square().sum()) for each in new.values()) == pytest.approx(
        4 * found.gains[1], rel=1e-4
    )


def test_layouts_of_files_grow() -> None:
    """A core beside factors with the kernel's dimensions, and GLoRA's older layout at a rank below I = O."""
    drawn = torch.randn
    held = {"lokr_w1": drawn(2, 2), "lokr_t2": drawn(3, 3, 3, 3), "alpha": torch.tensor(2.0)}
    held |= {"lokr_w2_a": drawn(3, 6, 1, 1), "lokr_w2_b": drawn(3, 4, 1, 1)}
    old = {
        "a1.weight": drawn(5, 8),
        "a2.weight": drawn(8, 5),
        "b1.weight": drawn(5, 8),
        "b2.weight": drawn(8, 5),
    }
    for layer, shape, count in (
        (ALGORITHMS["lokr"].load(held), (12, 8, 3, 3), 2),
        (ALGORITHMS["glora"].load(old), (8, 8), 2),
    ):
        weight = drawn(shape)
        found = layer.growth(drawn(shape), 5)
        assert found is not None and layer.rank is not None
        grown = layer.grown(found.first(count, layer.rank_axes()))
        assert grown.rank == layer.rank + count
        torch.testing.assert_close(grown.delta(weight), layer.delta(weight), rtol=1e-4, atol=1e-4)
    assert grown.growth(drawn(8, 8), 5) is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_independent_components_make_the_same_change(shape: tuple[int, ...]) -> None:
    layer, weight = trained("lora", shape), torch.zeros(shape)
    gradient = torch.randn(shape)
    idle = layer.growth(gradient, 1)
    assert idle is not None
    layer = layer.grown(idle.first(1, layer.rank_axes()))
    normal, turns = layer.normal()
    torch.testing.assert_close(normal.delta(weight), layer.delta(weight), rtol=1e-5, atol=1e-5)
    held = normal.tensors()
    up, down = held["lora_up"].flatten(1), held["lora_down"].flatten(1)
    torch.testing.assert_close(down @ down.T, torch.eye(3), rtol=0, atol=1e-5)
    values = torch.linalg.svdvals(layer.delta(weight).flatten(1))[:3] / 2
    torch.testing.assert_close(up.norm(dim=0), values, rtol=1e-5, atol=1e-5)
    # The component that was not trained yet keeps its direction, within what is left beside the others.
    new = idle.components["lora_down"].flatten(1)
    torch.testing.assert_close((new @ down.T @ down), new, rtol=0, atol=1e-5)
    # Values and gradients turn as the optimiser's states are turned.
    old, found = gradients(layer, gradient), gradients(normal, gradient)
    for name, (axis,) in layer.rank_axes().items():
        change = _turned(turns[name], axis)
        torch.testing.assert_close(change.values(layer.tensors()[name]), held[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(change.gradients(old[name]), found[name], rtol=1e-4, atol=1e-4)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 12, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(96, 24),
        nn.Tanh(),
        nn.Linear(24, 5),
    )


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 4, 8, generator=generator), torch.randint(0, 5, (16,), generator=generator))
        for _ in range(3)
    ]


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(module(batch[0]), batch[1])


def optimiser(network: Any, kind: str) -> torch.optim.Optimizer:
    groups = network.parameter_groups(1e-2)
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.Adafactor(groups) if kind == "adafactor" else torch.optim.AdamW(groups)


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_move_while_training_and_end_in_a_file(tmp_path: Path, kind: str, optimizer_name: str) -> None:
    net, data = model(), batches()
    algorithm = kind.partition("-")[0]
    # A second factor of LoKr is whole at half of its size.
    rank = 2 if kind == "lokr-tucker" else 4
    network = lyc.create_lycoris(net, algorithm=algorithm, rank=rank, seed=0, **options_of(kind))
    network.apply_to()
    before = sum(parameter.numel() for parameter in network.parameters())
    optimizer = optimiser(network, optimizer_name)
    target = before * 2 // 3 if kind == "lokr-tucker" else before // 2
    schedule = Reallocation(target=target, begin=4, end=16, every=4, regrow=0.2)
    ranks = Reallocator(network, optimizer, schedule, batches=data, loss=loss)
    sizes: list[int] = []
    scales = {path: _scale(member.layer) for path, member in network.members.items()}
    first = loss(net, data[0]).item()
    for step in range(1, 31):
        optimizer.zero_grad()
        loss(net, data[step % 3]).backward()
        ranks.observe()
        optimizer.step()
        moved = ranks.step(step)
        assert (moved is not None) == (step in (4, 8, 12, 16))
        if moved:
            assert moved.parameters == sum(parameter.numel() for parameter in network.parameters())
            assert min(moved.ranks.values()) >= 1
            sizes.append(moved.parameters)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] <= target < sizes[0] <= before
    parameters = list(network.parameters())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(each) for each in held} == {id(each) for each in parameters}
    assert set(optimizer.state) <= set(parameters)
    assert {path: _scale(member.layer) for path, member in network.members.items()} == scales
    assert loss(net, data[0]).item() < first
    network.save_weights(tmp_path / "moved.safetensors")
    trained_output = net(data[0][0])
    network.restore()
    again = lyc.create_lycoris(net, weights=tmp_path / "moved.safetensors")
    again.apply_to()
    torch.testing.assert_close(net(data[0][0]), trained_output)


def _scale(layer: lyc.Layer) -> float:
    return round((layer.alpha or 0) / (layer.rank or 1), 6)


def test_a_state_stays_with_its_component_and_begins_at_zero_for_a_new_one() -> None:
    net, data = model(), batches()
    network = lyc.create_lycoris(net, rank=3, seed=0)
    network.apply_to()
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = Reallocation(target=10**6, begin=1, end=9, every=8, regrow=0.3)
    ranks = Reallocator(network, optimizer, schedule, batches=data, loss=loss)
    loss(net, data[0]).backward()
    ranks.observe()
    optimizer.step()
    member = network.members["3"]
    old, state = member.lora_up, {n: s.clone() for n, s in optimizer.state[member.lora_up].items()}
    ranks._prune(member, [0, 2])
    found = optimizer.state[member.lora_up]
    assert old not in optimizer.state and torch.equal(found["exp_avg"], state["exp_avg"][:, [0, 2]])
    assert found["step"] == 1 and torch.equal(found["exp_avg_sq"], state["exp_avg_sq"][:, [0, 2]])
    gradients_before = [parameter.grad for parameter in network.parameters()]
    output = net(data[0][0])
    ranks._regrow(ranks.parameters + 2 * (96 + 24))
    # A product of more components may be added up in another order.
    torch.testing.assert_close(net(data[0][0]), output, rtol=0, atol=1e-6 * float(output.abs().max()))
    assert sum(one.layer.rank or 0 for one in network.members.values()) > 8
    for one in network.members.values():
        rank, up = one.layer.rank or 0, optimizer.state[one.lora_up]["exp_avg"]
        assert up.shape == one.lora_up.shape and not up[:, 3:].any() and rank <= 5
    assert all(
        parameter.grad is None or parameter.grad is before
        for parameter, before in zip(network.parameters(), gradients_before, strict=True)
    )


def test_the_gradient_beside_a_network_is_that_of_the_changed_weight() -> None:
    """For layers that act by the output and by a rebuilt weight."""
    from lycoris_ops.ranks.gradients import summed

    net, data = model(), batches()
    for form in ("bypass", "rebuilt"):
        network = lyc.create_lycoris(net, rank=2, seed=0, form=form)
        for member in network.members.values():
            for parameter in member.parameters():
                nn.init.normal_(parameter, std=0.1)
        network.apply_to()
        sites = [member.site for member in network.members.values()]
        found = summed(net, sites, data, loss, seed=0).gradients
        network.restore()
        twin = model()
        for path, member in network.members.items():
            weight = twin.get_submodule(path).weight
            assert isinstance(weight, nn.Parameter)
            weight.data += member.layer.delta(weight.data)
        sum(loss(twin, batch) for batch in data).div(3).backward()
        for path, gradient in found.items():
            torch.testing.assert_close(gradient, twin.get_submodule(path).weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("impossible schedule", {"target": 0}),
        ("impossible schedule", {"begin": 9}),
        ("from 0 to below 1", {"regrow": 1.0}),
        ("regrow by gradients", {"regrow": 0.1}),
    ],
)
def test_bad_use_is_an_error(message: str, given: dict[str, Any]) -> None:
    network = lyc.create_lycoris(model(), rank=2)
    with pytest.raises(lyc.LycorisError, match=message):
        options: dict[str, Any] = {"target": 100, "begin": 1, "end": 8, **given}
        Reallocator(network, torch.optim.SGD(network.parameters()), Reallocation(**options))


def test_a_network_without_ranks_has_none_to_move() -> None:
    network = lyc.create_lycoris(model(), algorithm="ia3")
    with pytest.raises(lyc.LycorisError, match="rank that can move"):
        Reallocator(network, torch.optim.SGD(network.parameters()), Reallocation(target=9, begin=1, end=8))
