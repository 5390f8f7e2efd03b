"""Heads that PEFT saves whole: read, applied, trained and written. Norms and BOFT are written too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import move
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import lycoris_ops as lyc

SIZES: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
IDS = torch.arange(1, 13).reshape(2, 6)


def classifier() -> Any:
    torch.manual_seed(0)
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 3, "pad_token_id": 0}
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, **heads)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and an adapter for it by PEFT, with LoRA and a new head."""
    home = tmp_path_factory.mktemp("heads")
    classifier().save_pretrained(home / "base")
    config = LoraConfig(
        r=4,
        init_lora_weights=False,
        target_modules=["q_proj"],
        modules_to_save=["score"],
        task_type="SEQ_CLS",
    )
    base: Any = LlamaForSequenceClassification.from_pretrained(home / "base")
    model: Any = get_peft_model(base, config)
    with torch.no_grad():
        model.base_model.model.score.modules_to_save["default"].weight.normal_()
    torch.save(logits(model.eval()), home / "wanted.pt")
    model.save_pretrained(str(home / "adapter"))
    return home


def test_a_head_that_peft_saved_is_read_and_set(home: Path) -> None:
    adapter = lyc.load_adapter(home / "adapter")
    assert adapter.unused_keys == () and adapter.info["base_model.model.score"].algorithm.algorithm == "full"
    model = classifier()
    before = model.score.weight.detach().clone()
    network = lyc.create_lycoris(model, weights=adapter).apply_to()
    wanted = torch.load(home / "wanted.pt")
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    network.restore()
    assert torch.equal(model.score.weight, before)


def test_what_is_written_for_peft_is_loaded_by_its_own_classes(home: Path, tmp_path: Path) -> None:
    source = lyc.load_adapter(home / "adapter")
    lyc.save_adapter(source, tmp_path / "again", "peft", model=shapes())
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score"]
    assert (config["base_model_name_or_path"], config["task_type"]) == (str(home / "base"), "SEQ_CLS")
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "again", num_labels=3)
    assert torch.allclose(logits(model.eval()), torch.load(home / "wanted.pt"), atol=1e-5)


def test_a_head_that_is_tied_to_a_saved_embedding_is_saved_with_it(tmp_path: Path) -> None:
    """PEFT's `ensure_weight_tying`: `modules_to_save` names the embedding alone, and the file has both."""

    def tied() -> Any:
        torch.manual_seed(0)
        heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
        return LlamaForCausalLM(LlamaConfig(**SIZES, **heads)).eval()

    saved: Any = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    model: Any = get_peft_model(tied(), LoraConfig(target_modules=["q_proj"], **saved))
    with torch.no_grad():
        model.get_input_embeddings().modules_to_save["default"].weight.normal_()
    wanted = logits(model.eval())
    model.save_pretrained(str(tmp_path / "theirs"))
    network = lyc.create_lycoris(again := tied(), weights=tmp_path / "theirs").apply_to()
    assert torch.allclose(logits(again), wanted, atol=1e-4)
    network.save_weights(tmp_path / "ours", dialect="peft")
    assert torch.allclose(logits(PeftModel.from_pretrained(tied(), tmp_path / "ours")), wanted, atol=1e-4)


def shapes() -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in classifier().state_dict().items()}


def test_lora_tokens_and_a_whole_head_are_one_folder_for_peft(home: Path, tmp_path: Path) -> None:
    model = classifier()
    kinds = {"score": {"algorithm": "full"}, "*embed_tokens": {"tokens": [4, 1]}}
    network = lyc.create_lycoris(
        model, include=["*q_proj", "*embed_tokens", "score"], rank=4, overrides=kinds
    ).apply_to()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(IDS).logits, torch.tensor([0, 2])).backward()
        optimiser.step()
    for path, member in network.members.items():
        member.multiplier = 0.0
        alone, member.multiplier = logits(model), 1.0
        # Each of the three counts.
        assert not torch.allclose(alone, logits(model), atol=1e-4), path
    wanted = logits(model)
    told = {"base_model_name_or_path": str(home / "base"), "task_type": "SEQ_CLS"}
    network.save_weights(tmp_path / "out", dialect="peft", metadata=told)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score"] and config["trainable_token_indices"]
    in_peft = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3)
    assert isinstance(in_peft, PeftModel)
    assert torch.allclose(logits(in_peft.eval()), wanted, atol=1e-6)
    network.restore()
    lyc.create_lycoris(model, weights=tmp_path / "out").apply_to()
    assert torch.allclose(logits(model), wanted, atol=1e-6)


@pytest.mark.parametrize("include", ["*norm", ("*q_proj", "*norm")], ids=["alone", "beside"])
def test_norms_are_written_for_peft_as_values(include: Any, tmp_path: Path) -> None:
    model = classifier()
    network = lyc.create_lycoris(model, include=include, rank=2, seed=0).apply_to()
    move(network)
    network.save_weights(tmp_path / "out", dialect="peft")
    in_peft = PeftModel.from_pretrained(classifier(), str(tmp_path / "out"))
    assert torch.allclose(logits(in_peft.eval()), logits(model), atol=1e-6)


def test_a_boft_of_a_convolution_is_written_as_peft_has_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 6)), torch.randn(2, 4, 4, 4)
    kept = {key: value.clone() for key, value in base.state_dict().items()}
    network = lyc.create_lycoris(base, algorithm="boft_peft", rank=4, seed=0).apply_to()
    move(network)
    with torch.no_grad():
        wanted = base(x)
    network.save_weights(tmp_path / "out", dialect="peft")
    network.restore()
    base.load_state_dict(kept)
    in_peft = PeftModel.from_pretrained(base, str(tmp_path / "out"))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        assert torch.allclose(in_peft.eval()(x), wanted, atol=1e-5)
    network = lyc.create_lycoris(nn.Sequential(nn.Conv1d(4, 6, 3)), algorithm="boft_peft", rank=4, seed=0)
    with pytest.raises(lyc.LayerError, match="BOFT only for linear layers and 2-D convolutions"):
        network.save_weights(tmp_path / "no", dialect="peft")
