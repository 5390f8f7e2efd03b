"""Several networks on one model: in any order, each adds its change of the model's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import move
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

import lycoris_ops as lyc

DORA: Any = {"dora": "output"}
PAIRS: dict[str, tuple[Any, Any]] = {
    "lora and dora": ({"form": "bypass"}, {**DORA, "form": "rebuilt"}),
    "rebuilt lora and dora": ({"form": "rebuilt"}, {**DORA, "form": "bypass"}),
    "dora and dora": ({**DORA, "form": "bypass"}, {**DORA, "form": "rebuilt"}),
    "dora of inputs and oft": (
        {"dora": "input", "form": "bypass"},
        {"algorithm": "oft", "form": "rebuilt"},
    ),
    "oft and dora": ({"algorithm": "oft", "form": "bypass"}, {**DORA, "form": "rebuilt"}),
    "rebuilt dora and ia3": ({**DORA, "form": "rebuilt"}, {"algorithm": "ia3", "form": "rebuilt"}),
}
MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 8), (5, 12)),
    "convolution": (lambda: nn.Conv2d(12, 8, 3, padding=1), (2, 12, 6, 5)),
}


def drawn(network: lyc.LycorisNetwork, seed: int) -> lyc.LycorisNetwork:
    move(network, 0.3, torch.Generator().manual_seed(seed))
    return network


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_two_are_switched_saved_and_taken_away_in_any_order(
    pair: tuple[Any, Any], name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make, size = MODULES[name]
    model, x = nn.Sequential(make()), torch.randn(size)
    module: Any = model[0]
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    networks = [
        drawn(lyc.create_lycoris(model, rank=2, seed=n, **options), n) for n, options in enumerate(pair)
    ]
    layers = [network.members["0"].layer for network in networks]

    @torch.no_grad()
    def wanted(*strengths: float) -> Tensor:
        parts = [(layer, strength) for layer, strength in zip(layers, strengths, strict=True) if strength]
        other = make()
        other.weight.copy_(lyc.patch_(weight.clone(), parts))
        other.bias.copy_(bias)
        return other(x)

    def check(*strengths: float) -> None:
        with torch.no_grad():
            torch.testing.assert_close(model(x), wanted(*strengths), atol=1e-4, rtol=1e-4)

    for first, second in ((0, 1), (1, 0)):
        networks[first].apply_to()
        networks[second].apply_to()
        check(1, 1)
        with networks[0].at(0.5), networks[1].at(-1.0):
            check(0.5, -1)
        with networks[0].off():
            check(0, 1)
        with networks[1].off():
            check(1, 0)
        networks[first].restore()
        check(*(number == second for number in range(2)))
        networks[first].apply_to()
        check(1, 1)
        for number, network in enumerate(networks):
            network.save_weights(tmp_path / f"{number}.safetensors")
            saved = lyc.load_adapter(tmp_path / f"{number}.safetensors").layers
            (held,) = (one.tensors() for one in saved.values())
            assert all(torch.equal(held[key], value) for key, value in layers[number].tensors().items())
        networks[second].restore()
        networks[first].restore()
        assert torch.equal(module.weight, weight) and module.weight.requires_grad
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_two_on_the_experts_of_one_parameter() -> None:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    heads: Any = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    model: Any = MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()
    ids, stack = torch.arange(6)[None], model.model.layers[0].mlp.experts
    networks = [
        drawn(lyc.create_lycoris(model, rank=2, include="*down_proj*", dora=dora, seed=n), n)
        for n, dora in enumerate(("output", "input"))
    ]
    found: list[Tensor] = []
    for order in (networks, networks[::-1]):
        for network in order:
            network.apply_to()
        with torch.no_grad():
            found.append(model(ids).logits)
        for network in order:
            network.restore()
    with torch.no_grad():
        for number in range(2):
            parts = [
                (member.layer, 1.0)
                for network in networks
                for member in network.members.values()
                if member.site.expert == number
            ]
            lyc.patch_(stack.down_proj[number], parts)
        wanted = model(ids).logits
    for logits in found:
        assert torch.allclose(logits, wanted, atol=1e-5)
