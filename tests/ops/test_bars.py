"""A model's blocks as bars: which bars there are, what a file has in each, and what rules do to them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import lycoris_ops as lyc
from lycoris_ops.stack.survey import blocks_of
from tests.harness.architecture_names import records
from tests.harness.listings import listings, target, thin, write_hollow, write_random

LISTS = {
    "sd15_locon": {"in": 12, "mid": 1, "out": 12},
    "sdxl_kohya_te": {"in": 9, "mid": 1, "out": 9, "clip_l": 12, "clip_g": 32},
    "flux_kohya": {"double": 19, "single": 38},
    "qwen_image_musubi": {"transformer": 60},
    "wan21_musubi": {"blocks": 40},
}
"""For each file, the lists of blocks with the number of bars in each."""


@cache
def blocks(architecture: str) -> lyc.Blocks:
    return blocks_of(target(architecture))


def bars_of(name: str, folder: Path, *, alone: bool = False) -> lyc.Bars:
    listing = thin(listings()[name]) if alone else listings()[name]
    write = write_random if alone else write_hollow
    adapter = lyc.load_adapter(write(listing, folder / f"{name}.safetensors"))
    return lyc.Bars(adapter, None if alone else blocks(listing.architecture))


@pytest.mark.parametrize("name", LISTS)
def test_each_block_has_a_bar_that_its_name_sets(name: str, tmp_path: Path) -> None:
    bars = bars_of(name, tmp_path)
    lists = {group.name: group for group in bars.groups if group.sort in ("blocks", "text")}
    assert {key: len(group.bars) for key, group in lists.items()} == LISTS[name]
    single = [bar for group in bars.groups if group.sort != "kinds" for bar in group.bars]
    assert sorted(layer for bar in single for layer in bar.layers) == sorted(bars.mine)
    for bar in (single[0], single[len(single) // 2], single[-1]):
        weights = bars.weighed(lyc.Rules.parse(f"{bar.name} = 0.25")).weights
        expected = {one.name: 0.25 if one == bar else 1.0 for one in single}
        assert {one: weights[one].mean for one in expected} == expected
        assert weights[bar.name].least == weights[bar.name].most


@pytest.mark.parametrize("name", LISTS)
def test_kinds_of_layers_have_bars_that_scale_them(name: str, tmp_path: Path) -> None:
    bars = bars_of(name, tmp_path)
    (kinds,) = (group for group in bars.groups if group.sort == "kinds")
    assert {"attn", "mlp"} <= {bar.name for bar in kinds.bars}
    for bar in kinds.bars:
        found = bars.weighed(lyc.Rules.parse(f"{bar.name} = *0.5"))
        assert found.weights[bar.name][:2] == (0.5, 0.5)
        assert not found.idle


def test_picture_and_sound_have_bars_of_their_own(tmp_path: Path) -> None:
    """In a model of picture and sound each layer belongs to one of the two. Other models have neither bar."""
    layers = records()["LTX-2"].layers
    model = blocks_of({f"diffusion_model.{path}.weight": shape for path, shape in layers.items()})
    names = {named.paths[0].removeprefix("diffusion_model."): named.names for named in model.layers}
    sound = {path for path in names if "audio" in names[path]}
    assert sound == names.keys() - {path for path in names if "video" in names[path]}
    assert {path for path in names if "audio" in path or "v2a" in path} - sound == {
        path for path in names if "audio_to_video" in path
    }
    block = "diffusion_model.transformer_blocks.0"
    tensors = {
        f"{block}.{layer}.{factor}.weight": torch.randn(shape)
        for layer in ("attn1.to_q", "audio_attn1.to_q", "audio_to_video_attn.to_out.0")
        for factor, shape in (("lora_A", (2, 16)), ("lora_B", (16, 2)))
    }
    adapter = lyc.adapter_of_tensors(tensors, name="both")
    bars = lyc.Bars(adapter, None)
    found = {
        bar.name: len(bar.layers) for group in bars.groups for bar in group.bars if group.sort == "kinds"
    }
    assert found["video"] == 2 and found["audio"] == 1
    weighed = bars.weighed(lyc.Rules.parse("audio = *0.25"))
    assert weighed.weights["audio"].mean == 0.25 and weighed.weights["video"].mean == 1
    assert lyc.about(adapter).signals == ("video", "audio")
    silent = records()["LTX-Video"].layers
    assert not any(
        named.names & {"video", "audio"}
        for named in blocks_of(
            {f"diffusion_model.{path}.weight": shape for path, shape in silent.items()}
        ).layers
    )


def test_shares_are_measured_bit_by_bit_and_are_one_together(tmp_path: Path) -> None:
    listing = thin(listings()["sdxl_kohya_te"])
    adapter = lyc.load_adapter(write_random(listing, tmp_path / "x.safetensors"))
    bars = lyc.Bars(adapter, blocks(listing.architecture))
    steps = 0
    while not bars.measure(0):
        steps += 1
        assert bars.done == steps
    assert bars.done == len(bars.matches) and not bars.unmeasured
    single = [bar for group in bars.groups if group.sort != "kinds" for bar in group.bars]
    assert sum(map(bars.share, single)) == pytest.approx(1)
    surveyed = lyc.survey(lyc.Stack([lyc.Entry(adapter)]), target(listing.architecture)).adapters[0]
    assert {bar.name: bars.share(bar) for bar in single} == pytest.approx(
        {bar.name: surveyed.share(bar.name) for bar in single}
    )


def test_a_layer_that_cannot_be_read_is_an_error_whenever_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page asks until all is measured. After an error that came only once, it would ask for ever."""

    def size_of(entry: lyc.Entry, match: lyc.Match, read: object) -> float:
        if match is bars.matches[1]:
            raise lyc.LayerError("it holds no numbers")
        return 1.0

    bars = bars_of("flux_kohya", tmp_path)
    monkeypatch.setattr("lycoris_ops.stack.bars.size_of", size_of)
    for _ in range(3):
        with pytest.raises(lyc.LayerError, match="no numbers"):
            bars.measure(1)
        assert bars.done == 1


def test_a_file_alone_names_its_own_blocks(tmp_path: Path) -> None:
    found = {
        group.name: [bar.name for bar in group.bars]
        for group in bars_of("flux_kohya", tmp_path, alone=True).groups
    }
    assert found["double"][:2] == ["double.0", "double.1"] and found["single"][:2] == ["single.0", "single.1"]


def test_presets_are_those_whose_blocks_the_model_has(tmp_path: Path) -> None:
    flux = bars_of("flux_kohya", tmp_path).fitting(lyc.BLOCK_PRESETS)
    assert {"ALL", "FLUX-DBL-FRONT", "FLUX-SGL-TAIL"} <= flux.keys() and "SDXL-OUTALL" not in flux
    sdxl = bars_of("sdxl_kohya_te", tmp_path).fitting(lyc.BLOCK_PRESETS)
    assert {"ALL", "SDXL-OUTALL", "MIDD"} & sdxl.keys() and not [
        name for name in sdxl if name.startswith("FLUX")
    ]
