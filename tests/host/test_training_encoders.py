"""Text encoders of every kind that the host has: exact gradients, and a training of some beside a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, patcher
from torch import Tensor
from trainable import chained, clip_with_words, distance, fill, gradients, module, tiny, train, unchanged

from tests.harness import zoo

pytestmark = pytest.mark.host

KEYS = {"clip_l": "l", "clip_g": "g", "clip_h": "h"}
"""The host's names for the tokens of encoders, where they differ from the names of the encoders."""
PADDED = 77
"""The number of tokens for CLIP, which has a fixed number of places."""
NOT_ENCODED = {"SD3": "it pads to the width of the real T5"}
"""Tiny encoders that cannot run, and why not. All others run."""


def tokens(name: str) -> dict[str, list[list[tuple[int, float]]]]:
    """Some tokens of a tiny vocabulary for each of the encoders."""
    draw = torch.Generator().manual_seed(4)
    found: dict[str, list[list[tuple[int, float]]]] = {}
    for encoder in zoo.ENCODERS[name].configs:
        numbers = torch.randint(3, 50, (PADDED if "clip" in encoder else 9,), generator=draw).tolist()
        found[KEYS.get(encoder, encoder)] = [[(number, 1.0) for number in numbers]]
    # Anima's model also takes the numbers of T5's tokens, beside what is encoded.
    return found | ({"t5xxl": found["qwen3_06b"]} if name == "Anima" else {})


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of an encoding that a gradient can come from."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, dict):
        yield from (tensor for inner in value.values() for tensor in tensors_in(inner))
    elif isinstance(value, list | tuple):
        yield from (tensor for inner in value for tensor in tensors_in(inner))


@pytest.mark.parametrize("name", [name for name in zoo.ENCODERS if name not in NOT_ENCODED])
def test_every_encoder_gets_the_gradient_of_the_chain_rule(host: Host, name: str) -> None:
    """With and without checkpointing. All these encoders are known, so no operation has to be watched."""
    session, cures = module(host, "session"), module(host, "cures")
    encoders, words = zoo.make_encoders(name), tokens(name)
    assert cures.kinds_of(encoders) <= cures.NETWORKS.keys()
    with torch.no_grad():
        before = encoders.encode_token_weights(words)[0]

    def loss_of(opened: Any) -> Tensor:
        made = opened.network.encode_token_weights(words)
        loss = torch.stack([tensor.square().mean() for tensor in tensors_in(made)]).sum()
        assert torch.isfinite(loss)
        return loss

    found = []
    with unchanged(encoders):
        for checkpointing in (False, True):
            with session.opened(patcher(encoders), checkpointing=checkpointing) as opened:
                net = opened.adapted(rank=2, preset="full", seed=0).apply_to()
                fill(net)
                loss_of(opened).backward()
                found.append(gradients(net))
        with session.opened(patcher(encoders)) as opened:
            net = opened.adapted(rank=2, preset="full", seed=0)
            fill(net)
            wanted = chained(net, lambda: loss_of(opened))
    assert distance(found[1], found[0]) < 1e-6
    assert distance(found[0], wanted) < 1e-5
    with torch.no_grad():
        assert torch.equal(encoders.encode_token_weights(words)[0], before)


FITTED: dict[str, dict[str, int]] = {
    "SDXL": {"context_dim": 64, "adm_in_channels": 32 + 6 * 256},
    "Flux 1": {"in_channels": 16, "out_channels": 16, "context_in_dim": 32, "vec_in_dim": 32},
    "Qwen-Image": {"in_channels": 64, "out_channels": 16, "joint_attention_dim": 32},
    "Z-Image": {"in_channels": 16, "cap_feat_dim": 32},
}
"""Tiny models with the widths of the tiny encoders, and as many channels as their latents have."""
TEXT = "a red disc on a mat"


@pytest.mark.parametrize("name", FITTED)
def test_the_node_trains_encoders_of_each_kind(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Otherwise the zoo would cut a layer of SDXL that has these widths, and is called.
    monkeypatch.setattr(zoo, "LARGE", 250_000)
    clip, model = clip_with_words(name), patcher(tiny(name, **FITTED[name]))
    draw = torch.Generator().manual_seed(1)
    samples = torch.randn((1, model.model.latent_format.latent_channels, 8, 8), generator=draw)
    (positive,) = host.nodes.CLIPTextEncode().encode(clip, TEXT)
    given: dict[str, Any] = {"latents": [{"samples": samples}], "positive": [positive], "captions": [TEXT]}
    given |= {"steps": 2, "warmup": 0, "preset": "attn-only", "checkpointing": "off"}
    with unchanged(model.model), unchanged(clip.cond_stage_model):
        made = train(host, tmp_path, model=model, clip=clip, text_learning_rate=1e-2, **given)
    assert made["steps_done"] == 2
    layers = made["stack"].entries[0].adapter.layers
    for part in (
        "diffusion_model.",
        *(f"text_encoders.{one}.transformer." for one in zoo.ENCODERS[name].configs),
    ):
        assert any(path.startswith(part) and layer.lora_up.any() for path, layer in layers.items())
    assert not any(".visual." in path for path in layers)
    applied = host.apply(Patched(model, clip), made["stack"])
    after = host.nodes.CLIPTextEncode().encode(applied.clip, TEXT)[0][0][0]
    assert (after - positive[0][0]).norm() > 1e-3 * positive[0][0].norm()


def test_an_encoder_of_quoted_words_is_trained_and_one_of_pictures_is_not(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, configs = "HunyuanImage 2.1", {"qwen25_7b": zoo.LLAMA, "byt5_small": zoo.T5}
    kind = zoo.Encoders("comfy.text_encoders.hunyuan_image", "HunyuanImageTEModel", configs)
    monkeypatch.setitem(zoo.ENCODERS, name, kind)
    clip = clip_with_words(name)
    with module(host, "").opened(clip.patcher) as session:
        encoder = module(host, "texts").TextEncoder(clip, session, None, torch.device("cpu"))
        paths = set(encoder.adapted(rank=2, preset="attn-only").members)
    assert {path.partition(".transformer.")[0] for path in paths} == {"qwen25_7b", "byt5_small"}
    assert not any(".visual." in path for path in paths)


def test_encoders_without_gradients_are_refused_by_name(host: Host, tmp_path: Path) -> None:
    clip, model = clip_with_words("Flux 1"), patcher(tiny("Flux 1", **FITTED["Flux 1"]))
    given: dict[str, Any] = {"latents": [{"samples": torch.ones(1, 16, 8, 8)}], "captions": [TEXT]}
    given["positive"] = [host.nodes.CLIPTextEncode().encode(clip, TEXT)[0]]
    encode = clip.cond_stage_model.encode_token_weights
    clip.cond_stage_model.encode_token_weights = torch.no_grad()(encode)
    with pytest.raises(
        host.ops.TrainError, match=r"clip.*cannot be trained.*FluxClipModel.*CLIPTextModel, T5"
    ):
        train(host, tmp_path, model=model, clip=clip, steps=1, **given)
