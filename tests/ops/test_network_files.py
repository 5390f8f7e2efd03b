"""Networks made from files that also hold a weight of the base, or layers for another part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import lycoris_ops as lyc


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

    chosen = ["embed_tokens", "lm_head", "q_proj"]
    theirs = get_peft_model(llama(), LoraConfig(r=2, target_modules=chosen, init_lora_weights=False)).eval()
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
    network.restore()
    ours.save_pretrained(tmp_path / "base")
    stack = lyc.Stack([lyc.Entry(adapter)])
    merged = lyc.merge_checkpoint(tmp_path / "base", stack, tmp_path / "merged", strict=True)
    assert lyc.describe(merged.resolution).startswith("All of it was applied: 3 of 3 layers")
    baked = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(baked(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert not merged.strange
    strange = llama()
    strange.get_input_embeddings().weight.data[3] += 1.0
    strange.save_pretrained(tmp_path / "strange")
    said = str(lyc.merge_checkpoint(tmp_path / "strange", stack, tmp_path / "other"))
    assert "embed_tokens.weight has other values than" in said and "lm_head.weight has" not in said
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
