"""Files that look harmful but are read correctly, texts out of files, and names that no file can have.

Files that are refused are in `tests/harness/hostile.py`. `test_soak_sample` opens them, in processes with
limits.
"""

from __future__ import annotations

import json
import runpy
import unicodedata
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from written import read

import lycoris_ops as lyc
from lycoris_ops.errors import printable
from lycoris_ops.files.pickle_file import PickleFile
from tests.harness.hostile import LORA, with_metadata

WEIGHT = "diffusion_model.a.weight"


# Honest files are read in full.


def test_plain_tensors_of_every_form_are_read_from_a_pickle_bit_by_bit(tmp_path: Path) -> None:
    """The reference is what torch saved: parts of tensors, transposed or strided ones, of any dtype."""
    large = torch.randn(10, 20)
    marked = torch.randn(2)
    marked.note = "an attribute"
    tensors = {
        "part": large[::2, 3:7],
        "whole": large,
        "transposed": large.T,
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "repeated": large[0, :3].expand(4, 3),
        "negated": torch._neg_view(torch.randn(3, 2)),
        "scalar": torch.tensor(2.0, dtype=torch.float16),
        "empty": torch.zeros(0, 4),
        "learnt": torch.nn.Parameter(torch.randn(2, 2)),
        "marked": marked,
        **{
            str(dtype): torch.randn(5).mul(9).to(dtype)
            for dtype in (
                torch.float64,
                torch.bfloat16,
                torch.float8_e5m2,
                torch.int64,
                torch.uint8,
                torch.bool,
            )
        },
    }
    held = OrderedDict(tensors)
    held._metadata = {"": {"version": 1}}
    others = {
        "epoch": 3,
        "rate": 1e-4,
        "betas": (0.9, 0.99),
        "names": ["a"],
        "on": {1: None},
        "size": torch.Size([3]),
    }
    path = tmp_path / "x.pt"
    torch.save({"state_dict": held, **others}, path)
    read = PickleFile.open(path).read(list(tensors), lyc.TensorCache(0))
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        assert read[name].is_contiguous() and read[name].untyped_storage().nbytes() == read[name].nbytes
        assert torch.equal(bits(read[name]), bits(tensor.detach().contiguous().resolve_neg())), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_pickles_are_refused_where_torch_reads_them_unsafely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(LORA, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1"))
    with pytest.raises(lyc.FileFormatError, match=r"x\.pt.*2\.5\.1.*2\.6.*Convert.*safetensors"):
        lyc.load_adapter(tmp_path / "x.pt")


def test_long_but_honest_headers_are_read(tmp_path: Path) -> None:
    """Names, metadata and numbers of tensors of real files are far within the bounds."""
    name = "base_model.model." + ".".join(f"module_{n}" for n in range(25)) + ".q"
    pair = {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}
    many = {
        f"lora_unet_{n}.{side}.weight": torch.ones(1, 1)
        for n in range(3000)
        for side in ("lora_up", "lora_down")
    }
    tags = json.dumps({f"folder {n}": {f"tag, {m}": m for m in range(100)} for n in range(2000)})
    adapter = read(tmp_path, {**pair, **many}, metadata={"ss_tag_frequency": tags, "名": "字"})
    assert len(tags) > 2_900_000 and adapter.metadata["ss_tag_frequency"] == tags
    assert len(adapter.info) == 3001 and name in adapter.info


def test_metadata_that_are_no_texts_are_taken_for_their_texts(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(with_metadata({"a": 1, "b": None, "c": [1.5]}))
    assert lyc.load_adapter(tmp_path / "x.safetensors").metadata == {"a": "1", "b": "None", "c": "[1.5]"}


# Texts out of files.

EVIL = "lora_unet_x\n  applied 9 of 9 layers\r\x1b[2J\x1b]0;title\x07\u202e\u200bэто"
"""A layer's name that moves the cursor, clears the screen, names the window and turns the text around."""


def is_plain(text: str, lines: int | None = None) -> bool:
    """Whether a text holds only printed characters and line breaks, and has so many lines."""
    odd = [c for c in text.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return not odd and lines in (None, text.count("\n") + 1)


def test_what_a_file_says_can_neither_add_a_line_nor_control_a_terminal(tmp_path: Path) -> None:
    texts: list[list[str]] = []
    for name in (EVIL, "lora_unet_x_applied"):
        tensors = {
            f"{name}.lora_up.weight": torch.ones(4, 1),
            f"{name}.lora_down.weight": torch.ones(1, 4),
            f"{name}2.lora_up.weight": torch.ones(4, 1),
            f"{name}3": torch.ones(1),
        }
        adapter = read(tmp_path, tensors, metadata={name: name})
        resolution = lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), {WEIGHT: (4, 4)})
        texts.append([lyc.in_words(lyc.summary(adapter)), lyc.describe(resolution)])
        with pytest.raises(lyc.MatchError) as caught:
            resolution.check(strict=True)
        texts[-1].append(str(caught.value))
    for evil, honest in zip(*texts, strict=True):
        assert is_plain(evil, honest.count("\n") + 1), evil
        assert "applied 9 of 9" in evil and r"\x1b[2J" in evil and r"\u202e" in evil and "это" in evil


def test_each_part_of_an_error_is_shown_plain_and_short() -> None:
    evil = "é\n\x1b[31m\ud800" + "x" * 100_000 + "end"
    error = lyc.FileFormatError(evil, file=evil, key=evil, weight=evil, got=evil, expected=evil, hint=evil)
    assert is_plain(str(error), 1) and len(str(error)) < 5000 and str(error).count("end") == 7
    # A program reads the attributes unchanged.
    assert error.key == evil
    for kept in ("模型/风格 1.safetensors", "a b.pt", "naïve\u3000名", "🎨", r"C:\loras\x.pt"):
        assert printable(kept) == kept


def test_a_text_that_no_file_can_hold_is_not_written(tmp_path: Path) -> None:
    adapter = read(tmp_path, LORA)
    with pytest.raises(lyc.WriteError, match=r"cannot be written as text.*\\udc80"):
        lyc.save_adapter(adapter, tmp_path / "out.safetensors", metadata={"note": "\udc80"})
    assert not (tmp_path / "out.safetensors").exists()


# Names of files, and the environment.


@pytest.mark.parametrize(
    "name",
    [".", "/", "", "..", "a\0b", "loop/x.safetensors", "loop", "x" * 300 + "/a.pt", "\ud800.pt", "x/" * 3000],
)
def test_a_path_that_is_no_files_is_an_error_of_the_family(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for act in (lyc.load_adapter, lyc.adapter_stamp, lambda path: lyc.read_shapes([f"{path}.safetensors"])):
        with pytest.raises(lyc.FileFormatError) as caught:
            act(name)
        assert is_plain(str(caught.value), 1)


def test_a_broken_file_breaks_neither_another_nor_its_own_mended_one(tmp_path: Path) -> None:
    save_file(LORA, tmp_path / "good.safetensors")
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"\x80" * 50)
        stamp = lyc.adapter_stamp(tmp_path / name)
        for _ in range(2):
            with pytest.raises(lyc.FileFormatError, match=name):
                lyc.load_adapter(tmp_path / name)
        assert lyc.load_adapter(tmp_path / "good.safetensors").layers["lora_unet_a"].rank == 1
        (save_file if name.endswith("s") else torch.save)(LORA, tmp_path / name)
        assert lyc.adapter_stamp(tmp_path / name) != stamp
        assert lyc.load_adapter(tmp_path / name).layers["lora_unet_a"].rank == 1


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("value", ["4 GB", "", "-1", "1e3", "4096.0", "9" * 5000])
def test_a_wrong_size_of_the_cache_is_an_error_where_it_is_first_used(
    tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is imported all the same, so that the host can show the error where a node runs."""
    monkeypatch.setenv("LYCORIS_CACHE_MB", value)
    cache = runpy.run_module("lycoris_ops.files.cache")["DEFAULT_CACHE"]
    save_file(LORA, tmp_path / "x.safetensors")
    adapter = lyc.load_adapter(tmp_path / "x.safetensors", cache=cache)
    for _ in range(2):
        with pytest.raises(lyc.LycorisError, match=r"LYCORIS_CACHE_MB.*whole number without a unit.*4096"):
            adapter.layers["lora_unet_a"]
    monkeypatch.setenv("LYCORIS_CACHE_MB", "16")
    assert adapter.layers["lora_unet_a"].rank == 1 and cache.max_bytes == 16 << 20
