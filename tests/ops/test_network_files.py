"""A network that is made from a file which diffusers or PEFT wrote for the very same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import small_unet
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import lycoris_ops as lyc

FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (2, 2, 4),
    "guidance_embeds": False,
}


def flux() -> nn.Module:
    import diffusers

    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(**FLUX).eval()


def of_unet(model: nn.Module) -> Tensor:
    latent, text = torch.randn(1, 4, 8, 8, generator=seeded()), torch.randn(1, 3, 16, generator=seeded())
    return model(latent, 3, text).sample


def of_flux(model: nn.Module) -> Tensor:
    return model(
        torch.randn(1, 4, 4, generator=seeded()),
        torch.randn(1, 3, 8, generator=seeded()),
        torch.randn(1, 8, generator=seeded()),
        torch.tensor([0.5]),
        torch.zeros(4, 3),
        torch.zeros(3, 3),
    ).sample


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def filled(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2, generator=seeded())


@pytest.mark.parametrize("writer", ["diffusers", "peft"])
@pytest.mark.parametrize(("make", "run"), [(small_unet, of_unet), (flux, of_flux)], ids=["unet", "flux"])
def test_names_without_the_prefix_that_their_model_implies(
    tmp_path: Path, make: Callable[[], Any], run: Callable[[nn.Module], Tensor], writer: str
) -> None:
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v", "conv1", "proj_mlp"])
    theirs = make()
    if writer == "diffusers":
        theirs.add_adapter(config)
        filled(theirs)
        theirs.save_lora_adapter(tmp_path)
    else:
        theirs = get_peft_model(theirs, config).eval()
        filled(theirs)
        theirs.save_pretrained(tmp_path)
    ours = make()
    plain = run(ours)
    network = lyc.create_lycoris(ours, weights=tmp_path)
    network.apply_to()
    network.eval()
    wanted, found = run(theirs), run(ours)
    assert (wanted - plain).norm() > 0.01 * plain.norm()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    # Written again, the file is for the pipeline, and it goes on from there.
    path = network.save_weights(tmp_path / "ours.safetensors", "diffusers").path
    other = lyc.create_lycoris(make(), weights=path)
    assert other.members.keys() == network.members.keys()


def test_the_weight_of_the_base_beside_an_embedding_must_be_the_models(tmp_path: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )

    def llama() -> Any:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()

    theirs = get_peft_model(
        llama(), LoraConfig(r=2, target_modules=["embed_tokens", "lm_head", "q_proj"])
    ).eval()
    filled(theirs)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    adapter = lyc.load_adapter(tmp_path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert key in adapter.unused_keys and not adapter.unreadable
    ours, tokens = llama(), torch.arange(8)[None]
    network = lyc.create_lycoris(ours, weights=tmp_path)
    network.apply_to()
    network.eval()
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert len(network.members) == 3 and not network.notes
    strange = llama()
    strange.get_input_embeddings().weight.data[3] += 1.0
    with pytest.raises(lyc.MatchError, match=r"embed_tokens\.base_layer\.weight: the file has a weight of"):
        lyc.create_lycoris(strange, weights=tmp_path)


def test_layers_of_another_part_are_left_out_and_named() -> None:
    names = ("lora_unet_first", "lora_te_text_model_encoder_layers_0_fc1")
    tensors = {
        f"{name}.lora_{end}.weight": torch.ones(shape)
        for name in names
        for end, shape in (("up", (4, 2)), ("down", (2, 6)))
    }
    both = lyc.adapter_of_tensors(tensors, name="both")
    own = {key: value for key, value in tensors.items() if names[1] in key}
    text = lyc.adapter_of_tensors(own, name="text")
    model = nn.ModuleDict({"first": nn.Linear(6, 4)})
    network = lyc.create_lycoris(model, weights=both)
    assert set(network.members) == {"first"}
    assert "1 layer of both left out, for the text encoder" in network.report
    with pytest.raises(lyc.MatchError, match="all layers of the adapter are for another part"):
        lyc.create_lycoris(model, weights=text)
    layers = nn.ModuleList([nn.ModuleDict({"fc1": nn.Linear(6, 4)})])
    encoder = nn.ModuleDict({"encoder": nn.ModuleDict({"layers": layers})})
    for adapter in (both, text):
        of_text = lyc.create_lycoris(encoder, weights=adapter, prefix="text_model.")
        assert set(of_text.members) == {"encoder.layers.0.fc1"}
