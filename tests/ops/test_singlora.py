from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from layers import factors
from safetensors.torch import load_file, save_file
from torch import nn

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.layers.same import difference


@pytest.mark.parametrize("shape", [(12, 18), (18, 12), (15, 15), (6, 4, 3, 3)])
def test_singlora_has_one_factor_for_outputs_and_inputs(shape: tuple[int, ...]) -> None:
    """The formula of the paper, with strengths that one factor alone could not take: 0.3 and -2."""
    outputs, inputs = shape[0], math.prod(shape[1:])
    factor = torch.randn(max(outputs, inputs), 3, dtype=torch.float64)
    layer = ALGORITHMS["singlora"].load({"singlora_A": factor, "alpha": torch.tensor(6.0)})
    wanted = 2 * (factor @ factor.T)[:outputs, :inputs].reshape(shape)
    weight = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer.delta(weight), wanted)
    for strength in (0.3, -2.0):
        torch.testing.assert_close(layer.multiplied(strength).delta(weight), strength * wanted)
        patched = lyc.patch_(weight.clone(), [(layer, strength)])
        torch.testing.assert_close(patched, weight + strength * wanted)
    torch.testing.assert_close(layer.shrunk(0.25, weight).delta(weight), 0.25 * wanted)
    learns = layer.with_tensors({"singlora_a": factor.clone().requires_grad_()})
    learns.dependent(weight).square().sum().backward()
    assert learns.singlora_a.grad is not None and learns.singlora_a.grad.abs().min() > 0
    wrong = (shape[0] + 50, *shape[1:])
    with pytest.raises(lyc.LayerError, match=rf"the larger of both {len(factor)}.*expected \[{wrong[0]}"):
        layer.check_fit(wrong)


def test_a_file_is_stacked_baked_and_trained_on(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(18, 12), nn.Linear(12, 12)).double()
    tensors = {f"0.{key}": value for key, value in factors("singlora", "linear").items()}
    lora = {f"0.{key}": value for key, value in factors("lora", "linear").items()}
    save_file(tensors, tmp_path / "single.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("single", "lora")]
    stack = lyc.Stack(
        [
            lyc.Entry(lyc.load_adapter(path), strength)
            for path, strength in zip(paths, (0.5, -1.0), strict=True)
        ]
    )
    lyc.merge_checkpoint(tmp_path / "model.safetensors", stack, tmp_path / "baked.safetensors")
    factor, scale = tensors["0.singlora_A"].double(), 2.0 / 3
    change = scale * factor[:12] @ factor.T
    other = scale * lora["0.lora_up.weight"].double() @ lora["0.lora_down.weight"].double()
    baked = load_file(tmp_path / "baked.safetensors")["0.weight"]
    torch.testing.assert_close(baked, model[0].weight + 0.5 * change - other, rtol=1e-6, atol=1e-6)

    network = lyc.create_lycoris(model, weights=paths[0])
    network.apply_to()
    x = torch.randn(5, 18).double()
    torch.testing.assert_close(
        model[0](x), x @ (model[0].weight + change).T + model[0].bias, rtol=1e-5, atol=1e-5
    )
    (before,) = (parameter.detach().clone() for parameter in network.parameters())
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    model(x).square().mean().backward()
    optimiser.step()
    (after,) = network.parameters()
    assert (after != before).all()
    network.save_weights(tmp_path / "trained.safetensors")
    (saved,) = lyc.load_adapter(tmp_path / "trained.safetensors").layers.values()
    assert torch.equal(saved.tensors()["singlora_a"], after)


@pytest.mark.parametrize("shape", [(12, 18), (18, 12), (14, 14)])
def test_a_fresh_one_learns_from_a_start_that_is_almost_zero(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[1], shape[0]))
    weight = model[0].weight.detach().clone()
    factor = torch.randn(max(shape), 2) / 4
    wanted = factor[: shape[0]] @ factor[: shape[1]].T
    network = lyc.create_lycoris(model, algorithm="singlora", rank=4, alpha=16.0, seed=3)
    layer = network.members["0"].layer
    assert {name: tuple(value.shape) for name, value in layer.tensors().items()} == {
        "singlora_a": (max(shape), 4)
    }
    start = layer.delta(weight).detach()
    assert 0 < start.abs().max() <= 16.0 * 1e-10 / max(shape) * (1 + 1e-6)
    network.apply_to()
    optimiser, x = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.0), torch.randn(64, shape[1])
    bias = model[0].bias.detach()
    for _ in range(200):
        optimiser.zero_grad()
        (model(x) - x @ (weight + wanted).T - bias).square().mean().backward()
        optimiser.step()
    assert (layer.delta(weight) - wanted).norm() < 0.2 * wanted.norm()


def test_rank_dropout_leaves_out_whole_columns_of_the_factor() -> None:
    """With a share of a half each column's part of the change is left out or doubled."""
    torch.manual_seed(0)
    factor, model = torch.randn(12, 2), nn.ModuleDict({"layer": nn.Linear(12, 8, bias=False)})
    file = {"layer.singlora_A": factor, "layer.alpha": torch.tensor(2.0)}
    network = lyc.create_lycoris(model, weights=lyc.adapter_of_tensors(file, name="x"), rank_dropout=0.5)
    x, layer = torch.randn(5, 12), model["layer"]
    plain = layer(x)
    network.apply_to()
    parts = [x @ torch.outer(column[:8], column).T for column in factor.T]
    kept = [(p, q) for p in (0.0, 2.0) for q in (0.0, 2.0)]
    met: set[int] = set()
    for _ in range(40):
        change = layer(x) - plain
        wanted = [p * parts[0] + q * parts[1] for p, q in kept]
        (index,) = [n for n, each in enumerate(wanted) if torch.allclose(change, each, atol=1e-4)]
        met.add(index)
    assert met == {0, 1, 2, 3}
    network.eval()
    torch.testing.assert_close(layer(x) - plain, parts[0] + parts[1])


def test_a_scale_within_the_factor_is_another_change() -> None:
    """The formula has the factor twice: twice the factor is four times the change, not twice."""
    factor = torch.randn(18, 3)
    layer = ALGORITHMS["singlora"].load({"singlora_A": factor, "alpha": torch.tensor(6.0)})
    other = ALGORITHMS["singlora"].load({"singlora_A": 2 * factor, "alpha": torch.tensor(3.0)})
    assert difference(layer, other) == "scale 1, not 2"
    assert difference(layer, layer.with_tensors({"singlora_a": factor.clone()})) is None
