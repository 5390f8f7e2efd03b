"""Files whose metadata or configuration contradict their tensors, or make no sense.

Options with impossible values, and files that are not what their name says, are tested here too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import factors
from safetensors.torch import save_file
from torch import Tensor
from written import adapter as adapter_of
from written import configured, read

import lycoris_ops as lyc
from lycoris_ops.reading.adapter import options_of

KEY, NAME = "diffusion_model.a.c.weight", "lora_unet_a_c"


# PEFT's adapter_config.json beside the file.

SHAPES = {f"diffusion_model.x.{name}.weight": (12, 18) for name in "qkv"}


def pair(
    name: str, up: str = "lora_B.weight", down: str = "lora_A.weight", rank: int = 4
) -> dict[str, Tensor]:
    """The factors of a LoRA layer, with these suffixes."""
    return {f"{name}.{up}": torch.randn(12, rank), f"{name}.{down}": torch.randn(rank, 18)}


def beside(folder: Path, tensors: dict[str, Tensor], config: Any = None) -> lyc.Adapter:
    """An adapter from a file with a configuration beside it."""
    return configured(folder, tensors, config or {"peft_type": "LORA", "r": 4, "lora_alpha": 64})


def report(adapter: lyc.Adapter) -> str:
    return lyc.describe(lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), SHAPES))


@pytest.mark.parametrize(
    "tensors",
    [
        pair("base_model.model.x.q"),
        pair("base_model.model.x.q") | pair("x.k"),
        pair("base_model.model.x.q") | {"x.alpha": torch.tensor(1.0)},
        pair("base_model.model.x.q") | {"stray.thing": torch.zeros(1)},
        pair("diffusion_model.x.q"),
        pair("transformer.x.q"),
        pair("x.q"),
        pair("x.q", "lora_B.default.weight", "lora_A.default.weight"),
        # The prefix alone is enough: a file that was resized still has its configuration.
        pair("base_model.model.x.q", rank=2),
    ],
    ids=" ".join,
)
def test_a_configuration_beside_the_file_is_for_each_layer_that_is_pefts(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """Every layer that PEFT may have written takes its alpha from adapter_config.json.

    A layer with PEFT's prefix always does. A layer with another name must have the rank of the
    configuration.
    """
    adapter = beside(tmp_path, tensors)
    assert adapter.alphas() == dict.fromkeys(adapter.info, 64.0)
    assert {layer.alpha for layer in adapter.layers.values()} == {64.0}
    text = report(adapter)
    assert "alpha from adapter_config.json" in text and "do not follow" not in text


def test_a_configuration_of_another_file_changes_nothing_and_is_mentioned(tmp_path: Path) -> None:
    """A configuration is not applied to layers that it does not describe.

    Someone may have put PEFT's configuration into a folder of many adapters.
    """
    kohya = pair("lora_unet_x_q", "lora_up.weight", "lora_down.weight")
    kohya["lora_unet_x_q.alpha"] = torch.tensor(2.0)
    adapter = beside(tmp_path, kohya)
    assert adapter.alphas() == {"lora_unet_x_q": 2.0}
    assert "adapter_config.json" not in report(adapter)
    # A damaged configuration is not even read for such a file.
    assert beside(tmp_path, kohya, "{").alphas() == {"lora_unet_x_q": 2.0}
    own = {**pair("diffusion_model.x.q"), "diffusion_model.x.q.alpha": torch.tensor(2.0)}
    assert beside(tmp_path, own).alphas() == {"diffusion_model.x.q": 2.0}
    mixed = pair("diffusion_model.x.q") | pair("diffusion_model.x.k", rank=3)
    mixed |= pair("lora_unet_x_v", "lora_up.weight", "lora_down.weight")
    adapter = beside(tmp_path, mixed)
    alphas = {"diffusion_model.x.q": 64.0, "diffusion_model.x.k": None, "lora_unet_x_v": None}
    assert adapter.alphas() == alphas
    text = report(adapter)
    assert "alpha from adapter_config.json" in text
    assert "2 layers have no alpha, and the adapter_config.json beside the file does not apply" in text


def test_pefts_layers_without_any_configuration_are_counted(tmp_path: Path) -> None:
    text = report(read(tmp_path, pair("base_model.model.x.q") | pair("x.k")))
    assert "no adapter_config.json beside the file: 2 layers at scale 1" in text


def test_an_ia3_of_a_convolution_follows_the_configuration_whatever_its_prefix(tmp_path: Path) -> None:
    """Only the configuration says that the factors are for inputs.

    A factor of 2 for every input doubles the weight, so the delta is the weight itself.
    """
    config = {"peft_type": "IA3", "feedforward_modules": ["q"]}
    adapter = beside(tmp_path, {"diffusion_model.x.q.ia3_l": torch.full((1, 4, 1, 1), 2.0)}, config)
    weight = torch.randn(3, 4, 1, 1)
    assert torch.equal(adapter.layers["diffusion_model.x.q"].delta(weight), weight)


def test_a_mark_of_the_byte_order_before_a_configuration_is_skipped(tmp_path: Path) -> None:
    """UTF-8 text may begin with the character U+FEFF."""
    text = "\ufeff" + json.dumps({"r": 4, "lora_alpha": 8})
    assert beside(tmp_path, pair("base_model.model.x.q"), text).alphas() == {"base_model.model.x.q": 8.0}


def test_a_name_too_long_for_the_disk_is_an_error_of_the_family(tmp_path: Path) -> None:
    """The system's own error does not reach the caller."""
    adapter = adapter_of(tmp_path, {NAME: factors("lora", "linear")})
    # Names may have 255 bytes: 240 leave no room for the longer name of an unfinished file.
    for long in ("x" * 300, "x" * 240):
        with pytest.raises(
            lyc.FileFormatError, match="cannot be read" if len(long) > 255 else "no such file"
        ):
            lyc.load_adapter(tmp_path / f"{long}.safetensors"[:300])
        with pytest.raises(lyc.WriteError, match=r"cannot be written.*too long"):
            lyc.save_adapter(adapter, tmp_path / f"{long}.safetensors")
        save_file({KEY: torch.randn(12, 18)}, tmp_path / "base.safetensors")
        with pytest.raises(lyc.WriteError, match=r"cannot be written.*too long"):
            stack = lyc.Stack([lyc.Entry(adapter)])
            lyc.merge_checkpoint(tmp_path / "base.safetensors", stack, tmp_path / f"{long}.safetensors")
    with pytest.raises(lyc.WriteError, match=r"cannot be written.*too long"):
        lyc.save_adapter(adapter, tmp_path / ("x" * 300), "peft")


