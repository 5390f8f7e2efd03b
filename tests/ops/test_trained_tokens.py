"""Tokens that PEFT trained: read, merged, trained and written, compared with PEFT."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from networks import move
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lycoris_ops as lyc

IDS = torch.tensor([[0, 1, 4, 8], [4, 2, 7, 1]])
BESIDE = peft.LoraConfig(r=2, target_modules=["q"], trainable_token_indices={"words": [4, 1], "head": [8]})
CONFIGS: dict[str, Any] = {
    "beside": BESIDE,
    "alone": peft.TrainableTokensConfig(token_indices=[4, 1], target_modules=["words"]),
}


class Model(nn.Module):
    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.q = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.q(self.words(ids)))


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS)


def made(folder: Path, config: Any) -> Tensor:
    """Write an adapter with PEFT, and return the output of the model with it."""
    model = peft.get_peft_model(Model(), config)
    move(model, 1.0)
    model.save_pretrained(str(folder))
    return output(model)


@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_are_read_merged_and_written(kind: str, tmp_path: Path) -> None:
    wanted = made(tmp_path / "theirs", CONFIGS[kind])
    adapter = lyc.load_adapter(tmp_path / "theirs")
    assert not adapter.unused_keys and not adapter.unreadable
    model = Model()
    own = {key: value.clone() for key, value in model.state_dict().items()}
    network = lyc.create_lycoris(model, weights=adapter).apply_to()
    torch.testing.assert_close(output(model), wanted)
    network.merge_to()
    torch.testing.assert_close(output(model), wanted)
    kept = [row for row in range(9) if row not in (4, 1)]
    assert torch.equal(model.words.weight[kept], own["words.weight"][kept])
    network.save_weights(tmp_path / "plain.safetensors")
    again = lyc.load_adapter(tmp_path / "plain.safetensors")
    lyc.save_adapter(adapter, tmp_path / "ours", "peft")
    in_peft = peft.PeftModel.from_pretrained(Model(), str(tmp_path / "ours"))
    torch.testing.assert_close(output(in_peft), wanted)
    model = Model()
    lyc.create_lycoris(model, weights=again).apply_to()
    torch.testing.assert_close(output(model), wanted)


def test_tokens_are_trained_as_peft_trains_them(tmp_path: Path) -> None:
    def train(model: nn.Module, parameters: Any) -> None:
        optimiser = torch.optim.SGD(parameters, 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten()).backward()
            optimiser.step()

    config = peft.TrainableTokensConfig(token_indices=[4, 1], target_modules=["words"])
    theirs = peft.get_peft_model(Model(), config)
    train(theirs, [one for one in theirs.parameters() if one.requires_grad])
    model = Model()
    network = lyc.create_lycoris(model, include="words", tokens=[4, 1]).apply_to()
    assert sum(one.numel() for one in network.parameters()) == 12
    train(model, network.parameters())
    torch.testing.assert_close(output(model), output(theirs))
    assert network.clip_weight_norm(1e-3) == 1
    wanted = output(model)
    change = network.to_adapter().layer("base_model.model.words").delta(model.words.weight.detach())
    torch.testing.assert_close(float(change.norm()), 1e-3, rtol=1e-3, atol=0)
    network.save_weights(tmp_path / "out", dialect="peft")
    in_peft = peft.PeftModel.from_pretrained(Model(), str(tmp_path / "out"))
    torch.testing.assert_close(output(in_peft), wanted)


def llama(*, tied: bool) -> Any:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    heads: Any = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_tokens_of_an_embedding_change_a_head_that_is_tied_to_it(tied: bool, tmp_path: Path) -> None:
    def train(model: Any, parameters: Any) -> Tensor:
        optimiser = torch.optim.SGD(parameters, 0.5)
        for _ in range(3):
            optimiser.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimiser.step()
        return logits(model)

    tokens: Any = {"embed_tokens": [4, 1], "lm_head": [4, 1]} if tied else [4, 1]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=tokens)
    theirs: Any = peft.get_peft_model(llama(tied=tied), config).eval()
    deltas = [one for name, one in theirs.named_parameters() if "trainable_tokens_delta" in name]
    wanted = train(theirs, deltas)
    theirs.save_pretrained(tmp_path / "theirs")
    model = llama(tied=tied)
    base, before = logits(model), model.lm_head.weight.clone()
    model.save_pretrained(tmp_path / "base")
    network = lyc.create_lycoris(model, include="*embed_tokens", tokens=[4, 1]).apply_to()
    torch.testing.assert_close(train(model, network.parameters()), wanted)
    assert ("its tokens are changed in both" in network.report) == tied
    network.save_weights(tmp_path / "ours", dialect="peft")
    network.restore()
    assert torch.equal(logits(model), base)
    in_peft = peft.PeftModel.from_pretrained(llama(tied=tied), str(tmp_path / "ours"))
    torch.testing.assert_close(logits(in_peft), wanted)
    read = lyc.create_lycoris(model, weights=tmp_path / "theirs").apply_to()
    torch.testing.assert_close(logits(model), wanted)
    read.merge_to()
    torch.testing.assert_close(logits(model), wanted)
    assert torch.equal(model.lm_head.weight, before) != tied
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(tmp_path / "theirs"))])
    lyc.merge_checkpoint(tmp_path / "base", stack, tmp_path / "merged", strict=True)
    torch.testing.assert_close(logits(LlamaForCausalLM.from_pretrained(tmp_path / "merged")), wanted)


def test_tokens_that_cannot_be_placed_are_an_error(tmp_path: Path) -> None:
    made(tmp_path, BESIDE)
    place = tmp_path / "adapter_config.json"
    config = json.loads(place.read_text())
    for rows, message in (
        ([4], "1 numbers; expected 2, for .*words.*delta"),
        ([4, 4], "the values of set_rows_at are not the numbers of different rows"),
        ([4, 9], "row 9 of 9.*expected 10 rows"),
        (["4"], "no usable number in the entry 'words'"),
    ):
        place.write_text(json.dumps({**config, "trainable_token_indices": {"words": rows, "head": [8]}}))
        with pytest.raises(lyc.LycorisError, match=message):
            lyc.create_lycoris(Model(), weights=tmp_path)
    place.write_text(json.dumps(config))
    with pytest.raises(
        lyc.LycorisError, match=re.escape("changed in only one of them (found the weight of words")
    ):
        lyc.create_lycoris(Model(tied=True), include="head", tokens=[1]).apply_to()
    place.unlink()
    (why, _) = lyc.load_adapter(tmp_path).unreadable.values()
    assert why.startswith("it sets rows, and PEFT's adapter_config.json")
