"""Models that keep something of a pass for the next one, with adapters that are applied in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosting import Host, Patched, patcher
from trainable import tiny

pytestmark = pytest.mark.host


@pytest.mark.parametrize("mode", ["merge", "bypass"])
def test_a_text_that_was_seen_with_other_weights_is_seen_anew(host: Host, mode: str) -> None:
    """HiDream-O1 keeps keys and values of a text, by the text alone."""
    model = tiny("HiDream-O1")
    base = patcher(model)
    init, draw = host.ops.ALGORITHMS["lora"].init, torch.Generator().manual_seed(1)
    layers = {
        f"diffusion_model.language_model.layers.{number}.self_attn.{name}_proj": init(
            (16, 32), 4, 4.0, seed=number
        ).with_tensors({"lora_up": torch.randn((16, 4), generator=draw)})
        for number in range(2)
        for name in "kv"
    }
    stack = host.ops.Stack([host.ops.Entry(host.ops.Adapter.of(layers, name="test"))])
    changed = host.apply(Patched(base, None), stack, mode=mode, clip=False).model
    text = [[torch.zeros(1, 1, 32), {"text_input_ids": torch.tensor([[5, 7, 11, 13, 151_673]])}]]
    empty = {"samples": torch.zeros(1, 3, 64, 64)}

    def sampled(one: Any, *, fresh: bool) -> torch.Tensor:
        if fresh:
            model.diffusion_model.clear_kv_cache()
        with torch.inference_mode():
            (made,) = host.nodes.KSampler().sample(one, 3, 2, 1.0, "euler", "simple", text, text, empty)
        return made["samples"].clone()

    plain, other = sampled(base, fresh=True), sampled(changed, fresh=True)
    assert (other - plain).norm() > 1e-4 * plain.norm()
    assert torch.equal(sampled(base, fresh=False), plain)
    assert torch.equal(sampled(changed, fresh=False), other)
    assert torch.equal(sampled(base, fresh=False), plain)
    later = host.scheduled(stack, "0:1, 1:0", clock="steps")
    followed = host.apply(Patched(base, None), later, mode="bypass", clip=False).model
    found = sampled(followed, fresh=False)
    handle = model.diffusion_model.register_forward_pre_hook(lambda module, given: module.clear_kv_cache())
    assert torch.equal(sampled(followed, fresh=False), found) and not torch.equal(found, other)
    handle.remove()
