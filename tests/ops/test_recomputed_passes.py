"""Strengths that change between passes whose blocks are checkpointed."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.train import strengths

_checkpoint = cast("Any", torch.utils.checkpoint).checkpoint

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora rebuilt": {"form": "rebuilt"},
    "dora": {"dora": "output"},
    "oft": {"algorithm": "oft", "rank": 2},
}


class Blocks(nn.Module):
    """Blocks that are checkpointed where `reentrant` is not None; with `nested`, one inside the other too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.reentrant: bool | None = None
        self.nested = False

    def forward(self, x: Tensor) -> Tensor:
        if self.nested:
            return self.run(lambda x: self.each(x).tanh(), x)
        return self.each(x)

    def each(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.reentrant is None:
            return function(x)
        return _checkpoint(function, x, use_reentrant=self.reentrant)


def made(**options: Any) -> tuple[Blocks, lyc.LycorisNetwork]:
    model = Blocks()
    network = lyc.create_lycoris(model, **{"rank": 4, **options}).apply_to()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model, network


def gradients(
    model: Blocks, network: lyc.LycorisNetwork, run: Callable[[Blocks, lyc.LycorisNetwork, Tensor], Tensor]
) -> list[Tensor]:
    network.zero_grad()
    x = torch.linspace(-1, 1, 32).reshape(4, 8).requires_grad_()
    run(model, network, x).backward()
    found = [one.grad for one in network.parameters()]
    assert network.multiplier == 1.0 and x.grad is not None
    return [x.grad, *(one for one in found if one is not None)]


def two(model: Blocks, network: lyc.LycorisNetwork, x: Tensor) -> Tensor:
    with network.at(0.5):
        first = model(x).sum()
    with network.at(-1.5):
        second = model(x).square().sum()
    return first + second + model(x).exp().sum()


def preference(model: Blocks, network: lyc.LycorisNetwork, x: Tensor) -> Tensor:
    """A policy before and after its reference."""
    first = model(x)
    with torch.no_grad(), network.off():
        reference = model(x)
    return (first - reference).square().sum() + (model(-x) * reference).sum()


def inside(model: Blocks, network: lyc.LycorisNetwork, x: Tensor) -> Tensor:
    """A strength that a checkpointed part changes itself."""

    def part(x: Tensor) -> Tensor:
        x = model.blocks[0](x)
        with network.at(2 * network.multiplier):
            x = model.blocks[1](x)
        return model.blocks[2](x)

    with network.at(0.5):
        return model.run(part, x).sum()


@pytest.mark.parametrize("run", [two, preference, inside])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recomputed_pass_has_the_strength_of_its_first_run(
    kind: str, reentrant: bool, nested: bool, run: Any
) -> None:
    model, network = made(**KINDS[kind])
    wanted = gradients(model, network, run)
    assert all(one.any() for one in wanted)
    model.reentrant, model.nested = None, nested
    wanted = gradients(model, network, run)
    model.reentrant = reentrant
    found = gradients(model, network, run)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    # In another thread autograd numbers its nodes anew.
    found = []
    thread = Thread(target=lambda: found.extend(gradients(model, network, run)))
    thread.start()
    thread.join()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_models_of_transformers_recompute_at_the_strengths_of_their_passes(reentrant: bool) -> None:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    model: Any = transformers.LlamaForCausalLM(config).train()
    network = lyc.create_lycoris(model, rank=2, preset="attn-mlp").apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    ids = torch.arange(1, 13).reshape(2, 6)

    def found() -> list[Tensor | None]:
        network.zero_grad()
        with network.at(0.5):
            first = model(input_ids=ids, labels=ids).loss
        with torch.no_grad(), network.off():
            reference = model(input_ids=ids, labels=ids).loss
        (first + (model(input_ids=ids, labels=ids).loss - reference).square()).backward()
        return [one.grad for one in network.parameters()]

    wanted = found()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    torch.testing.assert_close(found(), wanted, rtol=1e-4, atol=1e-6)


def test_a_strength_that_is_not_known_any_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strengths, "KEPT", 4)
    model, network = made()
    model.reentrant = True
    loss = model(torch.ones(1, 8, requires_grad=True)).sum()
    for strength in (0.1, 0.2, 0.3, 0.4):
        with network.at(strength):
            model(torch.ones(1, 8, requires_grad=True))
    with pytest.raises(lyc.TrainError, match="not known any more"):
        loss.backward()
