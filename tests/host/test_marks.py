"""A base whose description of its quantised weights makes no sense: an error with the key and the fault."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.host
LAYER = "diffusion_model.x"
INT8 = {"format": "int8_tensorwise"}
DEEP = "[" * 5000 + "]" * 5000


def merged(host: Host, folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Any:
    """Merge a LoRA for the layer into a base of these tensors, as Save Merged Model does."""
    codec = importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.files.codec").HostCodec()
    weight = {f"{LAYER}.weight": torch.ones(16, 16, dtype=torch.int8), f"{LAYER}.weight_scale": torch.ones(1)}
    save_file({**weight, **tensors}, folder / "base.safetensors", dict(metadata))
    lora = {
        "lora_unet_x.lora_up.weight": torch.ones(16, 2),
        "lora_unet_x.lora_down.weight": torch.ones(2, 16),
    }
    save_file(lora, folder / "lora.safetensors")
    stack = host.ops.Stack([host.ops.Entry(host.ops.load_adapter(folder / "lora.safetensors"))])
    out = folder / "out.safetensors"
    return host.ops.merge_checkpoint(folder / "base.safetensors", stack, out, codec=codec)


def mark(data: bytes | str | Mapping[str, Any]) -> Tensor:
    """The tensor that holds these bytes, or this table as JSON."""
    if isinstance(data, Mapping):
        data = json.dumps(data)
    return torch.tensor(list(data.encode() if isinstance(data, str) else data), dtype=torch.uint8)


MARKS: dict[str, tuple[Tensor, str]] = {
    "nothing": (mark(b""), "Expecting value"),
    "no JSON": (mark(b"{"), "Expecting"),
    "no text": (mark(b"\xff\xfe{}"), "codec can't decode"),
    "a list": (mark("[]"), "found a list"),
    "null": (mark("null"), "found nothing"),
    "a number": (mark("3"), "found a number"),
    "a text": (mark('"int8_tensorwise"'), "found a text"),
    "deep": (mark(DEEP), "too deep"),
    "no format": (mark({}), "a format that is nothing"),
    "a format in a list": (mark({"format": ["int8_tensorwise"]}), "a format that is a list"),
    "a format that is a number": (mark({"format": 8}), "a format that is a number"),
    "of floats": (torch.ones(9), r"36 bytes of F32 \[9\]"),
    "long": (torch.zeros(20_000, dtype=torch.uint8), "20000 bytes of U8"),
    **{
        f"groups of {size!r}": (
            mark({**INT8, "convrot": True, "convrot_groupsize": size}),
            "convrot_groupsize of",
        )
        for size in (65536, 0, -4, "256", None, True, 1e400)
    },
    "groups in params": (mark({**INT8, "params": {"convrot_groupsize": 1 << 40}}), "convrot_groupsize of"),
}
"""Tensors that should describe a quantised weight, with words of the error."""

TABLES: dict[str, tuple[str, str]] = {
    "no JSON": ("int8", "Expecting value"),
    "a list": ("[]", "found a list"),
    "null": ("null", "found nothing"),
    "deep": (DEEP, "too deep"),
    "a list of layers": ('{"layers": []}', "layers that are a list"),
    "no layers": ('{"layers": null}', "layers that are nothing"),
    "a layer that is a text": (json.dumps({"layers": {LAYER: "int8"}}), f"{LAYER}: .*found a text"),
    "a layer without a format": (json.dumps({"layers": {LAYER: {}}}), f"{LAYER}: .*a format that is nothing"),
}
"""The same for metadata that should describe all quantised weights."""


@pytest.mark.parametrize("case", MARKS)
def test_a_mark_that_makes_no_sense_is_named(host: Host, tmp_path: Path, case: str) -> None:
    tensor, words = MARKS[case]
    with pytest.raises(
        host.ops.FileFormatError, match=rf"base\.safetensors: {LAYER}\.comfy_quant: .*{words}"
    ):
        merged(host, tmp_path, {f"{LAYER}.comfy_quant": tensor}, {})
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_makes_no_sense_is_named(host: Host, tmp_path: Path, case: str) -> None:
    table, words = TABLES[case]
    with pytest.raises(
        host.ops.FileFormatError, match=rf"base\.safetensors: _quantization_metadata: .*{words}"
    ):
        merged(host, tmp_path, {}, {"_quantization_metadata": table})


@pytest.mark.parametrize("format_", ["mxfp8", "nvfp4", "convrot_w4a4", "float8_e4m3fn", "unheard of"])
@pytest.mark.parametrize(
    "scale", [None, torch.ones(7), torch.ones(0), torch.ones(2, 2, 2), torch.tensor([True])]
)
def test_a_mark_of_another_format_is_merged_or_an_error_of_the_family(
    host: Host, tmp_path: Path, format_: str, scale: Tensor | None
) -> None:
    """The weight is int8, so what the mark says of it is wrong. The host's layer checks little of that."""
    beside = {f"{LAYER}.comfy_quant": mark({"format": format_})}
    if scale is not None:
        beside |= {f"{LAYER}.weight_scale": scale, f"{LAYER}.weight_scale_2": scale.clone()}
    try:
        merged(host, tmp_path, beside, {})
    except host.ops.LycorisError as error:
        assert LAYER in str(error) or "weight" in str(error)
        assert not (tmp_path / "out.safetensors").exists()


def test_many_old_marks_take_no_longer_than_one(host: Host, tmp_path: Path) -> None:
    """4,000 marks are for parts of the model whose names begin alike."""
    half = torch.zeros(1, dtype=torch.float8_e4m3fn)
    tensors = {f"{'a' * (n % 800)}{n}.scaled_fp8": half.clone() for n in range(4000)}
    scales = {f"{'a' * (n % 800)}{n}.x.scale_weight": torch.ones(1) for n in range(4000)}
    with pytest.raises(host.ops.FileFormatError, match="a weight that an adapter changes is quantised"):
        merged(host, tmp_path, {**tensors, **scales}, {})
