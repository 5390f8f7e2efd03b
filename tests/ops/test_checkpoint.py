"""Merging into a file: exact, streamed, and never half-written."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from children import python
from layers import CASES, WEIGHTS, factors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from written import read

import lycoris_ops as lyc

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BLOCK = "model.diffusion_model.blocks"


def write(path: Path, dtype: torch.dtype) -> tuple[Path, lyc.Stack]:
    """A base with a weight and a bias for every case, and with other tensors. The stack changes each case."""
    base: dict[str, Tensor] = {"first_stage_model.conv.weight": torch.randn(3, 3).to(dtype)}
    adapter: dict[str, Tensor] = {}
    for number, (kind, weight) in enumerate(CASES):
        base[f"{BLOCK}.{number}.x.weight"] = torch.randn(WEIGHTS[weight]).to(dtype)
        base[f"{BLOCK}.{number}.x.bias"] = torch.randn(WEIGHTS[weight][0]).to(dtype)
        for key, tensor in factors(kind, weight).items():
            adapter[f"lora_unet_blocks_{number}_x.{key}"] = tensor
    base |= {
        # Tensors that have no layer, among them an empty one and one in float8.
        "ids": torch.arange(7),
        "empty": torch.zeros(0, 3),
        "fp8": torch.zeros(4).to(torch.float8_e4m3fn),
    }
    save_file(base, path / "base.safetensors", metadata={"modelspec.title": "base", "ü": "ß"})
    save_file(adapter, path / "adapter.safetensors")
    entry = lyc.Entry(lyc.load_adapter(path / "adapter.safetensors", sig_type="principal"), -0.6)
    return path / "base.safetensors", lyc.Stack([entry])


def exact(base: dict[str, Tensor], stack: lyc.Stack) -> dict[str, Tensor]:
    """The changed weights and biases by key, in float64."""
    (entry,) = stack
    wanted: dict[str, Tensor] = {}
    for name, layer in entry.adapter.layers.items():
        path = f"{BLOCK}.{name.split('_')[3]}.x"
        weight, bias = base[f"{path}.weight"].double(), base.get(f"{path}.bias", torch.zeros(0)).double()
        change = layer.change(weight, bias)
        for key, value, delta in (("weight", weight, change.delta), ("bias", bias, change.bias)):
            if delta is not None:
                wanted[f"{path}.{key}"] = value + entry.strength * delta
    return wanted


@pytest.mark.parametrize(
    ("source", "written"),
    # First each dtype is kept. Then float32 is narrowed, bfloat16 becomes float16, and float16 is widened.
    [*((one, None) for one in DTYPES), *zip(DTYPES, [*DTYPES[1:], DTYPES[0]], strict=True)],
    ids=str,
)
def test_merged_weights_are_one_rounding_from_the_exact_sum(
    tmp_path: Path, source: torch.dtype, written: torch.dtype | None
) -> None:
    """The exact sum is in float64; each kind of layer is merged into a weight of its own.

    Tensors that nothing changes are copied bit by bit, or converted where another dtype is asked for.
    """
    path, stack = write(tmp_path, source)
    result = lyc.merge_checkpoint(path, stack, tmp_path / "out.safetensors", written)
    base, out = load_file(path), load_file(tmp_path / "out.safetensors")
    wanted = exact(base, stack)
    assert list(out) == list(base) and result.merged == len(wanted) > len(CASES)
    for key, tensor in out.items():
        assert tensor.dtype == (written if written and base[key].is_floating_point() else base[key].dtype)
        if key in wanted:
            error = (tensor.double() - wanted[key]).abs()
            # The rounding of float32, which covers the singular value decomposition of T-LoRA.
            accumulation = 48 * torch.finfo(torch.float32).eps * wanted[key].abs().max()
            half_ulp = torch.finfo(tensor.dtype).eps / 2 * wanted[key].abs()
            assert (error <= half_ulp + accumulation + 1e-7).all()
            assert not torch.equal(tensor.to(source), base[key])
        elif written is None:
            assert torch.equal(tensor.view(torch.uint8), base[key].view(torch.uint8))
        else:
            assert torch.equal(tensor.float(), base[key].to(tensor.dtype).float())


def test_metadata_is_kept_and_the_recipe_recorded(tmp_path: Path) -> None:
    path, stack = write(tmp_path, torch.float16)
    out = tmp_path / "out.safetensors"
    ruled = stack.with_rules(lyc.Rules.parse("blocks.3 = 0.5"))
    lyc.merge_checkpoint(path, ruled, out, metadata={"prompt": "{}"})
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "base" and metadata["ü"] == "ß" and metadata["prompt"] == "{}"
    recipe = json.loads(metadata["lycoris_recipe"])
    assert recipe == {
        "base": "base.safetensors",
        "adapters": [
            {
                "file": "adapter.safetensors",
                "strength": -0.6,
                "strength_clip": -0.6,
                "rules": "blocks.3 = 0.5",
            }
        ],
    }


def test_a_second_merge_keeps_the_first_recipe_and_drops_false_hashes(tmp_path: Path) -> None:
    """The hashes of a file are false once a weight has changed."""
    path, stack = write(tmp_path, torch.float16)
    save_file(load_file(path), path, metadata={"modelspec.hash_sha256": "0x00", "sshs_model_hash": "00"})
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    lyc.merge_checkpoint(path, stack, one)
    lyc.merge_checkpoint(one, stack, two)
    with safe_open(two, "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "lycoris_recipe"} and metadata["format"] == "pt"
    recipe = json.loads(metadata["lycoris_recipe"])
    assert recipe["base"] == "one.safetensors"
    assert json.loads(recipe["base_recipe"])["base"] == "base.safetensors"


def test_a_long_copy_reports_on_its_way(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(20 << 20, dtype=torch.uint8)}, tmp_path / "base.safetensors")
    seen: list[int] = []
    out = tmp_path / "out.safetensors"
    lyc.merge_checkpoint(
        tmp_path / "base.safetensors", lyc.Stack(), out, progress=lambda done, _: seen.append(done)
    )
    assert len(set(seen)) >= 5 and seen[-1] == out.stat().st_size


def test_a_merged_weight_that_overflows_is_an_error_naming_it(tmp_path: Path) -> None:
    key = "model.diffusion_model.x.weight"
    # 60000 + 99 * 99 is above 65504, the largest float16.
    save_file({key: torch.full((8, 8), 60000.0).half()}, tmp_path / "base.safetensors")
    layer = "lora_unet_x"
    adapter = {
        f"{layer}.lora_up.weight": torch.ones(8, 1) * 99,
        f"{layer}.lora_down.weight": torch.ones(1, 8) * 99,
    }
    stack = lyc.Stack([lyc.Entry(read(tmp_path, adapter, "adapter"))])
    out = tmp_path / "out.safetensors"
    with pytest.raises(lyc.WriteError, match=r"x\.weight.*does not fit.*float16"):
        lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, out)
    assert not out.exists()
    lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, out, torch.float32)
    assert load_file(out)[key][0, 0] == 60000 + 99 * 99


def test_another_file_can_be_replaced_and_the_base_never(tmp_path: Path) -> None:
    """A merge cannot be undone, so a slip of the name would lose the base."""
    path, stack = write(tmp_path, torch.float32)
    before, out, link = path.read_bytes(), tmp_path / "out.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(path)
    twin = tmp_path / "twin.safetensors"
    twin.hardlink_to(path)
    for base, same in ((path, path), (path, link), (link, path), (path, twin)):
        with pytest.raises(lyc.WriteError, match="the output file is the base model"):
            lyc.merge_checkpoint(base, stack, same)
    assert path.read_bytes() == before and link.is_symlink()
    with pytest.raises(lyc.WriteError, match="the output file is an adapter of the stack"):
        lyc.merge_checkpoint(path, stack, tmp_path / "adapter.safetensors")
    stack.entries[0].adapter.file.check_unchanged()
    out.write_text("another file")
    with pytest.raises(lyc.WriteError, match="of that name already"):
        lyc.merge_checkpoint(path, stack, out, overwrite=False)
    assert out.read_text() == "another file"
    wanted = exact(load_file(path), stack)
    lyc.merge_checkpoint(path, stack, out)
    merged = load_file(out)
    for key, tensor in wanted.items():
        torch.testing.assert_close(merged[key].double(), tensor, rtol=0, atol=5e-5)


def test_quantised_weights_and_odd_dtypes_are_refused(tmp_path: Path) -> None:
    path, stack = write(tmp_path, torch.float8_e4m3fn)
    save_file(load_file(path) | {f"{BLOCK}.0.x.scale_weight": torch.ones(())}, path)
    with pytest.raises(
        lyc.FileFormatError,
        match=r"base\.safetensors.*blocks.*quantised.*F8_E4M3.*give a codec.*quantised from",
    ):
        lyc.merge_checkpoint(path, stack, tmp_path / "out.safetensors")
    path, stack = write(tmp_path, torch.complex64)
    with pytest.raises(lyc.LayerError, match=r"an adapter cannot change a complex weight .*found C64"):
        lyc.merge_checkpoint(path, stack, tmp_path / "out.safetensors")
    path, stack = write(tmp_path, torch.float16)
    with pytest.raises(lyc.LycorisError, match="int8"):
        lyc.merge_checkpoint(path, stack, tmp_path / "out.safetensors", torch.int8)
    with pytest.raises(lyc.FileFormatError, match="ckpt"):
        lyc.merge_checkpoint(tmp_path / "base.ckpt", stack, tmp_path / "out.safetensors")


def test_a_stack_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    path, _ = write(tmp_path, torch.float16)
    save_file(
        {"lora_unet_x.lora_up.weight": torch.zeros(3, 2), "lora_unet_x.lora_down.weight": torch.zeros(2, 3)},
        tmp_path / "other.safetensors",
    )
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(tmp_path / "other.safetensors"))])
    with pytest.raises(lyc.MatchError, match="nothing"):
        lyc.merge_checkpoint(path, stack, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


MEASURE = textwrap.dedent(
    """
    import json, sys, threading, time
    import torch
    import lycoris_ops as lyc

    def anonymous():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

    idle = anonymous()
    peak, done = idle, False

    def watch():
        global peak
        while not done:
            peak = max(peak, anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    base, adapter, out = sys.argv[1:]
    lyc.merge_checkpoint(base, lyc.Stack([lyc.Entry(lyc.load_adapter(adapter), 0.5)]), out)
    done = True
    thread.join()
    print(json.dumps({"idle": idle, "peak": peak}))
    """
)
"""A program that merges. It prints the anonymous memory before the merge and at its peak. Anonymous memory
does not include the pages of mapped files."""


def peak_memory(base: Path, adapter: Path, out: Path) -> int:
    """Bytes of anonymous memory at the peak of a merge, beyond those after the import."""
    figures: dict[str, Any] = json.loads(python("-c", MEASURE, base, adapter, out))
    return figures["peak"] - figures["idle"]


def test_memory_stays_small_whatever_the_size_of_the_file(tmp_path: Path) -> None:
    """The file and the weights that change are larger than the bound. The last weight changes too."""
    side, count, rank = 2048, 48, 48
    changed = range(1, count, 2)
    largest = side * side * 2
    names = [f"blocks.{number}.x.weight" for number in range(count)]
    from lycoris_ops.files.safetensors_file import encode_header, raw_bytes
    from lycoris_ops.files.tensor_file import TensorInfo

    infos = {
        name: TensorInfo("F16", (side, side), n * largest, (n + 1) * largest) for n, name in enumerate(names)
    }
    weight = raw_bytes(torch.randn(side, side).half())
    with (tmp_path / "base.safetensors").open("wb") as file:
        file.write(encode_header(infos, {}))
        for _ in names:
            file.write(weight)
    up, down = torch.randn(side, rank).half(), torch.randn(rank, side).half()
    save_file(
        {f"diffusion_model.blocks.{n}.x.lora_up.weight": up.clone() for n in changed}
        | {f"diffusion_model.blocks.{n}.x.lora_down.weight": down.clone() for n in changed},
        tmp_path / "adapter.safetensors",
    )
    out = tmp_path / "out.safetensors"
    peak = peak_memory(tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", out)
    bound = 4 * largest + 100_000_000
    assert len(changed) * largest > 1.5 * bound and out.stat().st_size > 3 * bound
    assert peak < bound, f"{peak / 1e6:.0f} of {bound / 1e6:.0f} MB"
    # pytest keeps the folders of the last runs, and these files are large.
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()


def test_an_enlarged_weight_and_a_bias_are_written_in_their_new_shapes(tmp_path: Path) -> None:
    """The weight is enlarged with columns of zeros, and then changed.

    The reference is computed here from the factors of the file.
    """
    base = {f"{BLOCK}.0.img_in.weight": torch.randn(6, 4), f"{BLOCK}.0.img_in.bias": torch.randn(6)}
    base[f"{BLOCK}.0.last.weight"] = torch.randn(3, 3)
    save_file(base, tmp_path / "base.safetensors")
    name = "diffusion_model.blocks.0.img_in"
    adapter = {
        f"{name}.lora_A.weight": torch.randn(2, 8),
        f"{name}.lora_B.weight": torch.randn(6, 2),
        f"{name}.lora_B.bias": torch.randn(6),
        f"{name}.reshape_weight": torch.tensor([6, 8]),
    }
    stack = lyc.Stack([lyc.Entry(read(tmp_path, adapter, "adapter"), 0.5)])
    lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    larger = torch.cat([base[f"{BLOCK}.0.img_in.weight"], torch.zeros(6, 4)], 1)
    product = adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
    torch.testing.assert_close(out[f"{BLOCK}.0.img_in.weight"], larger + 0.5 * product)
    bias = base[f"{BLOCK}.0.img_in.bias"] + 0.5 * adapter[f"{name}.lora_B.bias"]
    torch.testing.assert_close(out[f"{BLOCK}.0.img_in.bias"], bias)
    assert torch.equal(out[f"{BLOCK}.0.last.weight"], base[f"{BLOCK}.0.last.weight"])
