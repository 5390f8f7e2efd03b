"""Block rules: the names of blocks, the language, and the vectors that people share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

import lycoris_ops as lyc
from lycoris_ops.changes.forms import Kronecker, LowRank
from lycoris_ops.changes.size import norm_of
from lycoris_ops.names.blocks import Blocks, kind_in_path
from lycoris_ops.names.targets import Targets
from lycoris_ops.rules.patterns import Pattern
from lycoris_ops.rules.rules import without_comment
from lycoris_ops.rules.scene import Outcome, Scene
from tests.harness.listings import target

# One layer of every kind of block that rules know, and layers outside the blocks.
SHAPES = {
    "diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 4),
    "diffusion_model.middle_block.1.proj_in.weight": (4, 4),
    "diffusion_model.output_blocks.2.0.in_layers.0.weight": (4,),
    "diffusion_model.output_blocks.7.0.in_layers.2.weight": (4, 4, 3, 3),
    "diffusion_model.out.2.weight": (4, 4, 3, 3),
    "diffusion_model.time_embed.0.weight": (4, 4),
    "diffusion_model.double_blocks.3.img_attn.qkv.weight": (4, 4),
    "diffusion_model.single_blocks.12.linear1.weight": (4, 4),
    "diffusion_model.blocks.5.ffn.0.weight": (4, 4),
    "diffusion_model.refiner.blocks.5.ffn.0.weight": (4, 4),
    "diffusion_model.layers.8.attention.qkv.weight": (4, 4),
    "clip_l.transformer.text_model.encoder.layers.9.mlp.fc1.weight": (4, 4),
    "t5xxl.transformer.encoder.block.2.layer.0.SelfAttention.q.weight": (4, 4),
}


def scene(shapes: Mapping[str, tuple[int, ...]], *, without: tuple[str, ...] = ()) -> Scene:
    """A model of these weights, and an adapter with a layer for each, except in the blocks `without`."""
    targets = Targets(shapes)
    blocks = Blocks(targets)
    named = {one.path: blocks.of(one) for one in targets.all}
    return Scene(blocks, {path: one for path, one in named.items() if one.block not in without})


SCENE = scene(SHAPES)
UNET = {k: shape for k, shape in target("sd15").items() if len(shape) > 1 and "diffusion_model." in k}


def weigh(text: str, on: Scene = SCENE, *, seed: int = 0) -> Outcome[float]:
    return lyc.Rules.parse(text, seed=seed).on(on)


@pytest.mark.parametrize(
    ("path", "block", "names"),
    [
        ("input_blocks.0.0", "in.0", {"in", "in.0", "in.0.0", "conv"}),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k", "in.4", {"in.4.1", "attn", "attn.k", "attn2.k"}),
        ("middle_block.1.proj_in", "mid", {"mid", "mid.1"}),
        ("output_blocks.2.0.in_layers.0", "out.2", {"out", "norm"}),
        ("out.2", "diffusion_model.out", {"conv"}),
        ("time_embed.0", "time_embed", set[str]()),
        ("double_blocks.3.img_attn.qkv", "double.3", {"double", "attn.qkv", "img_attn"}),
        ("single_blocks.12.linear1", "single.12", {"single"}),
        ("blocks.5.ffn.0", "blocks.5", {"blocks", "mlp", "ffn"}),
        ("refiner.blocks.5.ffn.0", "refiner.5", {"refiner", "refiner.blocks.5"}),
        ("layers.8.attention.qkv", "layers.8", {"layers", "attn.qkv"}),
        ("text_model.encoder.layers.9.mlp.fc1", "clip_l.9", {"te", "te.9", "te1", "te1.9", "clip_l", "mlp"}),
        ("encoder.block.2.layer.0.SelfAttention.q", "t5xxl.2", {"te", "te2.2", "t5xxl", "attn.q"}),
    ],
)
def test_every_layer_has_its_names(path: str, block: str, names: set[str]) -> None:
    assert SCENE.layers[path].block == block
    assert names <= SCENE.layers[path].names


IN, OUT = "input_blocks", "output_blocks"


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", {}),
        ("# nothing\n\n   \n", {}),
        ("in.4 = 0.5", {f"{IN}.4": 0.5}),
        ("IN04 = 0.5\nMid=off", {f"{IN}.4": 0.5, "middle_block": 0}),
        ("in = 0.5", {f"{IN}.0": 0.5, f"{IN}.4": 0.5}),
        ("in.* = 0.5\nin.4 = -2  # stronger", {f"{IN}.0": 0.5, f"{IN}.4": -2.0}),
        ("in.4 = -2\nin.* = 0.5", {f"{IN}.0": 0.5, f"{IN}.4": 0.5}),
        ("in.* = -2\nin.4 = *0.5", {f"{IN}.0": -2, f"{IN}.4": -1}),
        ("in.1-4 = 0.5", {f"{IN}.4": 0.5}),
        ("IN04-OUT02 = 3", {f"{IN}.4": 3, "middle_block": 3, f"{OUT}.2": 3}),
        ("in, out.7 = 0", {f"{IN}": 0, f"{OUT}.7": 0}),
        ("IN00-OUT07 = 1..0", {f"{IN}.4": 0.75, "middle_block": 0.5, f"{OUT}.2": 0.25, f"{OUT}.7": 0}),
        ("out.2 = 0", {f"{OUT}.2": 0}),
        ("out = 0", {OUT: 0}),
        ("diffusion_model.out.2 = 0", {"out.2": 0}),
        ("*ATTN2* = 0", {f"{IN}.4": 0.0}),
        (r"/input_blocks\.[0-3]\./ = 0", {f"{IN}.0": 0.0}),
        (r"/a=b|input_blocks\.4/=0", {f"{IN}.4": 0.0}),
        # A # within a regular expression is a part of it. Any other # begins a comment.
        (r"  /a#b|input_blocks\.4/ = 0 # or /mlp/ = 3", {f"{IN}.4": 0.0}),
        (
            "/attn2/=0#/ = 3\n#/mlp/ = 0\nmid = 2#x\n/z#|mlp/:fc1:3 # in",
            {f"{IN}.4": 0, "middle_block": 2, "text_model": 3},
        ),
        ("attn = 2\nattn.qkv = 3", {f"{IN}.4": 2, "double": 3, "layers": 3, "encoder.block": 2}),
        ("mlp = 2", {"blocks": 2, "refiner": 2, "text_model": 2}),
        ("blocks = 2", {"blocks": 2}),
        ("conv = 2", {f"{IN}.0": 2, f"{OUT}.7": 2, "out.2": 2}),
        ("norm = 2", {f"{OUT}.2": 2}),
        ("input_blocks.4 = 0\nmiddle = 0", {f"{IN}.4": 0, "middle_block": 0}),
        ("diffusion_model.middle_block.1.proj_in = 1e-3", {"middle_block": 0.001}),
        ("te = 0.25", {"text_model": 0.25, "encoder": 0.25}),
        ("BASE = 0.25\nte2.* = 4", {"text_model": 0.25, "encoder": 4}),
        ("clip_l = 0.25", {"text_model": 0.25}),
        ("te.[0-4] = 3", {"encoder": 3.0}),
        (
            "unet = 0",
            dict.fromkeys((IN, OUT, "middle", "out.", "time", "double", "single", "bl", "ref", "la"), 0),
        ),
        ("IN00-IN04:attn2 to_out:0.5", {f"{IN}.4": 0.5}),
        ("NOT in out mid::2", dict.fromkeys(("out.2", "ti", "do", "si", "bl", "ref", "la", "te", "enc"), 2)),
        (":NOT attn conv:0\n* = 3\n:fc1:-1", {"": 3, "text_model": -1}),
        ("IN00,IN04:attn2:0.5, MID:proj:2,:to_k:3", {f"{IN}.4": 3, "middle_block": 2}),
        ("MID:proj:2, not /(?:mid|inp)/:to_k:3", {"middle_block": 2}),
        (f"/(?:{IN.replace('.', '[.]')}).4/::0.5", {f"{IN}.4": 0.5}),
    ],
)
def test_later_lines_win(text: str, weights: dict[str, float]) -> None:
    """`weights` gives the expected weight by the start of a path. The longest start counts; others are 1."""
    found = weigh(text).of
    for path in SCENE.layers:
        starts = [start for start in weights if path.startswith(start)]
        expected = weights[max(starts, key=len)] if starts else 1.0
        assert found[path] == pytest.approx(expected), path


def test_a_name_of_the_model_is_no_range() -> None:
    """diffusers' Z-Image has patch sizes in its layers' names, which look like ranges of blocks."""
    names = ("all_x_embedder.2-1", "all_final_layer.2-1.linear", "layers.1", "layers.1-2", "layers.2")
    z_image = scene({f"{name}.weight": (4, 4) for name in names})
    found = weigh("all_x_embedder.2-1 = .5\nall_final_layer.2-1 = 2\nlayers.1-2:layers:3", z_image)
    assert not found.idle
    assert [found.of[name] for name in names] == [0.5, 2.0, 1.0, 3.0, 1.0]
    found = weigh("all_x_embedder.3-1 = 2", z_image)
    assert found.idle == ("all_x_embedder.3-1: the model has nothing of that name",), found


def test_a_ramp_runs_over_layers_that_are_rows_of_fused_weights() -> None:
    targets = Targets({f"diffusion_model.double_blocks.{n}.img_attn.qkv.weight": (6, 2) for n in range(3)})
    blocks = Blocks(targets)
    layers = {
        f"transformer_blocks.{n}.attn.to_{letter}": blocks.of(one._replace(rows=(at, at + 2)), f"to_{letter}")
        for n, one in enumerate(targets.all)
        for letter, at in (("q", 0), ("k", 2))
    }
    found = weigh("attn.q = 0..1", Scene(blocks, layers)).of
    assert [found[f"transformer_blocks.{n}.attn.to_q"] for n in range(3)] == [0.0, 0.5, 1.0]
    assert {found[f"transformer_blocks.{n}.attn.to_k"] for n in range(3)} == {1.0}


def test_rules_one_after_the_other_multiply_and_presets_are_lines() -> None:
    presets = {"Half": "in = 0.5\nmid = 0"}
    first, second = lyc.Rules.parse("Half", presets), lyc.Rules.parse("* = 3")
    both = first.then(second).on(SCENE).of
    assert both["input_blocks.0.0"] == 1.5 and both["middle_block.1.proj_in"] == 0.0
    assert first.then(None) == first and str(first) == "in = 0.5; mid = 0"


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("in.4", 1),
        ("  = 1", 3),
        ("in.4 =", 7),
        ("in.4 = x", 8),
        ("in.4 = nan", 8),
        ("in.4 = inf", 8),
        ("in.4 = 1e999", 8),
        ("in.4: 1", 1),
        ("mid in.5-2 = 0", 5),
        ("/(/ = 0", 1),
        ("1,2,x,4", 5),
        ("SD:1,2,,4", 8),
        ("%in1=0,up=1", 8),
        ("in:attn:much", 9),
        ("mid = in = 1", 7),
        ("in.1- = 0", 1),
        ("NOT mid in.1-:attn:0", 9),
        ("mid::1,mid in.1-:attn:0", 12),
        ("1e5000 = 1e5000", 10),
    ],
)
def test_a_line_that_is_not_understood_is_named_with_its_column(line: str, column: int) -> None:
    with pytest.raises(lyc.RuleError, match=f"line 2, column {column} ") as caught:
        lyc.Rules.parse(f"mid = 1\n{line}")
    assert caught.value.got


@pytest.mark.parametrize(
    ("word", "hint"),
    [("X-0.1", "x= in the prompt"), ("n", "")],
)
def test_a_letter_for_what_is_not_in_a_vector_is_explained(word: str, hint: str) -> None:
    with pytest.raises(lyc.RuleError, match=f"line 1, column 5 .*{hint}") as caught:
        lyc.Rules.parse(f"1,1,{word},R,U")
    assert bool(caught.value.hint) == bool(hint)


def test_what_matches_nothing_is_named_with_what_is_near() -> None:
    found = weigh("in.9 mid = 0\nmidle = 0\ndiffusion_model.middle_block.1.proj_inn = 0\nzzz = 0")
    assert found.idle == (
        "in.9: the model has nothing of that name; the model has in.0, in.4",
        "midle: the model has nothing of that name; nearest: mid, mid.1",
        "diffusion_model.middle_block.1.proj_inn: the model has nothing of that name; "
        "nearest: diffusion_model.middle_block.1.proj_in, diffusion_model.single_blocks.12.linear1, "
        "middle_block.1.proj_in",
        "zzz: the model has nothing of that name",
    )
    # It is no mistake if the file has nothing for a rule, or if the rule's text encoder is not here.
    found = weigh("in.4 = 0\nin.4:attn:0", scene(SHAPES, without=("in.4",)))
    assert found.notes == ("in.4: the file has no layer there", "in.4:attn:0: the file has no layer there")
    found = weigh("te2.3 = 0\nBASE = 1\ntext = 1", scene(UNET))
    assert [note.partition(": ")[2] for note in found.notes] == ["there is no text encoder here"] * 2
    assert len(found.idle) == 1


@pytest.mark.parametrize(
    "line",
    [
        "in.%s = 0" % ("9" * 5000),
        "in.1-%s = 0" % ("9" * 5000),
        "in.\u00b2-\u00b2 = 0",
        "IN\u0664 = 0",
        "a-b-c = 0",
    ],
    ids=len,
)
def test_odd_numbers_are_names_of_nothing(line: str) -> None:
    assert len(weigh(line).idle) == 1


def listed(names: str) -> list[str]:
    """The names of blocks in a text such as `te in.1-3 mid`, each range written out."""
    found: list[str] = []
    for name in names.split():
        head, _, last = name.partition("-")
        family, _, first = head.rpartition(".")
        found += [f"{family}.{n}" for n in range(int(first), int(last) + 1)] if last else [name]
    return found


UNETS = {"sd15": listed("in.0-11 mid out.0-11"), "sdxl": listed("in.0-8 mid out.0-8")}
INDEXED = {
    (26, "sd15"): listed("te in.0-11 mid out.0-11"),
    (17, "sd15"): listed("te in.1-2 in.4-5 in.7-8 mid out.3-11"),
    (12, "sdxl"): listed("te in.4-5 in.7-8 mid out.0-5"),
    (20, "sdxl"): listed("te in.0-8 mid out.0-8"),
}


@pytest.mark.parametrize("tool", ["", "lbw:", "supermerger:"])
@pytest.mark.parametrize(("length", "model"), INDEXED)
def test_a_vector_by_index(length: int, model: str, tool: str) -> None:
    on = scene(target(model))
    numbers = [round(0.5 - 0.07 * place, 2) for place in range(length)]
    found = weigh(tool + ",".join(map(str, numbers)), on)
    wanted = dict.fromkeys(UNETS[model], 0.0)
    wanted |= dict(zip(INDEXED[length, model], numbers, strict=True))
    for layer, named in on.layers.items():
        block = "te" if "te" in named.names else named.block
        assert found.of[layer] == wanted.get(block, 1.0), layer
    assert f"{length} numbers by index" in found.notes[0]


def test_the_vector_of_flux() -> None:
    keys = {f"diffusion_model.{path}.weight": (4, 4) for path in ("img_in", "txt_in", "final_layer.linear")}
    keys |= {f"diffusion_model.double_blocks.{n}.img_attn.qkv.weight": (4, 4) for n in range(19)}
    keys |= {f"diffusion_model.single_blocks.{n}.linear1.weight": (4, 4) for n in range(38)}
    keys["clip_l.transformer.text_model.encoder.layers.9.mlp.fc1.weight"] = (4, 4)
    keys["t5xxl.transformer.encoder.block.2.layer.0.SelfAttention.q.weight"] = (4, 4)
    found = weigh(",".join(map(str, range(61))), scene(keys)).of
    assert found["text_model.encoder.layers.9.mlp.fc1"] == 0
    assert found["encoder.block.2.layer.0.SelfAttention.q"] == 1
    assert found["img_in"] == found["txt_in"] == 2 and found["final_layer.linear"] == 60
    assert [found[f"double_blocks.{n}.img_attn.qkv"] for n in range(19)] == [*range(3, 22)]
    assert [found[f"single_blocks.{n}.linear1"] for n in range(38)] == [*range(22, 60)]


def test_letters_are_drawn_from_the_seed() -> None:
    on = scene(UNET)
    text = ",".join("RU"[n % 2] for n in range(26))
    found = weigh(text, on, seed=2**31 + 5)
    chance = np.random.RandomState(5)
    bounds = [(0, 1), (-0.5, 1.5)]
    drawn = [round(chance.uniform(*bounds[n % 2]), 2) for n in range(26)]
    assert found.of["input_blocks.1.0.in_layers.2"] == drawn[2]
    assert found.of["output_blocks.11.0.in_layers.2"] == drawn[25] and "drawn: " in found.notes[0]
    assert weigh(text, on, seed=6).of != found.of == weigh(text, on, seed=5).of


def test_positions_with_default_and_negative_numbers() -> None:
    on = scene(UNET, without=("in.0",))
    found = weigh("%default=0.5,base=-1,in=2,in1-2=-0.25,out12=3,mid2=0.1,double1=4,out0=5,in4-3=6", on)
    assert found.of["time_embed.0"] == -1 and found.of["input_blocks.1.0.in_layers.2"] == -0.25
    assert found.of["input_blocks.3.0.op"] == 2 and found.of["output_blocks.11.0.in_layers.2"] == 3
    assert found.of["output_blocks.10.0.in_layers.2"] == 0.5
    assert found.of["middle_block.1.proj_in"] == 0.1 and found.of["middle_block.0.in_layers.2"] == 0.5
    assert found.idle == tuple(f"{name}: the file has no such block" for name in ("double", "out", "in"))


def test_a_vector_that_is_not_for_the_model_or_of_another_tool_is_refused() -> None:
    with pytest.raises(lyc.RuleError, match=r"14 numbers does not fit .* 26 \(LBW, .* 17 \(LBW.*by name"):
        weigh(",".join("1" * 14), scene(UNET))
    with pytest.raises(lyc.RuleError, match=r"12 numbers does not fit"):
        weigh(",".join("1" * 12), scene(UNET))
    with pytest.raises(lyc.RuleError, match=r"no vector is known for this model.*by name"):
        weigh(",".join("1" * 31), scene(target("z_image")))
    for tool in ("inspire", "Donut", "sd-scripts"):
        with pytest.raises(lyc.RuleError, match=r"line 1, column 1 .*of this tool are not read.*by name"):
            weigh(f"{tool}:" + ",".join("1" * 17), scene(UNET))


BY_VECTOR = {
    # The numbers of LBW's README and of the Inspire Pack's file, for a LoRA on SD1.
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "MIDD0.2": "1,0,0,0,0,0,0.2,0.4,0.4,0.2,0,0,0,0,0,0,0",
    "MIDD0.8": "1,0,0,0,0,0.5,0.8,0.8,0.4,0,0,0,0,0,0,0,0",
    "MOUT": "1,0,0,0,0,0,1,1,1,1,1,1,1,1,0.5,0,0",
}


MODELS = (
    *("sd15", "sdxl", "flux", "sd3_medium", "sd35_large", "qwen_image", "z_image", "lumina2"),
    *("wan21_t2v_14b", "wan21_t2v_1_3b", "anima", "krea2", "mochi", "ltxv_2b", "hunyuan_video"),
)


def one_of_each_block(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A model with the same blocks, but one layer in each: many layers take long."""
    targets = Targets(shapes)
    blocks = Blocks(targets)
    kept = {blocks.of(one).block: one.key for one in reversed(targets.all)}.values()
    return {key: shape for key, shape in shapes.items() if key in kept}


