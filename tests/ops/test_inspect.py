"""What adapters do to a model, measured: against dense matrices in float64."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from layers import KINDS, WEIGHTS, home, load
from safetensors.torch import save_file
from torch import Tensor
from written import in_memory

import lycoris_ops as lyc
from lycoris_ops.__main__ import main
from lycoris_ops.algorithms.lora import Lora
from lycoris_ops.charts import PLOT, Axes, Series, below_each_other, colour_of
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
    # The row of the block has three digits.
    assert f" {layer.relative:.3%}" in lyc.describe_examination(found)
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
    low = adapter("fine", ("lora",) * 3)
    stack = lyc.Stack(
        [
            lyc.Entry(pair[0], 0.5, low_noise=low),
            lyc.Entry(pair[1], schedule=lyc.Schedule.parse("linear 0 1")),
        ]
    )
    found = lyc.examine(stack)
    words = lyc.describe_examination(found)
    assert "one: 3 weights changed" in words and "cosine" in words and "opposite directions" in words
    assert words.startswith("These two do not disturb each other.")
    assert words.count("not measured: fine, the file for low noise") == 1
    picture = lyc.examination_picture(found)
    # Six charts below each other, each drawn from side to side.
    image = picture.image()
    assert image.width == 800 and image.height > 6 * 2 * PLOT
    titles = [chart.title for chart in examination_charts(found)]
    shown = " ".join(text for text, _ in texts_of(picture.svg()))
    assert len(titles) == 6 and all(title in shown for title in titles)
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
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(lyc.LycorisError, match=r"Pillow is not installed.*pip install pillow"):
        picture.image()
    with pytest.raises(lyc.LycorisError, match="nothing to inspect"):
        lyc.examine([(pair[0], 0.0)])


NAMES = (
    "lora.safetensors",
    "styles/an_overlong_name_of_a_detailed_style_v12_epoch_000012.safetensors",
    "水墨画风格_v2.safetensors",
    "light & <b>film</b> grain",
)
BLOCKS = {
    "SD": [f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)]
    + ["middle_block.1", *(f"output_blocks.{n}.1" for n in range(3, 12))],
    "Flux": [f"double_blocks.{n}" for n in range(19)] + [f"single_blocks.{n}" for n in range(38)],
}

Box = tuple[float, float, float, float]


def texts_of(svg: str) -> list[tuple[str, Box]]:
    """The texts of a drawing, with the left, top, right and bottom of each."""
    found: list[tuple[str, Box]] = []
    for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        length, size = float(one.attrib["textLength"]), float(one.attrib["font-size"])
        before = {"start": 0.0, "middle": length / 2, "end": length}[one.attrib["text-anchor"]]
        words = "".join(one.itertext()) if one.text else "".join(child.tail or "" for child in one)
        if turned := re.match(r"translate\((.*?),(.*?)\)", one.get("transform", "")):
            x, y = map(float, turned.groups())
            box = (x - 0.7 * size, y - length + before, x, y + before)
        else:
            x, y = float(one.attrib["x"]), float(one.attrib["y"])
            box = (x - before, y - 0.7 * size, x - before + length, y)
        found.append((words, box))
    return found


def is_whole(svg: str) -> bool:
    """Whether each text is in the drawing, and none is on another."""
    _, _, width, height = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
    boxes = [box for _, box in texts_of(svg)]
    inside = all(
        min(left, top) >= 0 and right <= width and bottom <= height for left, top, right, bottom in boxes
    )
    return inside and not any(
        one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
        for one, other in combinations(boxes, 2)
    )


def of_blocks(count: int, blocks: list[str]) -> tuple[lyc.Stack, dict[str, Tensor]]:
    """Files that change one weight of each block, and the weights."""
    weights = {f"diffusion_model.{block}.attn.to_q.weight": torch.randn(12, 18) for block in blocks}
    stack: list[lyc.Entry] = []
    for number in range(count):
        name = NAMES[number % len(NAMES)].replace(".safe", f"{number}.safe")
        layers = {key.removesuffix(".weight"): load("lora", "linear") for key in weights}
        stack.append(lyc.Entry(lyc.Adapter.of(layers, name=name), 0.5 + number / 8))
    return lyc.Stack(stack), weights


@pytest.mark.parametrize(("count", "blocks"), [(1, "Flux"), (2, "SD"), (3, "SD"), (8, "Flux")])
def test_nothing_is_cut_in_any_picture(count: int, blocks: str) -> None:
    stack, weights = of_blocks(count, BLOCKS[blocks])
    found = lyc.examine(stack, base=weights, signs=False)
    drawn = [lyc.examination_picture(found), lyc.blocks_picture(lyc.survey(stack, list(weights)))]
    for picture in drawn:
        svg = picture.svg()
        assert is_whole(svg)
        assert "<b>" not in svg and "#282828" not in svg
        # A colour is of the same file everywhere.
        if count > 1:
            texts = [text for text, _ in texts_of(svg)]
            assert {f"水墨画风格_v2{n}" for n in range(2, count, 4)} <= set(texts)
        assert picture.image().width == 2 * float(re.findall(r'viewBox="0 0 (\d+)', svg)[0])


def test_the_verdict_of_files_is_a_sentence() -> None:
    """Whether they meet each other, and whether a lower rank would do."""
    generator = torch.Generator().manual_seed(0)

    def file(
        name: str, rank: int, real: int, like: lyc.Adapter | None = None, sign: float = 1.0
    ) -> lyc.Adapter:
        if like is not None:
            layer = like.layers["lora_unet_a"]
            return lyc.Adapter.of(
                {"lora_unet_a": layer.with_tensors({"lora_up": sign * layer.tensors()["lora_up"]})}, name=name
            )
        up, down = torch.randn(64, rank, generator=generator), torch.randn(rank, 64, generator=generator)
        up[:, real:] = 0
        layer = Lora(lora_up=up, lora_down=down, alpha=float(rank))
        return lyc.Adapter.of({"lora_unet_a": layer}, name=name)

    one, two, three = file("lora.safetensors", 8, 4), file("b/two.safetensors", 8, 8), file("three", 8, 8)

    def verdict(*given: lyc.Adapter) -> str:
        return lyc.describe_examination(lyc.examine([(each, 1.0) for each in given])).split("\n")[0]

    assert verdict(one, two, three) == "These three do not disturb each other. Rank 4 is enough for lora."
    assert verdict(two) == "two changes 1 weight."
    assert verdict(two, file("again", 8, 8, two)).startswith("two and again do much the same: cosine 1.00.")
    assert "two and against work against each other: cosine -1.00" in verdict(
        one, two, file("against", 8, 8, two, -1.0)
    )


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
    assert is_whole(lyc.blocks_picture(found).svg())


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [1.0] * 3, [1e-9, 1e9], [math.nan, 1.0, math.inf], [-5.0, 5.0], [0.02, 0.05]],
    ids=str,
)
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_values_have_axes(values: list[float], logarithmic: bool) -> None:
    points = [(float(place), value) for place, value in enumerate(values)]
    series = [Series(points, colour_of(0), "x" * 200, form) for form in ("line and dots", "dashes")]
    axes = Axes("title", series, "across", (logarithmic, logarithmic))
    picture = below_each_other("", [], [axes, Axes("named", series, names=[])])
    assert picture.image().width == 800
