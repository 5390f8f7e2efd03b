"""One training step on tiny models of every architecture that the host can train."""

from __future__ import annotations

import pytest
import torch
from hosting import Host
from trainable import distance, fill, gradients, module, patcher, tiny, unchanged

from tests.harness import zoo
from tests.harness.inputs import INPUTS

pytestmark = pytest.mark.host

BESIDE = {
    "Omnigen2": 34,
    "Qwen-Image": 6,
    "Mage-Flow": 6,
    "ACE-Step": 28,
    "ACE-Step 1.5": 54,
    "Anima": 122,
    "JoyImage": 6,
}
"""How many trained tensors are on no way from these inputs to the output: the text of a last block, parts for
reference pictures, sound or other texts."""


@pytest.mark.parametrize("architecture", INPUTS)
def test_every_layer_gets_its_gradient_with_and_without_checkpointing(host: Host, architecture: str) -> None:
    if not zoo.supported(architecture):
        pytest.skip("an older host does not have it")
    session = module(host, "session")
    model = tiny(architecture)
    x, conds = INPUTS[architecture].make()
    sigma = torch.tensor([0.4, 0.7])
    found = []
    with unchanged(model):
        for checkpointing in (False, True):
            with session.opened(patcher(model), checkpointing=checkpointing) as opened:
                net = opened.adapted(rank=2, preset="full", seed=0).apply_to()
                fill(net)
                loss = opened.prediction(x, sigma, conds).square().mean()
                assert torch.isfinite(loss)
                loss.backward()
                if checkpointing:
                    assert opened.blocks >= 2
                else:
                    bare = [parameter for parameter in net.parameters() if parameter.grad is None]
                    assert len(bare) == BESIDE.get(architecture, 0)
                found.append(gradients(net))
    # Not bitwise: a sum over several uses of a tensor is made in another order.
    assert distance(found[1], found[0]) < 1e-6


def test_the_cures_are_listed_for_the_networks_that_need_fewer(host: Host) -> None:
    """The list of networks that write over nothing has no name that the test above does not try."""
    cures = module(host, "cures")
    tried = {
        type(tiny(architecture).diffusion_model).__name__
        for architecture in INPUTS
        if zoo.supported(architecture)
    }
    assert tried >= cures.WRITES_NOTHING