def test_presets_name_blocks_that_a_model_has_to_its_last_one() -> None:
    scenes = {model: scene(one_of_each_block(target(model))) for model in MODELS}
    for name, text in lyc.BLOCK_PRESETS.items():
        outcomes = {model: lyc.Rules.parse(text).on(on) for model, on in scenes.items()}
        fitting = [model for model, found in outcomes.items() if not found.idle]
        assert fitting and all(any(outcomes[m].of.values()) != (name == "NONE") for m in fitting), name
        if name.endswith("-TAIL"):
            family, _, number = text.splitlines()[1].partition(" ")[0].rpartition("-")
            last = {scenes[m].blocks.numbers(family.partition(".")[0])[-1] for m in fitting}
            assert int(number) in last, name


def test_presets_of_a_unet_give_what_the_vectors_do() -> None:
    on = scene(target("sd15"))
    for name, vector in BY_VECTOR.items():
        assert weigh(lyc.BLOCK_PRESETS[name], on).of == weigh(f"lbw:{vector}", on).of, name


def test_the_list_of_presets_begins_with_the_most_usual() -> None:
    fronts = [name for name in lyc.BLOCK_PRESETS if name.endswith("-FRONT")]
    assert list(lyc.BLOCK_PRESETS)[:3] == ["ALL", "NONE", "ALL0.5"]
    assert fronts[:4] == ["FLUX-DBL-FRONT", "FLUX-SGL-FRONT", "SD3-FRONT", "SD3.5-LARGE-FRONT"]


