"""What a file says of itself, and adapters as plain tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import unet
from safetensors.torch import load_file, save_file
from written import read

import lycoris_ops as lyc

LAYER = "lora_unet_middle_block_1_proj_in"
TENSORS = {f"{LAYER}.lora_down.weight": torch.randn(4, 6), f"{LAYER}.lora_up.weight": torch.randn(5, 4)}


def told(folder: Path, **metadata: object) -> lyc.About:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    save_file(TENSORS, folder / "x.safetensors", texts)
    return lyc.about(lyc.peek_adapter(folder / "x.safetensors"))


def test_what_tools_write_is_told(tmp_path: Path) -> None:
    counts = {"10_a": {"alice": 20, "hat": 7}, "5_b": {"alice": 3, "bob": 9}}
    found = told(
        tmp_path,
        ss_tag_frequency=counts,
        ss_dataset_dirs={"10_a": {"img_count": 20}, "5_b": {"img_count": 9}},
        ss_base_model_version="sdxl_base_v1-0",
        ss_sd_model_name="base.safetensors",
        ss_training_started_at="1700000000.5",
        ss_training_comment="None",
        ss_steps="100",
    )
    assert (found.kind, found.rank, found.family, found.base) == ("lora", "4", "SDXL", "base.safetensors")
    assert found.tags == (("alice", 23), ("bob", 9), ("hat", 7))
    # Those on every picture of their folder.
    assert (found.triggers, found.stated) == (("alice", "bob"), False)
    assert (found.date, found.notes, found.facts) == ("2023-11-14", (), (("steps", "100"),))
    stated = told(tmp_path, ss_tag_frequency=counts, **{"modelspec.trigger_phrase": "ink, ink , wash"})
    assert (stated.triggers, stated.stated) == (("ink", "wash"), True)


@pytest.mark.parametrize("text", ["{", "[]", "5", '{"a": 5}', '{"a": {"b": "c", "d": true, "e": 1.5}}'])
def test_metadata_that_are_damaged_are_said_to_be(tmp_path: Path, text: str) -> None:
    found = told(tmp_path, ss_tag_frequency=text, ss_dataset_dirs=text, **{"modelspec.date": "1e999"})
    assert found.tags == () and found.triggers == () and found.date == "1e999"
    assert len(found.problems) == (2 if text in ("{", "[]", "5") else 0)


@pytest.mark.parametrize("front", ["conditioner.embedders.0.transformer.", "clip_l.transformer."])
def test_an_encoder_that_a_checkpoint_holds_counts_once(tmp_path: Path, front: str) -> None:
    def encoder(name: str, width: int) -> dict[str, torch.Tensor]:
        return {f"{name}text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(1, width)}

    network = {key: torch.zeros(shape) for key, shape in unet().items()}
    files = [{**network, **encoder(front, 768)}, encoder("", 768), encoder("", 1280)]
    paths = [tmp_path / f"{number}.safetensors" for number in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        save_file(tensors, path)
    members = lyc.about_model(paths).blocks.members
    counts = {name: len(layers) for name, layers in members.items() if "clip" in name}
    assert counts == {"clip_l.0": 1, "clip_g.0": 1}


def test_a_look_at_a_file_is_not_remembered(tmp_path: Path) -> None:
    kept = read(tmp_path, TENSORS)
    assert lyc.peek_adapter(tmp_path / "x.safetensors") is not kept
    assert lyc.load_adapter(tmp_path / "x.safetensors") is kept


def test_an_adapter_as_plain_tensors_is_what_its_file_holds(tmp_path: Path) -> None:
    made = lyc.adapter_of_tensors(TENSORS, name="made")
    assert made.path == made.name == "made" and made.dialect == "kohya"
    lyc.save_adapter(made, tmp_path / "y.safetensors", "kohya")
    held, filed = lyc.adapter_tensors(made, "kohya"), load_file(tmp_path / "y.safetensors")
    assert held.keys() == filed.keys() and all(torch.equal(held[key], filed[key]) for key in filed)
    assert not {tensor.data_ptr() for tensor in held.values()} & {t.data_ptr() for t in TENSORS.values()}
    model = {"diffusion_model.middle_block.1.proj_in.weight": (5, 6)}
    named = lyc.adapter_tensors(made, "comfy", model=model)
    assert {key.partition(".lora")[0] for key in named if ".lora" in key} == {
        "diffusion_model.middle_block.1.proj_in"
    }
    with pytest.raises(lyc.MatchError):
        lyc.adapter_tensors(made, "comfy")
    with pytest.raises(lyc.LycorisError, match="made: a: an adapter holds nothing but tensors"):
        lyc.adapter_of_tensors({"a": 5}, name="made")  # type: ignore[dict-item]
    with pytest.raises(lyc.FileFormatError, match="holds no adapter layer"):
        lyc.adapter_of_tensors({"a": torch.zeros(1)}, name="made")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_numbers_that_are_not_finite_are_noticed_in_a_sample(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    """A training that diverged leaves them in every layer."""
    ruined = {
        key.replace("_1_", f"_{number}_"): torch.full_like(tensor, value).to(dtype)
        for number in range(9)
        for key, tensor in TENSORS.items()
    }
    save_file(ruined, tmp_path / "x.safetensors")
    found = lyc.about(lyc.peek_adapter(tmp_path / "x.safetensors")).problems
    assert len(found) == (value != 1.0) and all("NaN or infinite (lora_unet_" in words for words in found)


def test_the_sample_for_numbers_that_are_not_finite_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list asks about thousands of files: no tensor above 1 MB is read, and few below."""
    numbered = [(key.replace("_1_", f"_{n}_"), tensor) for n in range(50) for key, tensor in TENSORS.items()]
    layers = {key: tensor.clone() for key, tensor in numbered if LAYER not in key}
    large = {f"{LAYER}.diff": torch.zeros(513, 512)}
    save_file(layers | large, tmp_path / "x.safetensors")
    adapter = lyc.peek_adapter(tmp_path / "x.safetensors")
    asked: list[str] = []
    read = type(adapter.file).read

    def counted(self: object, names: list[str], *rest: object, **more: object) -> object:
        asked.extend(names)
        return read(self, names, *rest, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(type(adapter.file), "read", counted)
    assert not lyc.about(adapter).problems
    assert 0 < len(asked) <= 6 and f"{LAYER}.diff" not in asked
