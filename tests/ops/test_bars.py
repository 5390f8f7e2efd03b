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


def painted(bars: lyc.Bars, text: str, **weights: float) -> str:
    return bars.painted(text, {name.replace("__", "."): weight for name, weight in weights.items()})


def test_bars_become_lines_with_those_of_one_weight_together(tmp_path: Path) -> None:
    sd, flux = bars_of("sd15_locon", tmp_path), bars_of("flux_kohya", tmp_path)
    assert painted(sd, "", in__4=0.5) == "in.4 = 0.5"
    text = painted(sd, "in.4 = 0.5", in__5=0.5, in__6=0.5, mid=0.5, out__0=0)
    assert text == "in.4-6 mid = 0.5\nout.0 = 0"
    # A bar that is back at 1 needs no line.
    assert painted(sd, "in.4-6 mid = 0.5", in__5=1) == "in.4 in.6 mid = 0.5"
    assert painted(sd, "in.4 = 0.5", in__4=1) == ""
    assert painted(flux, "", **{f"single__{at}": 0.5 for at in range(38)}) == "single.0-37 = 0.5"
    apart = {
        f"{name}__{at}": 0.5 for name in ("in", "out") for at in range(1, 12, 2) if (name, at) < ("out", 9)
    }
    assert painted(sd, "", **apart).splitlines() == [
        "in.1 in.3 in.5 in.7 in.9 in.11 out.1 out.3 out.5 = 0.5",
        "out.7 = 0.5",
    ]
    assert painted(sd, "", in__1=1e-6, in__2=-1e-6, in__3=12.34567) == "in.1-2 = 0\nin.3 = 12.346"


def test_kinds_are_scales_after_the_blocks(tmp_path: Path) -> None:
    sd = bars_of("sd15_locon", tmp_path)
    text = painted(sd, "in.4 = 0.5", attn=0.5, mlp=1)
    assert text == "in.4 = 0.5\nattn = *0.5"
    assert painted(sd, text, in__5=0.2) == "in.4 = 0.5\nin.5 = 0.2\nattn = *0.5"
    assert sd.kinds_of(text) == ("in.4 = 0.5", {"attn": 0.5})
    assert painted(sd, text, attn=1) == "in.4 = 0.5"
    assert sd.kinds_of("attn = *0.5\nAttn = *0.5") == ("", {"attn": 0.25})
    # Before values it says something else, which stays.
    assert painted(sd, "attn = *0.5\nin.4 = 0.5", in__5=0) == "attn = *0.5\nin.4 = 0.5\nin.5 = 0"


@pytest.mark.parametrize(
    "line",
    [
        *("*attn* = 0.5", "1,0,0,0", "%default=1,in1=0", "in = 0.5", "in.1 = 0.2..1", "IN01:attn:0.5"),
        *("in.1 =", "in.4-40 = 0.5", "in.0-999999 = 0.5", "in.1 = *0.5", "FLUX-DBL-FRONT"),
        *("in.1 nothing = 0.5", "attn = 0.5", "attn nothing = *0.5", "/attn/ = 0.3  # only attention"),
    ],
)
def test_lines_that_bars_cannot_say_stay_as_written(line: str, tmp_path: Path) -> None:
    sd = bars_of("sd15_locon", tmp_path)
    own = f"# mine\nin.1 = 0.2\n{line}"
    assert painted(sd, own, mid=0.5) == f"{own}\nmid = 0.5"
    # What the bars say wins, so a weight of 1 is written.
    assert painted(sd, own, in__1=1, in__2=0.5) == f"{own}\nin.1 = 1\nin.2 = 0.5"


def test_comments_are_kept_and_other_spellings_are_read(tmp_path: Path) -> None:
    sd = bars_of("sd15_locon", tmp_path)
    text = "# the whole\nin.4 = 0.5 # less\nout.1-out.3, MID = off"
    assert painted(sd, text, out__1=1) == "# the whole\nin.4 = 0.5  # less\nmid out.2-3 = 0"
    assert painted(sd, text, in__4=0.6) == "# the whole\n# less\nin.4 = 0.6\nmid out.1-3 = 0"
    assert painted(sd, "attn = *0.5 # soft", mid=0) == "mid = 0\nattn = *0.5  # soft"
