"""The gradients of trained models of the host: exact under every cure, and the model as it was found."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from torch import Tensor
from trainable import distance, fill, gradients, module, tiny, unchanged

from tests.harness.inputs import FURTHER, INPUTS

pytestmark = pytest.mark.host

CURED = ("SD1.5", "Flux 1", "LTX-Video", "PixelDiT", "ERNIE-Image", "Anima")
"""A model that needs no cure, one whose norms read copies, one whose norms are functions, one of which all
operations are watched, and two with fused kernels."""


def in_double(architecture: str) -> Any:
    """A tiny model that computes in float64, as far as its own code lets it."""
    model = tiny(architecture).double()
    model.diffusion_model.dtype = torch.float64
    model.manual_cast_dtype = torch.float64
    return model


@contextmanager
def raw_output(model: Any) -> Iterator[list[Tensor]]:
    """The outputs of the network itself: the host makes float32 of them."""
    kept: list[Tensor] = []
    handle = model.diffusion_model.register_forward_hook(lambda *given: kept.append(given[-1]))
    try:
        yield kept
    finally:
        handle.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", CURED)
def test_gradients_are_those_of_central_differences_in_float64(
    host: Host, architecture: str, checkpointing: bool
) -> None:
    session = module(host, "session")
    model = in_double(architecture)
    x, conds = {**INPUTS, **FURTHER}[architecture].make()
    x, sigma = x.double(), torch.tensor([0.4, 0.7], dtype=torch.float64)
    with session.opened(patcher(model), checkpointing=checkpointing) as opened, raw_output(model) as kept:
        net = opened.adapted(rank=2, preset="full", seed=0).double().apply_to()
        fill(net)

        def loss() -> Tensor:
            opened.prediction(x, sigma, conds)
            return kept.pop().square().mean()

        loss().backward()
        own = gradients(net)
        draw = torch.Generator().manual_seed(5)
        ways = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in net.parameters()]
        step, values = 1e-4, []
        with torch.no_grad():
            for sign in (1, -2):
                for parameter, way in zip(net.parameters(), ways, strict=True):
                    parameter.add_(sign * step * way)
                values.append(float(loss()))
    found = sum(float((one * way).sum()) for one, way in zip(own, ways, strict=True))
    # Some models compute their rotary embeddings in float32.
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def gradients_of(
    session: Any,
    architecture: str,
    checkpointing: bool,
    forward: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **dropouts: float,
) -> list[Tensor]:
    """The gradients of a step. Its forward pass is computed in a context, the backward pass outside of it."""
    x, conds = INPUTS[architecture].make()
    with session.opened(patcher(tiny(architecture)), checkpointing=checkpointing) as opened:
        net = opened.adapted(rank=4, preset="attn-mlp", seed=0, **dropouts).apply_to().train()
        fill(net)
        torch.manual_seed(1)
        with forward():
            loss = opened.prediction(x, torch.tensor([0.4, 0.7]), conds).square().mean()
        loss.backward()
        return gradients(net)


def test_a_checkpointed_block_draws_the_same_dropouts_again(host: Host) -> None:
    session, dropouts = module(host, "session"), {"rank_dropout": 0.5, "module_dropout": 0.2}
    wanted, after = gradients_of(session, "Flux 1", False, **dropouts), torch.rand(())
    found = gradients_of(session, "Flux 1", True, **dropouts)
    assert distance(found, wanted) < 1e-6
    # What is drawn afterwards is the same too.
    assert torch.equal(torch.rand(()), after)
    assert distance(gradients_of(session, "Flux 1", True), wanted) > 0.1


def test_a_checkpointed_block_computes_in_the_same_dtype_again(host: Host) -> None:
    """The loss is computed in autocast, and its backward pass is not."""
    session, narrow = module(host, "session"), partial(torch.autocast, "cpu", torch.bfloat16)
    wanted, found = (gradients_of(session, "SD3", checkpointing, narrow) for checkpointing in (False, True))
    assert distance(found, wanted) < 1e-5
    assert distance(gradients_of(session, "SD3", False), wanted) > 1e-3


def test_a_weight_that_the_host_has_moved_meanwhile_stays_moved(host: Host) -> None:
    session = module(host, "session")
    with torch.inference_mode():
        model = tiny("SD3")
        before = dict(model.named_parameters())
        with session.opened(patcher(model)):
            name, moved = next(iter(model.named_parameters()))
            moved.data = moved.data.clone()
        after = dict(model.named_parameters())
    assert after[name] is moved and torch.equal(moved, before[name])
    assert all(after[other] is before[other] for other in before if other != name)


def test_a_model_that_is_loaded_in_inference_mode_is_opened_without_a_copy(host: Host) -> None:
    session = module(host, "session")
    with torch.inference_mode():
        model = tiny("Wan 2.1 t2v")
        weight = model.diffusion_model.blocks[0].self_attn.q.weight
        assert weight.is_inference()
        with unchanged(model), session.opened(patcher(model)):
            there = model.diffusion_model.blocks[0].self_attn.q.weight
            assert there.data_ptr() == weight.data_ptr() and not there.is_inference()


class Stop(BaseException):
    """As the host's own interrupt, it is no Exception."""


