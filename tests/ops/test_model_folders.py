"""Models in several files and in folders: read, merged into and written as transformers has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lycoris_ops as lyc
from lycoris_ops.__main__ import main

SIZES: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in shards, an adapter by PEFT, and the model with it merged by PEFT."""
    home = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2))
    model.save_pretrained(home / "base", max_shard_size="20KB")
    (home / "base" / "tokenizer.json").write_text("{}")
    (home / "base" / "notes.gguf").write_text("not copied")
    adapted = get_peft_model(
        model, LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj"])
    )
    adapted.save_pretrained(str(home / "adapter"))
    merged: Any = adapted.merge_and_unload
    merged().save_pretrained(home / "tuned", max_shard_size="20KB")
    return home


def stack(home: Path) -> lyc.Stack:
    return lyc.Stack([lyc.Entry(lyc.load_adapter(home / "adapter" / "adapter_model.safetensors"))])


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def test_a_folder_is_merged_into_as_transformers_reads_it(home: Path, tmp_path: Path) -> None:
    base, out = home / "base", tmp_path / "Llama-3.1 merged"
    assert len(list(base.glob("*.safetensors"))) > 2
    done: list[tuple[int, int]] = []
    result = lyc.merge_checkpoint(base, stack(home), out, progress=lambda *now: done.append(now))
    assert result.path == str(out) and done[-1][0] == done[-1][1] == result.size
    assert torch.allclose(logits(out), logits(home / "tuned"), atol=1e-5)
    assert (logits(out) - logits(base)).abs().max() > 0.01
    assert {file.name for file in out.iterdir()} == {file.name for file in base.iterdir()} - {"notes.gguf"}
    before, after = (json.loads((at / "model.safetensors.index.json").read_text()) for at in (base, out))
    assert after == before
    for name in set(before["weight_map"].values()):
        with safe_open(out / name, "pt") as file:
            assert json.loads(file.metadata()["lycoris_recipe"])["base"] == "base"
    with pytest.raises(lyc.WriteError, match="would be lost"):
        lyc.merge_checkpoint(base, stack(home), base)
    with pytest.raises(lyc.WriteError, match="there is a file of that name"):
        lyc.merge_checkpoint(base, stack(home), out, overwrite=False)


def test_what_is_written_follows_the_name(home: Path, tmp_path: Path) -> None:
    index = home / "base" / "model.safetensors.index.json"
    lyc.merge_checkpoint(index, stack(home), tmp_path / "new.safetensors.index.json")
    lyc.merge_checkpoint(index, stack(home), tmp_path / "one.safetensors", torch.bfloat16)
    wanted = load_file(tmp_path / "one.safetensors")
    assert {tensor.dtype for tensor in wanted.values()} == {torch.bfloat16}
    named = json.loads((tmp_path / "new.safetensors.index.json").read_text())["weight_map"]
    count = len(set(named.values()))
    assert set(named.values()) == {f"new-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)}
    for key, name in named.items():
        assert torch.equal(load_file(tmp_path / name)[key].bfloat16(), wanted[key])
    # A folder of one file becomes such a folder.
    (tmp_path / "single").mkdir()
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "single" / "model.safetensors")
    lyc.merge_checkpoint(tmp_path / "single", stack(home), tmp_path / "double")
    assert [file.name for file in (tmp_path / "double").iterdir()] == ["model.safetensors"]
    with pytest.raises(lyc.WriteError, match="a model in one file has no index"):
        lyc.merge_checkpoint(tmp_path / "single", stack(home), tmp_path / "x.safetensors.index.json")


def test_the_command_line_takes_folders(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, base = str(home / "adapter" / "adapter_model.safetensors"), str(home / "base")
    assert main(["bake", base, "--adapter", adapter, "-o", str(tmp_path / "out")]) == 0
    assert torch.allclose(logits(tmp_path / "out"), logits(home / "tuned"), atol=1e-5)
    extract = ["extract", base, str(tmp_path / "out"), "--size", "rank 4", "--overwrite", "-o"]
    found = str(tmp_path / "out" / "found.safetensors")
    # Beside the model, where the second one replaces the first.
    for _ in range(2):
        assert main([*extract, found]) == 0
        said = capsys.readouterr()
        assert "\nmodel-extracted: " in said.out and "error" not in said.err
    shard = next((tmp_path / "out").glob("model-*.safetensors"))
    assert main([*extract, str(shard)]) == 2 and "is a file of the model" in capsys.readouterr().err
    assert main(["inspect", found, "--model", base]) == 0
    lyc.merge_checkpoint(home / "base", lyc.Stack([lyc.Entry(lyc.load_adapter(found))]), tmp_path / "again")
    assert torch.allclose(logits(tmp_path / "again"), logits(home / "tuned"), atol=1e-4)
    small = str(tmp_path / "small.safetensors")
    assert main(["resize", found, "--base", base, "-o", small, "--size", "rank 2"]) == 0
    assert "error" not in capsys.readouterr().err


def bad_index(text: str) -> dict[str, str]:
    return {"model.safetensors.index.json": text}


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "a folder must hold one model.*neither"),
        ({"a.safetensors": "", "b.safetensors": ""}, "a folder must hold one model.*a.safetensors, b.safe"),
        ({"pytorch_model.bin": ""}, "Save the model as safetensors first"),
        (bad_index("[]"), "not the index of a model"),
        (bad_index('{"weight_map": {}}'), "no table of tensors"),
        (bad_index('{"weight_map": {"w": "../secret.safetensors"}}'), "not beside it"),
        (bad_index('{"weight_map": {"w": "C:\\\\secret.safetensors"}}'), "not beside it"),
        (bad_index('{"weight_map": {"w": 3}}'), "not beside it"),
        (bad_index('{"weight_map": {"w": "none.safetensors"}}'), "none.safetensors: there is no such file"),
    ],
)
def test_folders_that_hold_no_model_are_errors(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(lyc.FileFormatError) as caught:
        lyc.read_shapes([tmp_path])
    assert re.search(problem, str(caught.value)), str(caught.value)


def test_an_index_and_its_files_must_agree(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "m-1.safetensors")
    save_file({"b": torch.zeros(1), "a": torch.ones(1)}, tmp_path / "m-2.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    with pytest.raises(lyc.FileFormatError, match="two files hold the same tensor"):
        lyc.read_shapes([index])
    save_file({"c": torch.zeros(1)}, tmp_path / "m-2.safetensors")
    with pytest.raises(lyc.FileFormatError, match="lacks a tensor that the index lists for it"):
        lyc.read_shapes([index])
    save_file({"b": torch.full((1,), 2.0)}, tmp_path / "m-2.safetensors")
    weights = lyc.weights_of(index)
    assert weights.shapes == {"a": (1,), "b": (1,)} and weights.read("b") == 2
    save_file({"b": torch.zeros(1)}, tmp_path / "m-2.safetensors")
    with pytest.raises(lyc.FileFormatError, match="changed after it was opened"):
        weights.read("b")