def test_a_file_of_presets_is_read_line_by_line() -> None:
    found = lyc.read_presets(
        "# mine\nSD-A:1,0,0,0.5\nnonsense\n[soft face]\nin = 0.5\nOUTS\n\n[bad]\nmid = 1\nin.1 = much\n"
        "[]\n[b]\nA:1,y,3,4",
        "own.txt",
    )
    assert found.presets == {"SD-A": "1,0,0,0.5", "soft face": f"in = 0.5\n{lyc.BLOCK_PRESETS['OUTS']}"}
    known = {**lyc.BLOCK_PRESETS, **found.presets}
    assert (
        lyc.Rules.parse("soft face", known).on(SCENE).of["input_blocks.4.1.transformer_blocks.0.attn2.to_k"]
        == 0
    )
    words = (
        "line 3: it is neither",
        "bad: line 10, column 8 ",
        "line 11: a heading has no name",
        "b: line 13, column 5",
    )
    assert len(found.faults) == len(words)
    for fault, part in zip(found.faults, words, strict=True):
        assert fault.startswith("own.txt") and part in fault, fault


def test_a_name_of_a_broken_preset_says_where_it_is_broken() -> None:
    """The user's preset counts, even if the library has one of that name."""
    found = lyc.read_presets(
        "  SPARE 1,0,0,1\n LATE : 1,0,z,0\n[MIDD] # mine\nmid = much\n[uses]\nin = 1\nMIDD # mine\n"
        "[ALL]\nALL\nmid = 0.5\n[whole]\nALL\n[ALL]\nin = 0.25\n[GONE]\n# nothing\n[GONE]\n* = 0\n\n"
        "SD-A:1,0,0,1\nSD-B:1,0,0,2\n[label]\nSD-C:1,0,0,3\n\nlbw:1,0,0,4\nin:mid:0.5",
        "own.txt",
    )
    assert found.presets == {
        "SD-A": "1,0,0,1",
        "SD-B": "1,0,0,2",
        "whole": "* = 1\nmid = 0.5",
        "ALL": "in = 0.25",
        "GONE": "* = 0",
        "label": "SD-C:1,0,0,3\n\nlbw:1,0,0,4\nin:mid:0.5",
    }
    known = {**lyc.BLOCK_PRESETS, **found.presets}
    words = {
        "SPARE": "own.txt, line 1: it is neither",
        "LATE": "own.txt: LATE: line 2, column 13 of the block rules is not understood",
        "MIDD": "own.txt: MIDD: line 4, column 7 ",
        "uses": "own.txt: uses: line 7 of the block rules names a preset .* .found own.txt: MIDD: line 4",
    }
    assert found.broken.keys() == words.keys()
    for name, part in words.items():
        with pytest.raises(lyc.RuleError, match=rf"line 2 of the block rules names a preset .*{part}"):
            lyc.Rules.parse(f"mid = 0\n{name}", known, broken=found.broken)
    with pytest.raises(lyc.RuleError, match="in a circle"):
        lyc.Rules.parse("one", {"one": "two", "two": "one"})