@pytest.mark.parametrize("when", ["forward", "backward", "outside"])
def test_the_model_is_as_it_was_after_an_interrupt(host: Host, when: str) -> None:
    """Also for another node that holds the same module, with hooks of its own."""
    session = module(host, "session")
    model = tiny("Flux 1")
    # The last block does not run again.
    block = model.diffusion_model.single_blocks[0]
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if (when, calls) in (("forward", 1), ("backward", 2)):
            raise Stop

    handle = block.linear1.register_forward_pre_hook(count)
    x, conds = INPUTS["Flux 1"].make()
    model.diffusion_model.double_blocks[0].train()
    model.diffusion_model.img_in.weight.requires_grad_(True)
    with unchanged(model), pytest.raises(Stop), session.opened(patcher(model), checkpointing=True) as opened:
        net = opened.adapted(rank=2, preset="attn-mlp", seed=0).apply_to()
        fill(net)
        opened.prediction(x, torch.tensor([0.4, 0.7]), conds).square().mean().backward()
        raise Stop
    assert calls == {"forward": 1, "backward": 2, "outside": 2}[when]
    handle.remove()


def test_what_is_kept_against_mutation_does_not_grow(host: Host) -> None:
    """PixelDiT computes a branch in its last block that the loss does not use."""
    session = module(host, "session")
    x, conds = {**INPUTS, **FURTHER}["PixelDiT"].make(1)
    alive: list[int] = []
    with session.opened(patcher(tiny("PixelDiT"))) as opened:
        net = opened.adapted(rank=2, preset="attn-mlp", seed=0).apply_to()
        for _ in range(3):
            opened.prediction(x, torch.tensor([0.4]), conds).square().mean().backward()
            gradients(net)
            gc.collect()
            alive.append(sum(isinstance(one, Tensor) for one in gc.get_objects()))
    assert alive[0] == alive[1] == alive[2]


@pytest.mark.parametrize("part", [slice(None), slice(0, 2), slice(2, 4)])
def test_what_is_written_over_in_parts_is_kept(host: Host, part: slice) -> None:
    x = torch.arange(1.0, 5.0, requires_grad=True)
    with module(host, "mutation").mutation_allowed():
        y = 3 * x
        # The square needs y, and the product a part of it.
        loss = y.square().sum() + (y[1:3] * y[2:4]).sum()
        with torch.no_grad():
            y[part] = 0
            torch.add(y, 1, out=y)
        loss.backward()
    neighbours = torch.tensor([0.0, 3.0, 2.0 + 4.0, 3.0])
    torch.testing.assert_close(x.grad, 9 * (2 * x.detach() + neighbours))
