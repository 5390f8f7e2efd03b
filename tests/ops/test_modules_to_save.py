"""Heads that PEFT saves whole: read, applied, trained and written. Norms and BOFT are written too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
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


SMALL: Any = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
TEXT: Any = {**SMALL, "vocab_size": 32, "pad_token_id": 0}
THREE: Any = {"num_labels": 3}
# The names of a class and its configuration in transformers, the modules with LoRA, and those saved whole.
HEADS: dict[str, tuple[str, Any, list[str], list[str]]] = {
    "BertForSequenceClassification": ("BertConfig", TEXT | THREE, ["query"], ["classifier"]),
    "BertForTokenClassification": ("BertConfig", TEXT | THREE, ["query"], ["classifier"]),
    "BertForQuestionAnswering": ("BertConfig", TEXT, ["query"], ["qa_outputs"]),
    "BertForMaskedLM": ("BertConfig", TEXT, ["query"], ["cls"]),
    "RobertaForSequenceClassification": ("RobertaConfig", TEXT | THREE, ["query"], ["classifier"]),
    "ElectraForSequenceClassification": (
        "ElectraConfig",
        TEXT | THREE | {"embedding_size": 16},
        ["query"],
        ["classifier"],
    ),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2, "vocab_size": 32, **THREE},
        ["q_lin"],
        ["pre_classifier", "classifier"],
    ),
    "DebertaV2ForSequenceClassification": (
        "DebertaV2Config",
        TEXT | THREE,
        ["query_proj"],
        ["pooler", "classifier"],
    ),
    "GPT2ForSequenceClassification": (
        "GPT2Config",
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "pad_token_id": 0, **THREE},
        ["c_attn"],
        ["score"],
    ),
    "ViTForImageClassification": (
        "ViTConfig",
        SMALL | THREE | {"image_size": 8, "patch_size": 4},
        ["q_proj"],
        ["classifier"],
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_usual_classes_there_and_back(name: str, tmp_path: Path) -> None:
    """By PEFT's own loader: from PEFT to PEFT, and by the documented recipe."""
    config, sizes, targets, saved = HEADS[name]
    task = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}.get(
        name.partition("For")[2]
    )

    def base() -> Any:
        torch.manual_seed(0)
        return getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()

    pictures = torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)

    def passed(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(**({"pixel_values": pictures} if name.startswith("ViT") else {"input_ids": IDS}))[0]

    def in_peft(folder: str) -> torch.Tensor:
        return passed(PeftModel.from_pretrained(base(), str(tmp_path / folder)).eval())

    # PEFT adds names to the list that it is given.
    lora = LoraConfig(r=2, target_modules=targets, modules_to_save=[*saved], task_type=task)
    theirs: Any = get_peft_model(base(), lora).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    wanted = passed(theirs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    network = lyc.create_lycoris(again := base(), weights=tmp_path / "theirs").apply_to()
    assert torch.allclose(passed(again), wanted, atol=1e-5)
    network.save_weights(tmp_path / "back", "peft", metadata={"task_type": task})
    assert torch.allclose(in_peft("back"), wanted, atol=1e-5)
    lyc.save_adapter(lyc.load_adapter(tmp_path / "theirs"), tmp_path / "converted", "peft")
    assert torch.allclose(in_peft("converted"), wanted, atol=1e-5)

    heads = [path for path in network.members if any(path.startswith(head) for head in saved)]
    include = [*(f"*{target}" for target in targets), *heads]
    kinds = {head: {"algorithm": "full"} for head in heads}
    network = lyc.create_lycoris(model := base(), rank=2, include=include, overrides=kinds, seed=0)
    move(network.apply_to())
    network.save_weights(tmp_path / "ours", "peft", metadata={"task_type": task})
    assert torch.allclose(in_peft("ours"), passed(model), atol=1e-5)
    assert not torch.allclose(passed(model), passed(base()), atol=1e-2)


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
