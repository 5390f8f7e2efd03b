"""Adapters of models in memory, baked into their folders, which hold other names, parts and orders.

The reference is the model itself: changed in memory, and saved by transformers or PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.bake import saved_names

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 30, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 4}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    # Experts of two tensors each, in a module of another name.
    "MixtralForCausalLM": ("MixtralConfig", {**SIZES, "num_local_experts": 3}),
    # Experts of two tensors each, all of them square.
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", {**SIZES, "num_experts": 3, "moe_intermediate_size": 16}),
    # Tensors (E, O, I) of other names.
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", {**SIZES, "num_local_experts": 3}),
    # Tensors (E, I, O), some of them square.
    "GptOssForCausalLM": (
        "GptOssConfig",
        {**SIZES, "intermediate_size": 16, "num_local_experts": 3, "head_dim": 8},
    ),
    # Other names alone.
    "ViTForImageClassification": ("ViTConfig", {**SIZES, "image_size": 8, "patch_size": 4}),
    # One tensor for queries, keys, values and a gate.
    "HrmTextForCausalLM": ("HrmTextConfig", SIZES),
    # Weights (I, O), one of them square, and a square embedding.
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def moved(parameters: Any) -> None:
    for one in parameters:
        one.add_(0.1 * torch.randn_like(one))


def held(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def check(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def baked(folder: Path, adapter: Path | lyc.Adapter, out: Path) -> dict[str, Tensor]:
    read = lyc.load_adapter(adapter) if isinstance(adapter, Path) else adapter
    lyc.merge_checkpoint(folder, lyc.Stack([lyc.Entry(read)]), out, strict=True)
    return held(out)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_trained_in_memory_is_baked_into_the_folder(name: str, tmp_path: Path) -> None:
    kind, sizes = MODELS[name]
    model: Any = getattr(transformers, name)(getattr(transformers, kind)(**sizes))
    model.save_pretrained(tmp_path / "base")
    tied = ("lm_head", "*wte") if name == "GPT2LMHeadModel" else ()
    network = lyc.create_lycoris(model, rank=2, include="*", exclude=tied, dora="output", bias=True)
    moved(network.parameters())
    network.save_weights(tmp_path / "adapter.safetensors")
    found = baked(tmp_path / "base", tmp_path / "adapter.safetensors", tmp_path / "out")
    network.merge_to()
    model.save_pretrained(tmp_path / "wanted")
    check(found, held(tmp_path / "wanted"))


LORA: dict[str, Any] = {"r": 2, "lora_alpha": 3, "init_lora_weights": False}
CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig(target_modules=["c_attn", "c_proj", "c_fc"], **LORA),
    "square": peft.LoraConfig(target_modules=["attn.c_proj"], **LORA),
    "dora": peft.LoraConfig(target_modules=["c_attn", "attn.c_proj"], use_dora=True, **LORA),
    # The configuration says what the last layer was: (O, I).
    "beside-another": peft.LoraConfig(target_modules=["attn.c_proj", "score"], **LORA),
    "tokens": peft.LoraConfig(target_modules=["c_attn"], trainable_token_indices={"wte": [1, 4]}, **LORA),
    "adalora": peft.AdaLoraConfig(
        target_modules=["c_attn"], init_r=2, lora_alpha=3, total_step=9, init_lora_weights=False
    ),
    "ia3": peft.IA3Config(
        target_modules=["attn.c_proj", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"],
        init_ia3_weights=False,
    ),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", CONFIGS)
def test_pefts_adapters_of_gpt2_are_baked_as_peft_merges_them(kind: str, tmp_path: Path) -> None:
    """Into its folder, into one with the shorter names of its first files, and into a file alone."""
    settings: Any = transformers.GPT2Config
    model = transformers.GPT2ForSequenceClassification(settings(**GPT2))
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    plain = held(base)
    adapted: Any = peft.get_peft_model(model, CONFIGS[kind])
    moved(one for one in adapted.parameters() if one.requires_grad)
    adapted.save_pretrained(adapter)
    adapted.merge_and_unload().save_pretrained(tmp_path / "wanted")
    wanted = held(tmp_path / "wanted")
    check(baked(base, adapter, tmp_path / "out"), wanted)

    def short(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix("transformer."): value for key, value in tensors.items()}

    save_file(short(plain), base / "model.safetensors")
    check(baked(base, adapter, tmp_path / "short"), short(wanted))
    (tmp_path / "alone").mkdir()
    save_file(plain, tmp_path / "alone/model.safetensors")
    check(baked(tmp_path / "alone", adapter, tmp_path / "out"), wanted)


def test_what_is_extracted_from_gpt2_is_for_its_layers(tmp_path: Path) -> None:
    settings: Any = transformers.GPT2Config
    model = transformers.GPT2LMHeadModel(settings(**GPT2))
    model.save_pretrained(tmp_path / "base")
    moved(model.parameters())
    wanted = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "tuned")
    models = (tmp_path / "base", tmp_path / "tuned")
    found = lyc.extract_adapter(*models, size=lyc.Rank(32), dtype=torch.float32)
    lyc.save_adapter(found, tmp_path / "found.safetensors")
    found = lyc.load_adapter(tmp_path / "found.safetensors")
    check(baked(tmp_path / "base", found, tmp_path / "out"), held(tmp_path / "tuned"))
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    network = lyc.create_lycoris(model, weights=found)
    for path, member in network.members.items():
        change = member.layer.delta(torch.zeros(member.site.shape))
        key = member.site.key
        apart = wanted[key] - model.state_dict()[key]
        torch.testing.assert_close(member.site.oriented(apart), change, rtol=0, atol=1e-6, msg=path)


def test_settings_of_no_model_are_an_error_where_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"layer.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"], "hidden_size": "wide"}')
    factors = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4)}
    layers = {f"{name}.{end}": value for name in ("layer", "other") for end, value in factors.items()}
    lyc.save_adapter(lyc.adapter_of_tensors(layers, name="two"), tmp_path / "two.safetensors")
    del layers["other.lora_up.weight"], layers["other.lora_down.weight"]
    lyc.save_adapter(lyc.adapter_of_tensors(layers, name="one"), tmp_path / "one.safetensors")
    base = tmp_path / "model.safetensors"

    def merge(name: str) -> None:
        stack = lyc.Stack([lyc.Entry(lyc.load_adapter(tmp_path / f"{name}.safetensors"))])
        lyc.merge_checkpoint(base, stack, tmp_path / "out.safetensors")

    merge("one")
    with pytest.raises(lyc.FileFormatError, match=r"config\.json: transformers cannot build a model"):
        merge("two")
    # Settings of diffusers name no class of transformers, which takes seconds to import.
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    monkeypatch.setattr(saved_names, "_transformers", lambda: pytest.fail("transformers is imported"))
    merge("two")
