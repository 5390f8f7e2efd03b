"""Layers and files that are wrong: each has its error, or its line in the report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from layers import factors, lora
from safetensors.torch import save_file
from torch import Tensor

import lycoris_ops as lyc

KEYS = {"diffusion_model.a.b.weight": (12, 18), "diffusion_model.a.c.weight": (12, 18)}
GOOD, NAME = "lora_unet_a_b", "lora_unet_a_c"


def written(path: Path, layer: dict[str, Tensor], name: str = NAME) -> Path:
    """A file of one good layer and the one in question."""
    tensors = {f"{GOOD}.{key}": tensor for key, tensor in lora((12, 18), 2).items()}
    tensors |= {f"{name}.{key}": tensor for key, tensor in layer.items()}
    save_file(tensors, path / "x.safetensors")
    return path / "x.safetensors"


def report(path: Path) -> str:
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    resolution = lyc.resolve(stack, KEYS)
    resolution.check()
    return lyc.describe(resolution)


def without(layer: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in layer.items() if name != key}


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ({**factors("lora", "linear"), **factors("loha", "linear")}, "two kinds at once, loha and lora"),
        ({**factors("lora", "linear"), "hada_w1_a": torch.zeros(12, 2)}, "two kinds at once, lora and loha"),
        (without(factors("lora", "linear"), "lora_up.weight"), "a lora layer without lora_up.weight"),
        (without(factors("loha", "linear"), "hada_w2_b"), "a loha layer without hada_w2_b"),
        (without(factors("lokr-full-low", "linear"), "lokr_w2_a"), "a lokr layer without lokr_w2"),
        (without(factors("glora", "linear"), "b1.weight"), "a glora layer without b1.weight"),
        ({"alpha": torch.tensor(1.0)}, "no algorithm reads the tensors alpha"),
        ({**factors("lora", "linear"), "new_thing": torch.zeros(1)}, "new_thing, which is not known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_that_cannot_be_read_is_reported_and_fails_strict(
    tmp_path: Path, layer: dict[str, Tensor], line: str
) -> None:
    path = written(tmp_path, layer)
    text = report(path)
    assert "applied 1 of 2 layers" in text and f"{NAME}: " in text and line in text
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    with pytest.raises(lyc.MatchError, match=NAME):
        lyc.resolve(stack, KEYS).check(strict=True)


@pytest.mark.parametrize(
    ("kind", "key", "shape", "says"),
    [
        ("lora", "lora_up.weight", (12, 4), "ranks of lora_up.weight and lora_down.weight disagree"),
        ("loha", "hada_w2_a", (12, 4), "ranks of hada_w2_a and hada_w2_b disagree"),
        ("lokr-low-low", "lokr_w1_b", (5, 3), "ranks of lokr_w1_a and lokr_w1_b disagree"),
        ("glora", "a2.weight", (4, 18), "ranks of a GLoRA layer disagree"),
        ("oft", "oft_blocks", (3, 4, 5), "sides of oft_blocks"),
        ("oftv2", "oft_R.weight", (9, 2), "not triangles"),
        ("tlora", "lambda_layer", (1, 4), "ranks of lambda_layer and q_layer.weight disagree"),
        ("ia3", "on_input", (2,), "on_input is not a single number"),
        ("lora-dora-out", "dora_scale", (11, 1), "neither the outputs nor the inputs"),
        ("lora-sparse", "bias_size", None, "sparse remainder is incomplete"),
    ],
)
def test_tensors_that_contradict_each_other_name_file_layer_and_sizes(
    tmp_path: Path, kind: str, key: str, shape: tuple[int, ...] | None, says: str
) -> None:
    layer = without(factors(kind, "linear"), key)
    path = written(tmp_path, layer if shape is None else {**layer, key: torch.zeros(shape)})
    with pytest.raises(lyc.LayerError) as caught:
        lyc.load_adapter(path)
    text = str(caught.value)
    assert str(path) in text and NAME in text and says in text


@pytest.mark.parametrize(
    ("alpha", "line"),
    [(0.0, "alpha is 0 in 1 layers: they have no effect"), (-2.0, "alpha is negative in 1 layers")],
)
def test_a_strange_alpha_is_applied_as_it_stands_and_reported(
    tmp_path: Path, alpha: float, line: str
) -> None:
    path = written(tmp_path, factors("lora", "linear", alpha=alpha))
    assert line in report(path)
    layer = lyc.load_adapter(path).layers[NAME]
    plain = type(layer)(**{**vars(layer), "alpha": None})
    zero = torch.zeros(12, 18)
    torch.testing.assert_close(layer.delta(zero), alpha / 3 * plain.delta(zero))


def test_an_alpha_that_has_no_part_is_not_reported(tmp_path: Path) -> None:
    assert "alpha is" not in report(written(tmp_path, factors("lokr-full-full", "linear", alpha=0.0)))


def test_an_alpha_of_one_element_is_a_number(tmp_path: Path) -> None:
    layer = {**factors("lora", "linear", alpha=None), "alpha": torch.tensor([2.0], dtype=torch.float16)}
    read = lyc.load_adapter(written(tmp_path, layer)).layers[NAME]
    assert read.alpha == 2.0
    with pytest.raises(lyc.LayerError, match=r"alpha is not a single number.*\[2\]"):
        lyc.load_adapter(written(tmp_path, {**layer, "alpha": torch.ones(2)}))


@pytest.mark.parametrize("kind", ["lora", "glora", "oft"])
def test_an_alpha_that_is_no_number_is_an_error_where_it_is_used(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, factors(kind, "linear", alpha=math.nan))
    assert "applied 2 of 2 layers" in report(path)
    layer = lyc.load_adapter(path).layers[NAME]
    with pytest.raises(lyc.LayerError, match="alpha is not a finite number"):
        lyc.patch_(torch.randn(12, 18), [(layer, 1.0)])


def test_lokr_factors_that_do_not_multiply_to_the_weight_name_both_shapes(tmp_path: Path) -> None:
    layer = {"lokr_w1": torch.zeros(3, 3), "lokr_w2": torch.zeros(5, 6)}
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(written(tmp_path, layer)))])
    with pytest.raises(lyc.MatchError, match=r"\[15, 18\].*\[12, 18\]") as caught:
        lyc.resolve(stack, KEYS).check()
    assert NAME in str(caught.value)


def test_dialects_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    path = written(tmp_path, factors("loha", "linear"), "diffusion_model.a.c")
    adapter = lyc.load_adapter(path)
    assert adapter.dialect == "comfy+kohya"
    assert "applied 2 of 2 layers" in report(path)


def test_one_layer_in_two_dialects_is_an_error_naming_both(tmp_path: Path) -> None:
    path = written(tmp_path, factors("loha", "linear"), "diffusion_model.a.b")
    with pytest.raises(lyc.MatchError, match="two layers of one adapter mean the same weight") as caught:
        report(path)
    assert GOOD in str(caught.value) and "diffusion_model.a.b" in str(caught.value)


def test_a_thousand_unknown_keys_leave_the_report_readable(tmp_path: Path) -> None:
    strange = {f"x.{number}.unheard_of": torch.zeros(1) for number in range(1000)}
    missing = {f"y.{number}.lora_up.weight": torch.zeros(2, 2) for number in range(1000)}
    tensors = {f"{GOOD}.{key}": tensor for key, tensor in lora((12, 18), 2).items()}
    save_file({**tensors, **strange, **missing}, tmp_path / "x.safetensors")
    text = report(tmp_path / "x.safetensors")
    assert "1000 keys of the file are of no known kind" in text and "and 992 more" in text
    assert "1000 layers meet nothing" in text
    assert len(text.splitlines()) < 40 and max(len(line) for line in text.splitlines()) < 200
    save_file(strange, tmp_path / "y.safetensors")
    with pytest.raises(lyc.FileFormatError, match="1000 other keys") as caught:
        lyc.load_adapter(tmp_path / "y.safetensors")
    assert len(str(caught.value)) < 600


def test_a_header_of_a_million_entries_is_refused_in_few_words(tmp_path: Path) -> None:
    entry = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"k{number}": entry for number in range(1_000_000)}, separators=(",", ":")).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(lyc.FileFormatError, match="1000000 other keys") as caught:
        lyc.load_adapter(path)
    assert len(str(caught.value)) < 600


def test_names_that_differ_only_in_case_are_two_names(tmp_path: Path) -> None:
    path = written(tmp_path, factors("lora", "linear"), "lora_unet_A_c")
    text = report(path)
    assert "applied 1 of 2 layers" in text and "nearest: diffusion_model.a.c" in text
    keys = {**KEYS, "diffusion_model.A.c.weight": (12, 18)}
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(path))])
    (resolution,) = lyc.resolve(stack, keys).entries
    assert {match.target.key for match in resolution.matches} == {
        "diffusion_model.a.b.weight",
        "diffusion_model.A.c.weight",
    }


def test_an_unknown_option_is_an_error_naming_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(lyc.LycorisError, match=r"sigtype.*sig_type"):
        lyc.load_adapter(written(tmp_path, factors("lora", "linear")), sigtype="last")


def test_a_tlora_without_its_options_says_what_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, factors("tlora", "linear"))
    base = torch.randn(12, 18)
    with pytest.raises(lyc.LayerError, match="sig_type"):
        lyc.patch_(base, [(lyc.load_adapter(path).layers[NAME], 1.0)])
    one, other = (lyc.load_adapter(path, sig_type=kind).layers[NAME] for kind in ("principal", "last"))
    assert not torch.equal(one.delta(base), other.delta(base))
