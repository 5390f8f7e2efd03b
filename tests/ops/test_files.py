"""Reading files.

Tensors are read only when they are needed, and only once. A damaged file is always an error.
"""

from __future__ import annotations

import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from layers import factors
from safetensors.torch import save_file

import lycoris_ops as lyc
from lycoris_ops.files.safetensors_file import read_exactly
from lycoris_ops.files.tensor_file import TICK
from tests.harness.opens import held, opened
from tests.harness.payloads import marking

LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def named(tensors: dict[str, torch.Tensor], layer: str = LAYER) -> dict[str, torch.Tensor]:
    """The tensors of a layer under the keys of a file."""
    return {f"{layer}.{key}": tensor for key, tensor in tensors.items()}


def write(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """Write these tensors, or those of one LoRA layer, and return the path."""
    save_file(named(factors("lora", "linear")) if tensors is None else tensors, path)
    return path


def test_opening_reads_no_tensor_and_using_reads_each_once(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors")
    cache = lyc.TensorCache(1 << 20)
    start = opened(path)
    adapter = lyc.load_adapter(path, cache=cache)
    assert len(adapter.layers) == 1 and opened(path) - start == 1 and cache.nbytes == 0
    # Up to here only the header was read.
    first = adapter.layers[LAYER]
    assert opened(path) - start == 2
    again = lyc.load_adapter(path, cache=cache)
    assert again is adapter
    assert again.layers[LAYER].dump().keys() == first.dump().keys()
    assert opened(path) - start == 2


def test_a_file_whose_disk_fails_is_named_with_what_the_system_says() -> None:
    class Failing:
        def readinto(self, view: Any) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(
        lyc.FileFormatError, match=r"base\.safetensors: the file cannot be read.*Input/output"
    ):
        read_exactly(cast("Any", Failing()), memoryview(bytearray(8)), "base.safetensors")


def test_files_of_one_size_written_in_quick_succession_are_told_apart(tmp_path: Path) -> None:
    """The system's clock moves only every few milliseconds.

    Two files that are written within one tick have the same time of change, and here also the same size.
    """
    path = tmp_path / "x.safetensors"
    for _ in range(10):
        for name in ("lora_unet_a", "lora_unet_b"):
            save_file({f"{name}.{key}": part for key, part in factors("lora", "linear").items()}, path)
            assert list(lyc.load_adapter(path).info) == [name]
    ahead = time.time_ns() + 5_000_000
    os.utime(path, ns=(ahead, ahead))
    lyc.load_adapter(path)
    assert time.time_ns() - ahead >= TICK


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors")
    old = lyc.load_adapter(path)
    before = old.layers[LAYER]
    write(path, named(factors("lora", "linear", alpha=1.0)))
    # Set a time of change that certainly differs.
    os.utime(path, ns=(1, 1))
    assert lyc.load_adapter(path).layers[LAYER].alpha == 1.0
    assert before.alpha == 2.0
    # A cache that keeps nothing has to read the file when the layer is used.
    fresh = lyc.TensorCache(0)
    stale = lyc.load_adapter(path, cache=fresh)
    os.utime(path, ns=(2, 2))
    with pytest.raises(lyc.FileFormatError, match="changed"):
        stale.layers[LAYER]


def test_nested_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    form, path = lyc.TreeForm("values", 1, "a file of values"), tmp_path / "values.safetensors"
    value = {"betas": (0.9, 0.999), "rows": [[1, 2], []], 3: {"none": None}, "text": ("a", True)}
    form.write(path, {**value, "tensor": torch.ones(2)})
    found = form.read(path)
    assert torch.equal(found.pop("tensor"), torch.ones(2)) and found == value
    assert form.peek(path, "rows", "betas", "gone") == {"rows": value["rows"], "betas": value["betas"]}


def test_a_changed_bit_is_noticed_in_nested_values(tmp_path: Path) -> None:
    form, path = lyc.TreeForm("values", 1, "a file of values"), tmp_path / "values.safetensors"
    form.write(path, {"step": 12, "mean": torch.randn(8), "square": torch.randn(8)})
    whole = path.read_bytes()
    number = whole.index(b"12]") + 1
    for at, what in ((len(whole) - 1, "tensor t1"), (len(whole) - 33, "tensor t0"), (number, "values")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(
            lyc.FileFormatError, match=f"a file of values is damaged .*checksum of its {what}"
        ):
            form.read(path)
    # Only the entries that are asked for are read, so only these are compared.
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert form.peek(path, "step") == {"step": 12}
    with pytest.raises(lyc.FileFormatError, match="checksum of its tensor t1"):
        form.peek(path, "square")
    # Files of earlier versions have no checksums.
    tensors = {"t0": torch.ones(2)}
    save_file(tensors, path, {"values": '{"version": 1, "state": {"dict": [["x", {"tensor": "t0"}]]}}'})
    assert torch.equal(form.read(path)["x"], tensors["t0"])


def test_the_cache_stays_within_its_bound() -> None:
    cache = lyc.TensorCache(100)
    reads: list[int] = []

    def read(number: int) -> Callable[[], dict[str, torch.Tensor]]:
        def reader() -> dict[str, torch.Tensor]:
            reads.append(number)
            return {"x": torch.zeros(40, dtype=torch.uint8)}

        return reader

    for number in (0, 1, 0, 2, 0, 1):
        cache.fetch(number, read(number))
        assert cache.nbytes <= 100
    # Two of them have room; 1 went when 2 came, as 0 had been used since.
    assert reads == [0, 1, 2, 1]
    # A tensor that is larger than the cache is never kept.
    cache.fetch(3, lambda: {"x": torch.zeros(101, dtype=torch.uint8)})
    cache.fetch(4, read(4), keep=False)
    assert cache.nbytes == 80
    cache.clear()
    assert cache.nbytes == 0


def test_no_file_stays_open_or_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors")
    adapter = lyc.load_adapter(path)
    adapter.layers[LAYER].delta(torch.zeros(12, 18))
    assert not held(path)


def test_a_linked_file_keeps_its_readable_name_and_what_lies_beside_it(tmp_path: Path) -> None:
    """Hugging Face's cache has readable names that link to files named after their hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    lora = factors("lora", "linear", alpha=None)
    tensors = {
        f"{PEFT}.lora_A.weight": lora["lora_down.weight"],
        f"{PEFT}.lora_B.weight": lora["lora_up.weight"],
    }
    save_file(tensors, blobs / "5f3a")
    (blobs / "77aa").write_text('{"r": 3, "lora_alpha": 6}')
    (snapshot / "adapter_model.safetensors").symlink_to(blobs / "5f3a")
    (snapshot / "adapter_config.json").symlink_to(blobs / "77aa")
    adapter = lyc.load_adapter(snapshot / "adapter_model.safetensors")
    assert adapter.name == "snapshot/adapter_model.safetensors"
    assert adapter.layers[PEFT].alpha == 6


def test_a_checkpoint_is_no_adapter(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"model.diffusion_model.out.2.weight": torch.zeros(2, 2)})
    with pytest.raises(lyc.FileFormatError, match=r"no adapter layer.*out\.2\.weight"):
        lyc.load_adapter(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_factor_that_is_not_finite_is_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensors = named({key: tensor.to(dtype) for key, tensor in factors("lora", "linear").items()})
    tensors[f"{LAYER}.lora_up.weight"][1, 2] = value
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(lyc.LayerError, match=r"x\.safetensors.*lora_up\.weight.*NaN.*1 of 36"):
        lyc.load_adapter(path).layers[LAYER]


def test_large_finite_factors_are_fine(tmp_path: Path) -> None:
    # Near the largest float32: its square is infinite.
    tensors = named({key: tensor * 0 + 3e38 for key, tensor in factors("lora", "linear").items()})
    tensors[f"{LAYER}.alpha"] = torch.tensor(1.0)
    path = write(tmp_path / "x.safetensors", tensors)
    assert lyc.load_adapter(path).layers[LAYER].rank == 3


def test_an_unknown_layer_is_kept_for_the_report(tmp_path: Path) -> None:
    tensors = {
        **named(factors("lora", "linear")),
        **named({**factors("lora", "linear"), "unheard_of": torch.ones(12, 1)}, "lora_unet_conv_in"),
        "something.else": torch.zeros(1),
        "something.of.as.many.words.as.no.layer.has": torch.zeros(1),
    }
    adapter = lyc.load_adapter(write(tmp_path / "x.safetensors", tensors))
    assert set(adapter.layers) == {LAYER}
    assert "unheard_of" in adapter.unreadable["lora_unet_conv_in"]
    used = {key for info in adapter.info.values() for key in info.keys.values()}
    assert used | set(adapter.unused_keys) == set(tensors)
    # Those of the layer that is not read are told with it.
    text = lyc.describe(lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), {}))
    assert "2 keys of the file are of no known kind" in text


PICKLES = pytest.mark.skipif(torch.__version__ < "2.6", reason="pickles are read with torch 2.6 or newer")


@PICKLES
def test_a_pickle_of_plain_tensors_is_read(tmp_path: Path) -> None:
    tensors = named(factors("loha", "linear"))
    path = tmp_path / "x.pt"
    torch.save(tensors, path)
    # Archives by other tools have no second end with sizes in 64 bits.
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    for each in (path, packed):
        layer = lyc.load_adapter(each).layers[LAYER]
        assert torch.equal(layer.dump()["hada_w1_a"], tensors[f"{LAYER}.hada_w1_a"])


@PICKLES
@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.bin"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, name: str) -> None:
    payload = marking(tmp_path / "ran")
    torch.save({"a": payload}, tmp_path / name)
    with pytest.raises(lyc.FileFormatError, match=f"{name}.*plain tensors"):
        lyc.load_adapter(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps(payload))
    with pytest.raises(lyc.FileFormatError, match=name):
        lyc.load_adapter(tmp_path / name)
    assert not (tmp_path / "ran").exists()


PEFT = "base_model.model.mid_block.attentions.0.proj_in"


def test_diffusers_keeps_alpha_in_the_files_metadata(tmp_path: Path) -> None:
    lora = factors("lora", "linear", alpha=None)
    tensors = {
        f"{part}.{name}.{suffix}.weight": lora[tensor].clone()
        for part, name in (("unet", "mid_block.proj"), ("text_encoder", "text_model.proj"))
        for suffix, tensor in (("lora_A", "lora_down.weight"), ("lora_B", "lora_up.weight"))
    }
    table = {"unet.r": 3, "unet.lora_alpha": 1.5, "text_encoder.r": 3, "text_encoder.lora_alpha": 9}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(table)})
    adapter = lyc.load_adapter(path)
    alphas = {"unet.mid_block.proj": 1.5, "text_encoder.text_model.proj": 9.0}
    assert adapter.alphas() == alphas
    assert {name: layer.alpha for name, layer in adapter.layers.items()} == alphas
