"""One training step on tiny models of every architecture that the host can train."""

from __future__ import annotations

import pytest
import torch
from hosting import Host
from trainable import distance, fill, gradients, module, patcher, tiny, unchanged

from tests.harness import zoo
from tests.harness.inputs import FURTHER, INPUTS, NOT_RUN

pytestmark = pytest.mark.host

BESIDE = {
    "Omnigen2": 34,
    "Qwen-Image": 6,
    "Mage-Flow": 6,
    "ACE-Step": 28,
    "ACE-Step 1.5": 54,
    "Anima": 122,
    "JoyImage": 6,
    "Lens": 8,
    "HunyuanVideo 1.5": 4,
    "PixelDiT": 8,
    "PiD": 8,
    "Wan 2.1 i2v": 4,
    "Wan camera": 10,
    "Wan HuMo": 22,
    "Wan S2V": 28,
    "Wan Animate": 14,
    "Wan SCAIL": 6,
    "Wan SCAIL 2": 8,
    "Hunyuan3D 2.1": 8,
    "Boogu": 34,
    "TripoSplat": 2,
    "LTX-2": 48,
}
"""How many trained tensors are on no way from these inputs to the output: the text of a last block, parts for
reference pictures, sound or other texts."""


ALL = {**INPUTS, **FURTHER}
TRIED: dict[str, str] = {}
"""The classes of the networks that the test below has trained, by architecture."""


@pytest.mark.parametrize(
    "architecture", [*INPUTS, *(pytest.param(name, marks=pytest.mark.soak) for name in FURTHER)]
)
def test_every_layer_gets_its_gradient_with_and_without_checkpointing(host: Host, architecture: str) -> None:
    if not zoo.supported(architecture):
        pytest.skip("an older host does not have it")
    session = module(host, "session")
    model = tiny(architecture)
    x, conds = ALL[architecture].make()
    sigma = torch.tensor([0.4, 0.7])[: len(x)]
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
    TRIED[architecture] = type(model.diffusion_model).__name__
    # Not bitwise: a sum over several uses of a tensor is made in another order.
    assert distance(found[1], found[0]) < 1e-6


def test_no_architecture_is_left_out_but_those_that_are_named() -> None:
    assert ALL.keys() | NOT_RUN.keys() == zoo.SPECIES.keys()
    assert not ALL.keys() & NOT_RUN.keys()


def test_the_networks_that_need_no_cure_were_all_tried_without_it(host: Host) -> None:
    cures = module(host, "cures")
    if TRIED.keys() >= INPUTS.keys():
        assert set(TRIED.values()) >= cures.WRITES_NOTHING
