"""The latents that a stack gives. The references are the host's own loader and the unpatched model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hosting import Host, Patched

Distance = Callable[[torch.Tensor, torch.Tensor], float]
pytestmark = pytest.mark.host
NEAR = 1e-3
"""The largest error of a latent, as a share of the effect of the adapters."""


def test_two_loras_give_the_latent_of_two_chained_loaders(
    host: Host, plain: Patched, distance: Distance
) -> None:
    theirs = plain
    for name, strength, clip in (("lora", 0.5, 0.5), ("lora_tucker", -0.4, 0.3)):
        theirs = Patched(
            *host.nodes.LoraLoader().load_lora(theirs.model, theirs.clip, host.file(name), strength, clip)
        )
    ours = host.apply(plain, host.stack(("lora", 0.5, 0.5), ("lora_tucker", -0.4, 0.3)))
    assert distance(host.latent(ours), host.latent(theirs)) <= NEAR


def test_zero_strength_and_an_empty_stack_change_no_bit(
    host: Host, plain: Patched, unpatched: torch.Tensor
) -> None:
    for stack in (host.ops.Stack(), host.stack(("lora", 0.0, 0.0), ("loha", 0.0, 0.0))):
        patched = host.apply(plain, stack)
        assert patched.model is plain.model and patched.clip is plain.clip
    (silent,) = host.run("LycorisWeightBlocks", host.stack(("lora", 1.0, 1.0)), "* = 0")
    assert torch.equal(host.latent(host.apply(plain, silent)), unpatched)


def test_a_stack_survives_clone_unload_and_reload(
    host: Host, plain: Patched, unpatched: torch.Tensor
) -> None:
    import comfy.model_management

    patched = host.apply(plain, host.stack(("lokr", 1.0, 1.0), ("loha_tucker", 0.5, 0.5)))
    latent = host.latent(patched)
    clone = Patched(patched.model.clone(), patched.clip.clone())
    assert torch.equal(host.latent(clone), latent)
    comfy.model_management.unload_all_models()
    assert torch.equal(host.latent(patched), latent)
    assert torch.equal(host.latent(plain), unpatched)
    assert torch.equal(host.latent(clone), latent)


def test_chained_applies_are_sequential_like_chained_loaders(
    host: Host, plain: Patched, distance: Distance
) -> None:
    """LoRA and LoKr do not depend on the weight, so two nodes in a row must give what one node gives."""
    once = host.apply(plain, host.stack(("lora", 0.5, 0.5), ("lokr", 0.5, 0.5)))
    twice = host.apply(host.apply(plain, host.stack(("lora", 0.5, 0.5))), host.stack(("lokr", 0.5, 0.5)))
    assert distance(host.latent(twice), host.latent(once)) <= NEAR
