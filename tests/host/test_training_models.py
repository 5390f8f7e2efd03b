"""One training step on tiny models of every architecture that the host can train."""

from __future__ import annotations

import pytest
import torch
from hosting import Host, patcher
from trainable import chained, distance, fill, gradients, module, tiny, unchanged

from tests.harness import zoo
from tests.harness.inputs import FURTHER, INPUTS

pytestmark = pytest.mark.host

ALL = {**INPUTS, **FURTHER}


@pytest.mark.parametrize(
    "architecture", [*INPUTS, *(pytest.param(name, marks=pytest.mark.soak) for name in FURTHER)]
)
def test_every_layer_gets_the_gradient_of_the_chain_rule(host: Host, architecture: str) -> None:
    """With and without checkpointing. The model is the same afterwards, and computes the same."""
    session = module(host, "session")
    model = tiny(architecture)
    x, conds = ALL[architecture].make()
    sigma = torch.tensor([0.4, 0.7])[: len(x)]
    found = []

    def sampled() -> torch.Tensor:
        """What a sampler gets of the model."""
        with torch.no_grad():
            return session.Session(patcher(model)).prediction(x, sigma, conds)

    before = sampled()
    model.current_patcher = held = patcher(model)
    with unchanged(model):
        for checkpointing in (False, True):
            with session.opened(patcher(model), checkpointing=checkpointing) as opened:
                net = opened.adapted(rank=2, preset="full", seed=0).apply_to()
                fill(net)
                loss = opened.prediction(x, sigma, conds).square().mean()
                assert torch.isfinite(loss)
                loss.backward()
                if checkpointing:
                    assert opened.blocks >= 1
                found.append(gradients(net))
        with session.opened(patcher(model)) as opened:
            # The usual layers are there.
            family = module(host, "").trained_family(model)
            opened.adapted(rank=2, preset=family.preset, include=family.include)
        # The same by the model's own layers, with changed weights and nothing beside them.
        with session.opened(patcher(model)) as opened:
            net = opened.adapted(rank=2, preset="full", seed=0)
            fill(net)
            wanted = chained(net, lambda: opened.prediction(x, sigma, conds).square().mean())
    assert model.current_patcher is held
    # Not bitwise: a sum over several uses of a tensor is made in another order.
    assert distance(found[1], found[0]) < 1e-6
    assert distance(found[0], wanted) < 1e-5
    assert torch.equal(sampled(), before)


def test_no_architecture_is_left_out() -> None:
    assert ALL.keys() == zoo.SPECIES.keys()


def test_the_networks_that_need_less_than_every_cure_are_all_tried(host: Host) -> None:
    families = host.module("lycoris_nodes.host.families")
    tried = {type(tiny(name).diffusion_model).__name__ for name in ALL}
    assert tried >= families.NETWORKS.keys() - families.text_encoders.FAMILY.networks.keys()


def test_families_name_classes_of_the_host(host: Host) -> None:
    import comfy.model_base
    import comfy.supported_models

    if not all(map(zoo.supported, zoo.SPECIES)):
        pytest.skip("an older host does not have all")
    kinds = host.module("lycoris_nodes.host.families").KINDS
    assert kinds.keys() <= {*vars(comfy.model_base), *vars(comfy.supported_models)}


@pytest.mark.parametrize("name", [*zoo.NOT_GENERATORS, "LotusD", "WAN21_FlowRVS"])
def test_a_model_that_does_not_denoise_is_refused_by_name(host: Host, name: str) -> None:
    import comfy.supported_models

    kind = getattr(comfy.supported_models, name, None)
    if kind is None:
        pytest.skip("an older host does not have it")
    alike = zoo.SPECIES.get(zoo.SAME_LAYERS.get(name, ""))
    config = kind({**kind.unet_config, **(alike.settings() if alike else {})})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("meta"))
    with pytest.raises(host.ops.TrainError, match=type(model).__name__):
        module(host, "").trained_family(model)
