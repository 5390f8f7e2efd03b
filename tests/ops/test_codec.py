"""Merging into weights of 8 bits or fewer.

These tests cover the rounding to float8, which float8 weights are plain floats, and how codecs for quantised
formats are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from written import read

import lycoris_ops as lyc
from lycoris_ops.files.quantised import plain_floats, round_to_float8, seed_of
from lycoris_ops.files.safetensors_file import SafetensorsFile
from lycoris_ops.files.tensor_file import TensorFile
from lycoris_ops.files.weights import FileWeights

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def every_value(dtype: torch.dtype) -> Tensor:
    """All finite values that a float8 can hold, both zeros among them."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return values[torch.isfinite(values)]


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_what_float8_can_hold_stays_as_it_is(dtype: torch.dtype) -> None:
    """Rounding is random, but a value that float8 can hold has no neighbours to choose from."""
    values = every_value(dtype)
    for seed in range(20):
        found = round_to_float8(values, dtype, seed)
        assert torch.equal(found.view(torch.uint8), values.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_every_value_goes_to_one_of_its_neighbours_and_is_kept_on_average(dtype: torch.dtype) -> None:
    """A value is rounded to the neighbour below or above, and the mean of many roundings is the value."""
    grid = every_value(dtype).unique().double()
    low, high = grid[:-1], grid[1:]
    share = torch.rand(len(low), dtype=torch.float64)
    values = (low + share * (high - low)).float()
    times = 4000
    found = round_to_float8(values.repeat(times, 1), dtype, 3).double()
    assert ((found == low) | (found == high)).all()
    mean = (found.mean(0) - values.double()) / (high - low)
    # The mean of n draws of 0 or 1 has a standard deviation of at most 0.5 / sqrt(n). Five times that is
    # exceeded less than once in a million draws.
    assert mean.abs().max() < 2.5 / times**0.5
    assert mean.mean().abs() < 2.5 / (times * len(low)) ** 0.5


def test_the_rounding_is_the_same_for_the_same_weight_only() -> None:
    values = torch.randn(3, 700)
    first, again, other = (
        round_to_float8(values, torch.float8_e4m3fn, seed_of(key)).view(torch.uint8) for key in "aab"
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    # The same on every machine.
    assert seed_of("diffusion_model.x.weight") == 7844468422483479463


def plain_of(tmp_path: Path, tensors: dict[str, Tensor]) -> set[str]:
    """The keys that are plain floats in a file of these tensors."""
    # The safetensors package refuses tensors that share memory.
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "file.safetensors")
    return plain_floats(SafetensorsFile.open(tmp_path / "file.safetensors").tensors)


def test_floats_that_something_scales_and_scales_are_not_plain(tmp_path: Path) -> None:
    half, eight = torch.zeros(2, dtype=torch.float16), torch.zeros(2).to(torch.float8_e4m3fn)
    plain = {"a.weight": eight, "a.bias": eight, "b.in_proj_weight": eight, "norm.scale": half, "d": eight}
    assert plain_of(tmp_path, {**plain, "ids": torch.zeros(2, dtype=torch.int64)}) == set(plain)
    # The marks of several quantised formats.
    for beside in ("c.scale_weight", "c.weight_scale", "c.weight.absmax", "c.comfy_quant"):
        scaled = {"c.weight": eight, beside: torch.ones(1), "c.bias": half}
        # Any other float8 tensor may be a mere mark of that format: none is converted or merged into.
        assert plain_of(tmp_path, {**plain, **scaled}) == {"norm.scale", "c.bias"}
    # The scale of an int8 weight says nothing about the float8 weights.
    packed = {"c.weight": torch.zeros(2, dtype=torch.int8), "c.weight_scale": torch.ones(1), "c.bias": half}
    assert plain_of(tmp_path, {**plain, **packed}) == {*plain, "c.bias"}
    # A weight of 16 bits is plain, whatever lies beside it.
    normal = {"c.weight": half, "c.scale": half}
    assert plain_of(tmp_path, {**plain, **normal}) == {*plain, *normal}


def lora(tmp_path: Path, rows: int, columns: int, strength: float = 0.7) -> lyc.Stack:
    """A stack of one LoRA for the layer `blocks.0.x`."""
    factors = {
        "lora_unet_blocks_0_x.lora_up.weight": torch.randn(rows, 3),
        "lora_unet_blocks_0_x.lora_down.weight": torch.randn(3, columns) / 8,
    }
    return lyc.Stack([lyc.Entry(read(tmp_path, factors, "lora"), strength)])


KEY = "model.diffusion_model.blocks.0.x.weight"


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor. Compared by bytes, a NaN equals itself."""
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_a_plain_float8_file_stays_one(tmp_path: Path, dtype: torch.dtype) -> None:
    """A merged value lies within one step of the exact value, and merging again gives the same file.

    The exact value is the base plus strength * delta, in float32.
    """
    other = KEY.replace("0", "1")
    base = {KEY: torch.randn(40, 30).to(dtype), other: torch.randn(40, 30).to(dtype), "b": torch.ones(3)}
    save_file(base, tmp_path / "base.safetensors")
    stack = lora(tmp_path, 40, 30)
    out = tmp_path / "out.safetensors"
    lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, out)
    merged = load_file(out)
    assert all(torch.equal(bits(merged[key]), bits(base[key])) for key in (other, "b"))
    (entry,) = stack
    (layer,) = entry.adapter.layers.values()
    exact = base[KEY].float() + 0.7 * layer.delta(base[KEY].float())
    assert merged[KEY].dtype == dtype
    # At least the distance between neighbours, which stays the same below the smallest normal number.
    step = (exact.abs() * torch.finfo(dtype).eps).clamp_min(torch.finfo(dtype).smallest_normal / 4)
    error = (merged[KEY].float() - exact) / step
    assert error.abs().max() <= 1.0 and error.abs().mean() > 0.1 and abs(error.mean()) < 0.05
    lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "again.safetensors")
    assert out.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_a_plain_float8_file_can_be_written_wide(tmp_path: Path) -> None:
    base = {KEY: torch.randn(40, 30).to(torch.float8_e5m2), "b": torch.randn(3).to(torch.float8_e5m2)}
    save_file(base, tmp_path / "base.safetensors")
    stack = lora(tmp_path, 40, 30)
    lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors", torch.float32)
    merged = load_file(tmp_path / "out.safetensors")
    (entry,) = stack
    (layer,) = entry.adapter.layers.values()
    exact = base[KEY].double() + 0.7 * layer.delta(base[KEY].double())
    assert torch.equal(merged["b"], base["b"].float()) and merged[KEY].dtype == torch.float32
    assert (merged[KEY] - exact).abs().max() < 1e-6


def test_a_change_beyond_float8_is_an_error(tmp_path: Path) -> None:
    save_file({KEY: torch.full((40, 30), 440.0).to(torch.float8_e4m3fn)}, tmp_path / "base.safetensors")
    stack = lora(tmp_path, 40, 30, 400.0)
    with pytest.raises(lyc.WriteError, match=r"blocks\.0.*does not fit.*float8"):
        lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@dataclass(frozen=True)
class Rows:
    """A codec for tests: a value in two int8 columns, and a float32 scale for each row.

    The first column is the value over the scale, rounded; the second is the rest, in units of 1/256.
    """

    scale_dtype: str = "F32"

    def find(self, file: TensorFile) -> Mapping[str, lyc.Quantised]:
        return {
            key: lyc.Quantised(
                key,
                "rows",
                (info.shape[0], info.shape[1] // 2),
                {key: "I8", f"{key}_scale": self.scale_dtype},
            )
            for key, info in file.tensors.items()
            if info.dtype == "I8"
        }

    def decode(self, weight: lyc.Quantised, stored: Mapping[str, Tensor]) -> Tensor:
        pairs = stored[weight.key].float().unflatten(1, (-1, 2))
        return (pairs[..., 0] + pairs[..., 1] / 256) * stored[f"{weight.key}_scale"].float()

    def encode(
        self, weight: lyc.Quantised, values: Tensor, stored: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        scale = values.abs().amax(1, keepdim=True) / 126
        whole = (values / scale).round()
        rest = ((values / scale - whole) * 256).round().clamp(-128, 127)
        return {
            weight.key: torch.stack([whole, rest], 2).flatten(1).to(torch.int8),
            f"{weight.key}_scale": scale,
        }


def packed(values: Tensor, key: str = KEY) -> dict[str, Tensor]:
    """A weight as the tensors in which the codec stores it."""
    weight = lyc.Quantised(key, "rows", tuple(values.shape), {})
    return Rows().encode(weight, values, {})


def quantised_base(tmp_path: Path, scale: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Write a base with two quantised weights, and return its tensors.

    The safetensors package writes all scales before all weights.
    """
    base = packed(torch.randn(40, 30)) | packed(torch.randn(40, 30), KEY.replace("0", "1"))
    base = {key: tensor.to(scale) if tensor.is_floating_point() else tensor for key, tensor in base.items()}
    base |= {"model.diffusion_model.blocks.0.x.input_scale": torch.tensor(0.3), "b": torch.randn(3)}
    save_file(base, tmp_path / "base.safetensors", metadata={"_quantization_metadata": json.dumps({})})
    return base


def exact_of(base: Mapping[str, Tensor], stack: lyc.Stack) -> Tensor:
    """The weight KEY of a base, decoded and patched."""
    weight = Rows().decode(lyc.Quantised(KEY, "rows", (40, 30), {}), base)
    return lyc.patch_(
        weight.clone(),
        [(layer, entry.strength) for entry in stack for layer in entry.adapter.layers.values()],
    )


@pytest.mark.parametrize("written", [None, torch.bfloat16], ids=str)
def test_a_quantised_weight_is_decoded_merged_and_encoded(
    tmp_path: Path, written: torch.dtype | None
) -> None:
    """The file must hold what the codec makes of the patched weight.

    The other tensors stay as they are. A plain float gets the written dtype, if one is given.
    """
    base = quantised_base(tmp_path)
    stack = lora(tmp_path, 40, 30)
    steps: list[tuple[int, int]] = []
    result = lyc.merge_checkpoint(
        tmp_path / "base.safetensors",
        stack,
        tmp_path / "out.safetensors",
        written,
        codec=Rows(),
        progress=lambda done, total: steps.append((done, total)),
    )
    merged = load_file(tmp_path / "out.safetensors")
    assert set(merged) == set(base)
    assert (result.merged, result.copied) == (1, len(base) - 2)
    wanted = packed(exact_of(base, stack))
    assert all(torch.equal(bits(merged[key]), bits(tensor)) for key, tensor in wanted.items())
    for key in base.keys() - wanted.keys():
        kept = base[key].to(written) if written and key == "b" else base[key]
        assert merged[key].dtype == kept.dtype and torch.equal(bits(merged[key]), bits(kept)), key
    size = (tmp_path / "out.safetensors").stat().st_size
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (size, size) == (result.size, result.size)


def test_a_part_may_be_written_in_a_wider_dtype(tmp_path: Path) -> None:
    base = quantised_base(tmp_path, torch.float16)
    stack = lora(tmp_path, 40, 30)
    lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors", codec=Rows())
    merged = load_file(tmp_path / "out.safetensors")
    other = f"{KEY.replace('0', '1')}_scale"
    assert merged[f"{KEY}_scale"].dtype == torch.float32
    assert torch.equal(bits(merged[other]), bits(base[other]))


def test_a_codec_that_writes_another_form_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    quantised_base(tmp_path)
    stack = lora(tmp_path, 40, 30)
    with pytest.raises(lyc.WriteError, match=r"weight_scale.*changed the form.*float32.*F16"):
        lyc.merge_checkpoint(
            tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors", codec=Rows("F16")
        )
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.parametrize("columns", [30, 60], ids=["the weight's shape", "the stored shape"])
def test_without_a_codec_such_a_file_is_refused_by_name(tmp_path: Path, columns: int) -> None:
    quantised_base(tmp_path)
    with pytest.raises(lyc.FileFormatError, match=r"base.*blocks\.0\.x\.weight.*quantised.*I8.*give a codec"):
        lyc.merge_checkpoint(
            tmp_path / "base.safetensors", lora(tmp_path, 40, columns), tmp_path / "out.safetensors"
        )


def test_a_quantised_weight_cannot_be_enlarged(tmp_path: Path) -> None:
    quantised_base(tmp_path)
    factors = {
        "lora_unet_blocks_0_x.lora_up.weight": torch.randn(48, 3),
        "lora_unet_blocks_0_x.lora_down.weight": torch.randn(3, 30),
        "lora_unet_blocks_0_x.reshape_weight": torch.tensor([48, 30]),
    }
    stack = lyc.Stack([lyc.Entry(read(tmp_path, factors, "lora"))])
    with pytest.raises(lyc.LayerError, match=r"blocks\.0.*enlarged.*48, 30.*40, 30"):
        lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors", codec=Rows())


def test_values_that_are_not_finite_are_not_encoded(tmp_path: Path) -> None:
    quantised_base(tmp_path)
    (entry,) = lora(tmp_path, 40, 30)
    out = tmp_path / "out.safetensors"
    # The sum of these changes is beyond the largest float32.
    stack = lyc.Stack([replace(entry, strength=1e38), replace(entry, strength=3e38)])
    with pytest.raises(lyc.LayerError, match=r"lora.safetensors.*blocks\.0.*overflows"):
        lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, out, codec=Rows())

    class Endless(Rows):
        def decode(self, weight: lyc.Quantised, stored: Mapping[str, Tensor]) -> Tensor:
            return super().decode(weight, stored) / 0

    with pytest.raises(lyc.WriteError, match=r"blocks\.0.*does not fit.*rows"):
        lyc.merge_checkpoint(tmp_path / "base.safetensors", lyc.Stack([entry]), out, codec=Endless())
    assert not out.exists()