# Options with impossible values, and files that are not what their name says.


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("dora", "Host", "paper, host"),
        ("dora", None, "paper, host"),
        ("sig_type", "random", "principal, last, middle, None"),
        ("terms", 3_000_000, "found 3000000; expected a whole number.* 100"),
        ("terms", 10**30, "expected a whole number.* 100"),
        ("terms", 2.5, "a whole number"),
        ("terms", True, "a whole number"),
        ("last", 3, "found 3; expected 1 or 2"),
        ("constraint", 0, "a number above 0"),
        ("constraint", math.inf, "found inf; expected a number above 0"),
        ("feedforward", 1, "True, False or None"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(
    tmp_path: Path, option: str, value: Any, known: str
) -> None:
    """The options of `load_adapter` are checked, and so are those of a layer."""
    path = adapter_of(tmp_path, {NAME: factors("lora", "linear")}).path
    says = f"value of the option {option}.*{known}"
    with pytest.raises(lyc.LycorisError, match=says):
        lyc.load_adapter(path, **{option: value})
    if option in ("terms", "last", "constraint"):
        with pytest.raises(lyc.LayerError, match=says):
            lyc.ALGORITHMS["oftv2"].load({"oft_R.weight": torch.zeros(9, 1)}, {option: value})


def test_every_option_has_values_that_are_known(tmp_path: Path) -> None:
    path = adapter_of(tmp_path, {NAME: factors("lora", "linear")}).path
    known = {option for kind in lyc.ALGORITHMS.values() for option in options_of(kind)}
    assert known == {
        *("dora", "sig_type", "terms", "last", "constraint", "feedforward", "start", "product_of"),
    }
    for option in known:
        with pytest.raises(lyc.LycorisError, match=option):
            lyc.load_adapter(path, **{option: "no such value"})
    lyc.load_adapter(path, dora="host", sig_type=None, terms=0, last=2, constraint=1e-4, feedforward=True)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_an_alpha_that_is_no_number_is_in_the_report(tmp_path: Path, alpha: float) -> None:
    for kind in ("lora", "oft"):
        text = report(adapter_of(tmp_path, {NAME: factors(kind, "linear", alpha=alpha)}))
        assert "alpha is NaN or infinite in 1 layer, which cannot be applied" in text
        assert "negative" not in text and "alpha is 0" not in text


def test_a_safetensors_file_under_a_pickles_name_says_so(tmp_path: Path) -> None:
    written = adapter_of(tmp_path, {NAME: factors("lora", "linear")}).path
    path = Path(written).rename(tmp_path / "x.pt")
    with pytest.raises(lyc.FileFormatError, match=r"x\.pt: not a pickle.*ends in \.safetensors") as caught:
        lyc.load_adapter(path)
    assert "weights_only" not in str(caught.value)
    path.write_bytes(b"\x80\x02}" * 9)
    with pytest.raises(lyc.FileFormatError, match=r"x\.pt: not a pickle.*save it again"):
        lyc.load_adapter(path)


# PEFT files whose keys hold the name of the adapter.


def named(name: str) -> dict[str, Tensor]:
    """The tensors of three layers as PEFT saves them with the name of the adapter in their keys."""
    root = "base_model.model.x"
    return {
        f"{root}.q.lora_A.{name}.weight": torch.randn(4, 18),
        f"{root}.q.lora_B.{name}.weight": torch.randn(12, 4),
        f"{root}.q.lora_B.{name}.bias": torch.randn(12),
        f"{root}.q.lora_magnitude_vector.{name}.weight": torch.rand(12),
        f"{root}.k.lokr_w1.{name}": torch.randn(3, 2),
        f"{root}.k.lokr_w2.{name}": torch.randn(4, 9),
        f"{root}.v.oft_R.{name}.weight": torch.randn(9, 1),
    }


def test_the_one_adapter_of_a_file_may_have_any_name(tmp_path: Path) -> None:
    """A file with adapter `style` is read like the same file with PEFT's usual `default`."""
    adapter, plain = (beside(tmp_path / name, named(name)) for name in ("style", "default"))
    assert adapter.dialect == plain.dialect == "peft"
    kinds = {name: info.algorithm for name, info in adapter.info.items()}
    assert kinds == {name: info.algorithm for name, info in plain.info.items()} and len(kinds) == 3
    assert not adapter.unreadable and not adapter.unused_keys
    assert adapter.alphas() == plain.alphas()


def test_a_file_of_several_adapters_names_them(tmp_path: Path) -> None:
    save_file(named("style") | named("face"), tmp_path / "x.safetensors")
    with pytest.raises(lyc.FileFormatError, match="several adapters, face, style: "):
        lyc.load_adapter(tmp_path / "x.safetensors")


def test_what_only_looks_like_a_name_is_none(tmp_path: Path) -> None:
    """In `lokr_w1.scale`, beside `lokr_w1`, `scale` is not the name of an adapter."""
    layer = factors("lokr-full-full", "linear")
    adapter = adapter_of(tmp_path, {NAME: {**layer, "lokr_w1.scale": torch.ones(1)}})
    assert "lokr_w1.scale" in adapter.unreadable[NAME]