def test_the_norms_of_changes_are_those_of_the_dense_sum() -> None:
    """Norms by the closed form, against norms of the dense changes in float64."""
    torch.manual_seed(0)
    up, down = torch.randn(6, 2), torch.randn(2, 5)
    pair = (LowRank(up, down, 0.5), LowRank(torch.randn(6, 3), torch.randn(3, 5), -2.0))
    other = Kronecker((torch.randn(2, 1),), (torch.randn(3, 5),), 1.5)
    first = Kronecker((torch.randn(4, 2), torch.randn(2, 6)), (torch.randn(5, 7),), -0.5)
    second = Kronecker((torch.randn(4, 6),), (torch.randn(5, 3), torch.randn(3, 7)), -0.5)
    for forms in (pair[:1], pair, (*pair, other), (other,), (first,), (second,)):
        dense = sum(form.dense(torch.float64, torch.device("cpu")) for form in forms)
        assert norm_of(forms) == pytest.approx(
            float(torch.linalg.matrix_norm(torch.as_tensor(dense))), rel=1e-6
        )


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("layers.0.attention_norm1", "norm"),
        ("down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj", "mlp"),
        ("blocks.3.cross_attn.q", "attn"),
        ("blocks.3.adaln_modulation_self_attn.1", None),
        ("input_blocks_1_0_in_layers_2", "conv"),
    ],
)
def test_what_a_path_says_of_a_layer(path: str, kind: str | None) -> None:
    assert kind_in_path(path) == kind


