"""What adapters do to a model, measured: against dense matrices in float64."""

from __future__ import annotations

import json
import math
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from layers import KINDS, WEIGHTS, home, load
from safetensors.torch import save_file
from torch import Tensor
from written import in_memory

import lycoris_ops as lyc
from lycoris_ops.__main__ import main
from lycoris_ops.charts import Axes, Series, colour_of, side_by_side
from lycoris_ops.inspect.pictures import block_rows, examination_charts
from lycoris_ops.names.blocks import block_in_path

LAYERS = {
    "input_blocks_1_1_transformer_blocks_0_attn1_to_q": "linear",
    "input_blocks_4_1_transformer_blocks_0_ff_net_2": "linear",
    "middle_block_0_in_layers_2": "conv2d",
}


def adapter(name: str, kinds: tuple[str, ...]) -> lyc.Adapter:
    made = (load(kind, weight) for kind, weight in zip(kinds, LAYERS.values(), strict=True))
    return in_memory(name, dict(zip(LAYERS, made, strict=True)))


def change(found: lyc.Adapter, path: str) -> Tensor:
    return found.layers[f"lora_unet_{path}"].delta(torch.zeros(WEIGHTS[LAYERS[path]], dtype=torch.float64))


def test_products_norms_and_signs_are_those_of_the_whole_changes() -> None:
    adapters = [
        adapter("one", ("lora", "loha", "lora-tucker")),
        adapter("two", ("lokr-low-low", "full", "loha-tucker")),
        adapter("three", ("lora", "lora", "lokr-full-tucker")),
    ]
    strengths = [0.7, -0.5, 1.2]
    found = lyc.examine(list(zip(adapters, strengths, strict=True)))
    whole = [
        torch.cat([(w * change(one, path)).flatten() for path in LAYERS])
        for one, w in zip(adapters, strengths, strict=True)
    ]
    stacked = torch.stack(whole)
    wanted = stacked @ stacked.T
    torch.testing.assert_close(found.total(), wanted, rtol=1e-5, atol=1e-5)
    cosines = torch.nn.functional.cosine_similarity(stacked[:, None], stacked[None], dim=2)
    torch.testing.assert_close(found.cosines(), cosines, rtol=1e-5, atol=1e-5)
    opposite = (stacked.sign()[:, None] * stacked.sign()[None] < 0).sum(2)
    both = ((stacked[:, None] != 0) & (stacked[None] != 0)).sum(2)
    torch.testing.assert_close(found.disagreement(), (opposite / both).double(), rtol=0, atol=2e-3)
    assert found.keeping() == pytest.approx(
        float(stacked.norm(dim=1).max() / stacked.sum(0).norm()), rel=1e-5
    )
    assert found.blocks == ("input_blocks_1", "input_blocks_4", "middle_block_0")
    blocks = found.norms(0)
    first = next(iter(LAYERS))
    assert blocks["input_blocks_1"] == pytest.approx(0.7 * float(change(adapters[0], first).norm()), rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind, spec in KINDS.items() if spec.additive and not spec.flat])
def test_spectra_and_ranks_of_every_kind(kind: str) -> None:
    weight = home(kind)
    one = lyc.Adapter.of({"lora_unet_a": load(kind, weight)}, name="one")
    (layer,) = lyc.examine([(one, -0.5)]).layers
    delta = one.layers["lora_unet_a"].delta(torch.zeros(WEIGHTS[weight], dtype=torch.float64))
    values = torch.linalg.svdvals(delta.flatten(1))
    live = values[values > 1e-6 * values[0]]
    assert layer.largest == pytest.approx(0.5 * float(values[0]), rel=1e-4)
    assert layer.norm == pytest.approx(0.5 * float(values.norm()), rel=1e-5)
    assert layer.spectrum == pytest.approx([float(v) for v in live / live[0]], rel=1e-3, abs=1e-5)
    energy = live.square()
    assert layer.effective == pytest.approx(float(energy.sum() ** 2 / energy.square().sum()), rel=1e-3)
    share = energy.cumsum(0) / energy.sum()
    assert layer.rank_of(0.9) == int((share < 0.9 - 1e-6).sum()) + 1


def test_a_sum_of_nearly_equal_changes_is_not_lost_in_rounding() -> None:
    """In float32 the norm of the difference of two changes 1e-4 apart would be wrong by far."""
    layer = load("lora", "linear")
    near = layer.with_tensors({"lora_up": layer.tensors()["lora_up"] * (1 + 1e-4)})
    pair = [(lyc.Adapter.of({"lora_unet_a": one}, name="x"), w) for one, w in ((layer, 1.0), (near, -1.0))]
    found = float(lyc.examine(pair).total().sum()) ** 0.5
    base = torch.zeros(12, 18, dtype=torch.float64)
    assert found == pytest.approx(float((layer.delta(base) - near.delta(base)).norm()), rel=1e-3)