class Foreign(Rows):
    """A codec that knows the name of a format which it cannot read."""

    def find(self, file: TensorFile) -> Mapping[str, lyc.Quantised]:
        return {key: replace(one, format="w4a8", parts={}) for key, one in super().find(file).items()}


@pytest.mark.parametrize("columns", [30, 60], ids=["the weight's shape", "the stored shape"])
def test_a_format_that_the_codec_cannot_read_is_named(tmp_path: Path, columns: int) -> None:
    """The shape of packed data is not that of the weight, so it must not be taken for it."""
    quantised_base(tmp_path)
    base, stack, out = (
        tmp_path / "base.safetensors",
        lora(tmp_path, 40, columns),
        tmp_path / "out.safetensors",
    )
    said = r"base\.safetensors.*blocks\.0\.x\.weight.*I8 in the format w4a8.*take the file it was quantised"
    with pytest.raises(lyc.FileFormatError, match=said):
        lyc.merge_checkpoint(base, stack, out, codec=Foreign())
    with pytest.raises(lyc.FileFormatError, match=r"blocks\.0\.x\.weight.*I8 in the format w4a8"):
        FileWeights(base, Foreign()).read(KEY)
    assert not out.exists()


def test_the_format_of_bitsandbytes_is_named(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    parts = {
        "absmax": torch.ones(19),
        "quant_map": torch.ones(16),
        "quant_state.bitsandbytes__nf4": packed_bytes(9),
    }
    save_file({KEY: packed_bytes(600, 1), **{f"{KEY}.{name}": one for name, one in parts.items()}}, base)
    with pytest.raises(lyc.FileFormatError, match=r"blocks\.0\.x\.weight.*U8 in the format bitsandbytes nf4"):
        lyc.merge_checkpoint(base, lora(tmp_path, 40, 30), tmp_path / "out.safetensors")


def packed_bytes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)
