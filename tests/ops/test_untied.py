"""Merging into one of two modules that share a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import lycoris_ops as lyc

IDS = torch.arange(1, 13).reshape(2, 6)
SIZES: dict[str, Any] = {"vocab_size": 32, "tie_word_embeddings": True}
NARROW: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1} | SIZES


def llama() -> Any:
    heads: Any = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**NARROW, **heads))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, **SIZES))


def bert() -> Any:
    """Its head's bias is tied by the same setting."""
    return transformers.BertForMaskedLM(transformers.BertConfig(**NARROW, num_attention_heads=2))


@pytest.mark.parametrize("where", ["head", "embedding"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_a_merge_that_unties_gives_the_model_with_its_network(make: Any, where: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make().eval()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight
    paths = {module: path for path, module in model.named_modules()}
    path = paths[head if where == "head" else embedding]
    network = lyc.create_lycoris(model, rank=2, include=path).apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
        wanted = model(IDS).logits
        with pytest.raises(lyc.LycorisError, match=r"merge_to\(untie=True\)"):
            network.merge_to()
        assert head.weight is embedding.weight and network.applied
        with network.off():
            assert (model(IDS).logits - wanted).abs().max() > 1e-2
        network.merge_to(untie=True)
        torch.testing.assert_close(model(IDS).logits, wanted, rtol=0, atol=1e-5)
        assert not model.config.tie_word_embeddings
        # As also `resize_token_embeddings` does.
        model.tie_weights()
        torch.testing.assert_close(model(IDS).logits, wanted, rtol=0, atol=1e-5)
        model.save_pretrained(tmp_path)
        again, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not told["missing_keys"]
        torch.testing.assert_close(again.eval()(IDS).logits, wanted, rtol=0, atol=1e-5)


def test_a_model_whose_passes_depend_on_the_tie_is_left_alone() -> None:
    sizes: Any = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    model: Any = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, vocab_size=32))
    network = lyc.create_lycoris(model, rank=2, include="lm_head").apply_to()
    with pytest.raises(lyc.LycorisError, match="an encoder and a decoder cannot be untied"):
        network.merge_to(untie=True)
    assert network.applied and model.lm_head.weight is model.shared.weight


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_merge_in_a_file_says_which_weights_are_tied(make: Any, tmp_path: Path) -> None:
    """The head changes with the embedding when the file is loaded."""
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path / "tied")
    embedding = model.get_input_embeddings()
    path = next(path for path, module in model.named_modules() if module is embedding)
    network = lyc.create_lycoris(model, rank=2, include=path).apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
        wanted = model(IDS).logits
    network.save_weights(tmp_path / "adapter.safetensors")
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(tmp_path / "adapter.safetensors"))])
    both = lyc.merge_checkpoint(tmp_path / "tied", stack, tmp_path / "both")
    assert list(both.shared.values()) == ["lm_head"] and "is the weight of lm_head too" in str(both)
    network.restore()
    # With weights of their own only the embedding changes.
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.save_pretrained(tmp_path / "own")
    assert not lyc.merge_checkpoint(tmp_path / "own", stack, tmp_path / "out").shared
    with torch.no_grad():
        found = type(model).from_pretrained(tmp_path / "out").eval()(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"vocab_size": ' + "[" * 100_000, "[32]", "no JSON"])
def test_any_file_may_lie_beside_a_base_as_config_json(text: str, tmp_path: Path) -> None:
    save_file({"layer.weight": torch.ones(32, 8)}, tmp_path / "base.safetensors")
    (tmp_path / "config.json").write_text(text)
    change = {"layer.lora_down.weight": torch.ones(1, 8), "layer.lora_up.weight": torch.ones(32, 1)}
    save_file(change, tmp_path / "adapter.safetensors")
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(tmp_path / "adapter.safetensors"))])
    result = lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors")
    assert result.merged == 1 and not result.shared