def test_with_a_base_blocks_are_the_models_and_changes_are_beside_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    weights = {
        f"model.diffusion_model.{path}.weight": torch.randn(12, 18),
        "model.diffusion_model.middle_block.0.in_layers.2.weight": torch.randn(12, 18, 3, 3),
    }
    one = lyc.Adapter.of({f"diffusion_model.{path}": load("ia3", "linear")}, name="one")
    with pytest.raises(lyc.LycorisError, match="depends on the weight"):
        lyc.examine([(one, 1.0)])
    found = lyc.examine([(one, 0.5)], base=weights)
    (layer,) = found.layers
    weight = weights[f"model.diffusion_model.{path}.weight"]
    wanted = 0.5 * one.layers[f"diffusion_model.{path}"].delta(weight)
    assert layer.relative == pytest.approx(float(wanted.norm() / weight.norm()), rel=1e-5)
    assert (layer.block, layer.kind) == ("in.4", "attn")
    file, model = str(tmp_path / "one.safetensors"), str(tmp_path / "base.safetensors")
    lyc.save_adapter(one, file, dialect="comfy")
    save_file(weights, model)
    # Without --changes too: a base says that they are asked for.
    assert main(["inspect", file, "--base", model]) == 0
    assert "of the weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("double_blocks.3.img_attn.qkv", "double_blocks.3"),
        ("double_blocks_3_img_attn_qkv", "double_blocks_3"),
        ("input_blocks.4.1.proj_in", "input_blocks.4"),
        ("down_blocks.1.4.attention.0", "down_blocks.1.4"),
        # Cosmos 1, whose outer number is glued to a word.
        ("blocks.block7.blocks.0.attn", "blocks.block7"),
        ("time_embed.0", None),
        ("to_out_0", None),
        ("proj", None),
    ],
)
def test_a_block_is_told_from_a_path_as_in_a_model(path: str, block: str | None) -> None:
    assert block_in_path(path) == block


def test_words_pictures_and_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pillow is all that charts need: a host has it, and matplotlib it has not.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    pair = [adapter("one", ("lora", "loha", "lora")), adapter("two", ("lora", "lora", "lora"))]
    stack = lyc.Stack(
        [lyc.Entry(pair[0], 0.5), lyc.Entry(pair[1], schedule=lyc.Schedule.parse("linear 0 1"))]
    )
    found = lyc.examine(stack)
    words = lyc.describe_examination(found)
    assert "one: 3 weights changed" in words and "cosine" in words and "opposite directions" in words
    picture = lyc.examination_picture(found)
    # Six charts in two columns, and something is drawn in each.
    assert picture.size == (1400, 1260)
    for row, column in product(range(3), range(2)):
        cell = picture.crop((700 * column, 420 * row, 700 * column + 700, 420 * row + 420))
        assert len(cell.getcolors(1 << 20) or ()) > 20, (row, column)
    (spectra,) = (chart for chart in examination_charts(found) if chart.title.startswith("spectra"))
    assert isinstance(spectra, Axes) and "90 % (dashed) and 99 %" in spectra.across
    assert [style.form for _, style in spectra.marks] == ["dashes", "line"] * 2
    files = [tmp_path / f"{one.name}.safetensors" for one in pair]
    for one, file in zip(pair, files, strict=True):
        lyc.save_adapter(one, file, dialect="kohya")
    out = tmp_path / "out.png"
    assert main(["inspect", str(files[0]), "--beside", str(files[1]), "--plot", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert out.read_bytes().startswith(b"\x89PNG") and len(data["changes"]["layers"]) == 6
    with monkeypatch.context() as patched:
        # Refused before the work.
        patched.setattr("lycoris_ops.commands.verbs.inspect.examine", None)
        assert main(["inspect", str(files[0]), "--plot", str(tmp_path / "out.svg")]) == 2
    assert "cannot be written in this form" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(lyc.LycorisError, match=r"Pillow is not installed.*pip install pillow"):
        lyc.examination_picture(found)
    with pytest.raises(lyc.LycorisError, match="nothing to inspect"):
        lyc.examine([(pair[0], 0.0)])


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_the_share_of_each_of_any_number_of_files_is_in_the_chart_of_blocks(count: int) -> None:
    found = lyc.survey(
        lyc.Stack([lyc.Entry(adapter(f"{'long' * 20}{n}", ("lora",) * 3)) for n in range(count)]),
        {f"diffusion_model.{name}.weight": (8, 8) for name in LAYERS},
    )
    rows = block_rows(found)
    assert [row.name for row in rows] == list(found.blocks)
    for row in rows:
        shares = [f"{one.share(row.name):.1%}" for one in found.adapters] or [str(found.blocks[row.name])]
        assert [words for _, _, words in row.bars] == shares
    assert lyc.blocks_picture(found).width == 800


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [1.0] * 3, [1e-9, 1e9], [math.nan, 1.0, math.inf], [-5.0, 5.0], [0.02, 0.05]],
    ids=str,
)
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_values_have_axes(values: list[float], logarithmic: bool) -> None:
    points = [(float(place), value) for place, value in enumerate(values)]
    series = [Series(points, colour_of(0), "x" * 200, form) for form in ("line and dots", "dashes")]
    axes = Axes("title", series, "across", "up", (logarithmic, logarithmic))
    picture = side_by_side([axes, Axes("named", series, names=[])])
    assert picture.size == (1400, 420)