def test_where_a_regular_expression_ends_is_the_same_in_every_line() -> None:
    name = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    for line in (r"/attn2\.to_[k/#]/ = 0.5 # a comment", r"/attn2\.to_[k/#]/::0.5 # a comment"):
        assert weigh(line).of[name] == 0.5
    assert without_comment("/a#b/ = 1 # c") == "/a#b/ = 1 "
    # Many backslashes without an end take no time.
    assert without_comment("/" + "\\" * 5000).startswith("/")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("blocks.*", True),
        ("BLOCKS.0", True),
        ("blocks.0-3", True),
        ("blocks.1-3", False),
        ("/attn$/", True),
        ("/^ATTN/", False),
        ("blocks.0-blocks.3", True),
        ("blocks.3-0", False),
        ("attn", False),
    ],
)
def test_modules_are_chosen_by_the_patterns_of_rules(text: str, chosen: bool) -> None:
    assert Pattern.of_modules(text).matches_path("Blocks.0.Attn") == chosen


@pytest.mark.parametrize("path", ["output.dense", "t5", "in_4", "all_x.2-1", "proj.2-1", "a-"])
def test_a_module_is_called_by_its_path_whatever_rules_take_it_for(path: str) -> None:
    assert Pattern.of_modules(path).matches_path(path)


@pytest.mark.parametrize(
    ("text", "path"), [("base", "te"), ("output.0", "out.0"), ("clip", "clip_l"), ("in04", "in.4")]
)
def test_other_names_of_blocks_mean_no_modules(text: str, path: str) -> None:
    assert not Pattern.of_modules(text).matches_path(path)


def test_a_range_of_modules_has_the_names_that_one_of_them_has() -> None:
    for text in ("input.0", "input.0-1", "INPUT.0-1"):
        assert Pattern.of_modules(text).matches_path("input.0.proj")
    assert not Pattern.of_modules("input.0-1").matches_path("in.0")
