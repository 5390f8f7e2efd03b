"""Names that no list has, changes that a file holds twice, and rows that one tool orders in its own way.

The reference is the file without the peculiarity, diffusers' own conversion of it, or a product in float64.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as loras
from layers import loha, lokr, lora, rand
from safetensors.torch import save_file
from torch import Tensor
from written import changes, read, resolved

import lycoris_ops as lyc
from lycoris_ops.names.blocks import Blocks
from lycoris_ops.names.layer_name import LayerName
from lycoris_ops.names.targets import Targets

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


def close(found: Tensors, wanted: Mapping[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key].double(), rtol=tolerance, atol=tolerance)


WAN: Shapes = {
    f"diffusion_model.blocks.{n}.{path}.weight": shape
    for n in range(3)
    for path, shape in {"self_attn.q": (8, 8), "cross_attn.k": (8, 8), "ffn.0": (12, 8)}.items()
}
FLUX: Shapes = {
    "diffusion_model.img_in.weight": (8, 4),
    "diffusion_model.double_blocks.0.img_attn.qkv.weight": (24, 8),
    "diffusion_model.double_blocks.0.img_attn.proj.weight": (8, 8),
    "diffusion_model.single_blocks.0.linear2.weight": (8, 40),
    "diffusion_model.vector_in.in_layer.weight": (8, 4),
}
CLIP = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


def named(model: Shapes, spell: str) -> dict[str, str]:
    """A name for each layer of a model, with `spell` as a template, to the key of the layer's weight."""
    paths = {key.removeprefix("diffusion_model.").removesuffix(".weight"): key for key in model}
    return {spell.format(path, path.replace(".", "_")): key for path, key in paths.items()}


@pytest.mark.parametrize("model", [WAN, FLUX], ids=["wan", "flux"])
@pytest.mark.parametrize(
    "spell",
    [
        "pipe.dit.{0}",
        "dit.{0}",
        "model.{0}",
        "net.{0}",
        "module.{0}",
        "_orig_mod.{0}",
        "module._orig_mod.diffusion_model.{0}",
        "base_model.model.transformer.{0}",
        "Hunyuan_video_I2V_lora_{1}",
        "some_trainers_own_{1}",
    ],
)
def test_what_stands_in_front_of_every_path_is_left_out(tmp_path: Path, spell: str, model: Shapes) -> None:
    names = named(model, spell)
    tensors = {f"{name}.{k}": t for name, key in names.items() for k, t in lora(model[key], 2).items()}
    adapter = read(tmp_path, tensors)
    wanted = {
        key: tensors[f"{name}.lora_up.weight"].double() @ tensors[f"{name}.lora_down.weight"].double()
        for name, key in names.items()
    }
    close(changes(adapter, model), wanted)
    text = lyc.describe(resolved(adapter, model))
    assert "names read without the" in text
    # Written again, it has the names that the tools know.
    lyc.save_adapter(adapter, tmp_path / "y.safetensors", "comfy", model=model)
    there = lyc.load_adapter(tmp_path / "y.safetensors")
    assert set(there.info) == {key.removesuffix(".weight") for key in model}


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora.A", "lora.B"),
        ("lora.A.weight", "lora.B.weight"),
        ("lora_down.default.weight", "lora_up.default.weight"),
        ("lora.down.default.weight", "lora.up.default.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_A.default", "lora_B.default"),
    ],
)
def test_words_that_tools_have_for_the_factors(tmp_path: Path, down: str, up: str) -> None:
    key = "diffusion_model.blocks.0.self_attn.q.weight"
    first, second = rand(2, 8), rand(8, 2)
    layer = "pipe.dit.blocks.0.self_attn.q"
    tensors = {f"{layer}.{down}": first, f"{layer}.{up}": second}
    adapter = read(tmp_path, tensors)
    assert not adapter.unused_keys
    close(changes(adapter, WAN), {key: second.double() @ first.double()})


def test_an_encoders_layers_never_land_on_the_diffusion_model(tmp_path: Path) -> None:
    """This diffusion model has the paths of a text encoder's layers, as those of language models have."""
    model = {f"diffusion_model.layers.{n}.self_attn.q_proj.weight": (8, 8) for n in range(2)}
    for front in ("lora_te1_text_model_encoder_", "clip_l.text_model.encoder.", "pipe.text_encoder.", "te."):
        separator = "." if "." in front else "_"
        names = [f"{front}layers.{n}.self_attn.q_proj".replace(".", separator) for n in range(2)]
        tensors = {f"{name}.{k}": t for name in names for k, t in lora((8, 8), 2).items()}
        (entry,) = resolved(read(tmp_path, tensors), model).entries
        assert not entry.matches and not entry.front
    # With the encoder there, what is in front of its own paths may go.
    with_clip = {**model, CLIP: (8, 8)}
    name = "my.clip.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{name}.{k}": t for k, t in lora((8, 8), 2).items()}
    (entry,) = resolved(read(tmp_path, tensors), with_clip).entries
    assert [match.key for match in entry.matches] == [CLIP]


def test_an_adapter_of_another_model_still_matches_nothing(tmp_path: Path) -> None:
    sd15 = {
        "diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "diffusion_model.input_blocks.1.0.in_layers.2.weight": (8, 8, 3, 3),
        "diffusion_model.middle_block.0.in_layers.2.weight": (8, 8, 3, 3),
        "diffusion_model.out.2.weight": (4, 8, 3, 3),
    }
    known, unknown = (
        r"is made for Flux 1, .* this model is SD 1\.5, ",
        "nothing in the adapter matches the model",
    )
    for spell, words in {"lora_unet_{1}": known, "pipe.dit.{0}": unknown, "transformer.{0}": known}.items():
        tensors = {f"{name}.{k}": t for name in named(FLUX, spell) for k, t in lora((8, 8), 2).items()}
        with pytest.raises(lyc.MatchError, match=words):
            resolved(read(tmp_path, tensors), sd15).check()


def test_a_front_counts_for_most_of_a_file_or_not_at_all(tmp_path: Path) -> None:
    """Of three layers one has no front: two are more than half. Of four with two fronts none are."""
    paths = ["blocks.0.self_attn.q", "blocks.1.self_attn.q", "blocks.2.self_attn.q", "blocks.0.cross_attn.k"]
    most = [f"x.{paths[0]}", f"x.{paths[1]}", paths[2]]
    halves = [f"x.{paths[0]}", f"x.{paths[1]}", f"y.{paths[2]}", f"y.{paths[3]}"]
    for names, found in ((most, 3), (halves, 0)):
        tensors = {f"{name}.{k}": t for name in names for k, t in lora((8, 8), 2).items()}
        (entry,) = resolved(read(tmp_path, tensors), WAN).entries
        assert entry.count() == found


def test_a_front_that_leaves_two_meanings_is_none(tmp_path: Path) -> None:
    """Both `b.c` and `c` are layers of the model."""
    tensors = {f"a.b.c.{k}": t for k, t in lora((8, 8), 2).items()}
    (entry,) = resolved(read(tmp_path, tensors), {"b.c.weight": (8, 8), "c.weight": (8, 8)}).entries
    assert not entry.matches and [left.layer for left in entry.unmatched] == ["a.b.c"]


def test_a_base_of_auraflow_has_a_word_in_front_of_its_paths() -> None:
    keys = {
        f"model.{path}.weight": (8, 8)
        for path in ("cond_seq_linear", "double_layers.0.attn.w1q", "double_layers.0.attn.w2q")
    }
    targets = Targets(keys)
    assert {target.path for target in targets.all} == {
        key.removeprefix("model.").removesuffix(".weight") for key in keys
    }
    ((target,),) = targets.find("transformer.joint_transformer_blocks.0.attn.to_q")
    assert target.key == "model.double_layers.0.attn.w2q.weight"
    # A module of no known architecture keeps its own paths.
    assert {target.path for target in Targets({"model.0.weight": (8, 8), "model.1.weight": (8, 8)}).all} == {
        "model.0",
        "model.1",
    }


@pytest.mark.parametrize(("width", "encoder"), [(1024, "clip_h"), (1280, "clip_g")])
def test_the_width_tells_the_text_encoder_of_a_checkpoint(width: int, encoder: str) -> None:
    root = "conditioner.embedders.0.model.transformer.resblocks.0."
    targets = Targets(
        {f"{root}attn.out_proj.weight": (width, width), f"{root}mlp.c_fc.weight": (4 * width, width)}
    )
    assert targets.encoders == {encoder}


# MiniMax-H3 with two heads of the published size, as the host has it.
WIDTH = 256
H3: Shapes = {
    "diffusion_model.video_patch_proj.weight": (6, 4),
    **{
        f"diffusion_model.{root}.0.{path}.weight": shape
        for root in ("blocks", "token_refiner.blocks")
        for path, shape in {
            "attn.qkv_proj": (3 * WIDTH, 6),
            "attn.out_proj": (6, WIDTH),
            "mlp.fc1": (8, 6),
            "mlp.fc2": (6, 4),
        }.items()
    },
}


@pytest.mark.parametrize("front", ["", "diffusion_model."])
@pytest.mark.parametrize("word", ["default.", ""], ids=["diffsynth", "others"])
def test_diffsynths_rows_of_minimax_h3_are_those_of_diffusers(tmp_path: Path, word: str, front: str) -> None:
    """diffusers' conversion of the file, applied to the layers of the host that its names mean."""
    tensors: Tensors = {}
    for key, (outputs, inputs) in H3.items():
        path = front + key.removeprefix("diffusion_model.").removesuffix(".weight")
        tensors[f"{path}.lora_A.{word}weight"] = rand(2, inputs)
        tensors[f"{path}.lora_B.{word}weight"] = rand(outputs, 2)
    theirs = loras._convert_non_diffusers_minimax_h3_lora_to_diffusers(dict(tensors))
    ours = changes(read(tmp_path, tensors), H3)
    close(ours, changes(read(tmp_path, theirs, "theirs"), H3))
    assert len(ours) == len(H3)


def test_rows_that_make_no_whole_heads_are_an_error(tmp_path: Path) -> None:
    tensors = {
        "blocks.0.attn.qkv_proj.lora_A.default.weight": rand(2, 6),
        "blocks.0.attn.qkv_proj.lora_B.default.weight": rand(30, 2),
    }
    with pytest.raises(lyc.LayerError, match=r"blocks\.0\.attn\.qkv_proj.*head by head.*30 rows.*128"):
        read(tmp_path, tensors)


# Z-Image, whose query, key and value are one weight in the host.
Z_IMAGE: Shapes = {
    "diffusion_model.cap_embedder.1.weight": (8, 6),
    "diffusion_model.layers.0.attention.qkv.weight": (24, 8),
    "diffusion_model.layers.0.attention.out.weight": (8, 8),
    "diffusion_model.layers.0.adaLN_modulation.0.weight": (8, 8),
}
LAYER = "diffusion_model.layers.0.attention"


def z_image(rank: int = 2) -> tuple[Tensors, Tensors]:
    """The split layers of a file, and the fused copies of the same change."""
    split = {x: {"down": rand(rank, 8), "up": rand(8, rank)} for x in "qkv"}
    out = {"down": rand(rank, 8), "up": rand(8, rank)}
    tensors = {f"{LAYER}.to.{x}.lora.{k}.weight": t for x, pair in split.items() for k, t in pair.items()}
    tensors |= {f"{LAYER}.to_out.0.lora.{k}.weight": t for k, t in out.items()}
    copies = {
        f"{LAYER}.qkv.lora.down.weight": torch.cat([pair["down"] for pair in split.values()]),
        f"{LAYER}.qkv.lora.up.weight": torch.block_diag(*(pair["up"] for pair in split.values())),
        **{f"{LAYER}.out.lora.{k}.weight": t.clone() for k, t in out.items()},
    }
    return tensors, copies


def test_split_and_fused_copies_are_applied_once(tmp_path: Path) -> None:
    """diffusers leaves out the fused copies of such a file, see its issue 13203."""
    split, copies = z_image()
    adapter = read(tmp_path, {**split, **copies})
    theirs = loras._convert_non_diffusers_z_image_lora_to_diffusers({**split, **copies})
    ours = changes(adapter, Z_IMAGE)
    close(ours, changes(read(tmp_path, theirs, "theirs"), Z_IMAGE))
    close(ours, changes(read(tmp_path, split, "split"), Z_IMAGE))
    (entry,) = resolved(adapter, Z_IMAGE).entries
    assert set(entry.copies) == {f"{LAYER}.to.{x}" for x in "qkv"} | {f"{LAYER}.to_out.0"}
    assert "4 layers repeat others of the file and are applied once" in lyc.describe(lyc.Resolution((entry,)))
    result = lyc.save_adapter(adapter, tmp_path / "y.safetensors", "comfy", model=Z_IMAGE)
    assert any("repeat others" in change for change in result.changes)
    close(changes(lyc.load_adapter(result.path), Z_IMAGE), ours)


def test_a_fused_copy_is_compared_with_each_of_separate_weights(tmp_path: Path) -> None:
    split, copies = z_image()
    tensors = {
        **{key.replace(".to.", ".to_"): tensor for key, tensor in split.items() if ".to." in key},
        **{key: tensor for key, tensor in copies.items() if ".qkv." in key},
    }
    model = {f"{LAYER}.to_{x}.weight": (8, 8) for x in "qkv"}
    (entry,) = resolved(read(tmp_path, tensors), model).entries
    assert set(entry.copies) == {f"{LAYER}.to_{x}" for x in "qkv"}
    tensors[f"{LAYER}.to_k.lora.up.weight"][3, 1] += 0.01
    with pytest.raises(lyc.MatchError, match="change it differently"):
        resolved(read(tmp_path, tensors, "y"), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copies_under_two_tools_names_are_applied_once(tmp_path: Path, dtype: torch.dtype) -> None:
    """The second copy has the scale multiplied into a factor, which rounds in bfloat16."""
    down, up, alpha = rand(3, 8).to(dtype), rand(8, 3).to(dtype), torch.tensor(1.7)
    kohya = "lora_unet_double_blocks_0_img_attn_proj"
    diffusers = "transformer.transformer_blocks.0.attn.to_out.0"
    first = {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up, f"{kohya}.alpha": alpha}
    scaled = (up.float() * 1.7 / 3).to(dtype)
    second = {f"{diffusers}.lora_A.weight": down.clone(), f"{diffusers}.lora_B.weight": scaled}
    ours = changes(read(tmp_path, {**first, **second}), FLUX)
    wanted = {"diffusion_model.double_blocks.0.img_attn.proj.weight": 1.7 / 3 * (up.double() @ down.double())}
    close(ours, wanted, 2e-2 if dtype is torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora", "oft"])
def test_copies_of_every_kind_are_compared(tmp_path: Path, kind: str) -> None:
    made: Tensors = {
        "loha": lambda: loha((8, 8), 2),
        "lokr": lambda: lokr((8, 8), 2, first="full", second="low"),
        "dora": lambda: {**lora((8, 8), 2), "dora_scale": 1 + torch.rand(8, 1)},
        "oft": lambda: {"oft_blocks": rand(2, 4, 4)},
    }[kind]()
    names = ("lora_unet_double_blocks_0_img_attn_proj", "diffusion_model.double_blocks.0.img_attn.proj")
    tensors = {f"{name}.{k}": t.clone() for name in names for k, t in made.items()}
    (entry,) = resolved(read(tmp_path, tensors), FLUX).entries
    assert len(entry.matches) == len(entry.copies) == 1
    changed = next(key for key in tensors if key.startswith(names[1]) and tensors[key].ndim > 1)
    tensors[changed] = tensors[changed] * 1.1
    with pytest.raises(lyc.MatchError, match="change it differently"):
        resolved(read(tmp_path, tensors, "y"), FLUX)


def test_different_changes_of_the_same_rows_show_both_keys(tmp_path: Path) -> None:
    split, copies = z_image()
    copies[f"{LAYER}.qkv.lora.up.weight"][3, 1] += 0.01
    with pytest.raises(lyc.MatchError) as caught:
        resolved(read(tmp_path, {**split, **copies}), Z_IMAGE)
    message = str(caught.value)
    assert f"{LAYER}.qkv.lora.down.weight" in message and f"{LAYER}.to.q.lora.down.weight" in message
    assert "differently" in message and "attention.qkv.weight" in message


# Files of OneTrainer and ai-toolkit, after their modules' own definitions: `modules/module/LoRAModule.py` of
# OneTrainer and `toolkit/models/lokr.py` of ai-toolkit.
TRAINED: Shapes = {
    "diffusion_model.a.weight": (8, 12),
    "diffusion_model.c.weight": (8, 12, 3, 3),
    CLIP: (8, 12),
}
ENCODER = CLIP.removeprefix("clip_l.transformer.").removesuffix(".weight")


def onetrainers_loha(shape: tuple[int, ...], rank: int, alpha: float) -> tuple[Tensors, Tensor]:
    """The factors are the weights of layers like LoRA's, so those of a convolution have four dimensions."""
    ones = tuple(1 for _ in shape[2:])
    tensors = {f"hada_w{n}_a": rand(shape[0], rank, *ones) for n in (1, 2)}
    tensors |= {f"hada_w{n}_b": rand(rank, *shape[1:]) for n in (1, 2)}
    one, other = (
        tensors[f"hada_w{n}_a"].double().flatten(1) @ tensors[f"hada_w{n}_b"].double().flatten(1)
        for n in (1, 2)
    )
    return {**tensors, "alpha": torch.tensor(alpha)}, (alpha / rank * one * other).view(shape)


def trained_lokr(
    shape: tuple[int, ...], rank: int, alpha: float, *, outer: tuple[int, int], form: str
) -> tuple[Tensors, Tensor]:
    """`outer` is the shape of w1, and `form` says what is low-rank: none, w2, both, or w2 with a core."""
    (rows, columns), (k, j), kernel = outer, (shape[0] // outer[0], shape[1] // outer[1]), shape[2:]
    tensors: Tensors = {"alpha": torch.tensor(alpha)}
    if form == "both":
        tensors |= {"lokr_w1_a": rand(rows, rank), "lokr_w1_b": rand(rank, columns)}
        first = tensors["lokr_w1_a"].double() @ tensors["lokr_w1_b"].double()
    else:
        tensors["lokr_w1"] = rand(rows, columns)
        first = tensors["lokr_w1"].double()
    if form == "none":
        tensors["lokr_w2"] = rand(k, j, *kernel)
        second = tensors["lokr_w2"].double()
    elif form == "core":
        tensors |= {
            "lokr_t2": rand(rank, rank, *kernel),
            "lokr_w2_a": rand(rank, k),
            "lokr_w2_b": rand(rank, j),
        }
        t, a, b = (tensors[f"lokr_{x}"].double() for x in ("t2", "w2_a", "w2_b"))
        second = torch.einsum("i j k l, i p, j r -> p r k l", t, a, b)
    else:
        tensors |= {"lokr_w2_a": rand(k, rank), "lokr_w2_b": rand(rank, j * math.prod(kernel))}
        second = (tensors["lokr_w2_a"].double() @ tensors["lokr_w2_b"].double()).view(k, j, *kernel)
    scale = 1.0 if form == "none" else alpha / rank
    first = first.view(rows, columns, *(1 for _ in kernel))
    return tensors, scale * torch.kron(first, second.contiguous())


@pytest.mark.parametrize(
    ("linear", "convolution", "encoder"),
    [
        # OneTrainer's kohya, diffusers and comfy formats.
        ("lora_unet_a", "lora_unet_c", f"lora_te1_{ENCODER.replace('.', '_')}"),
        ("transformer.a", "transformer.c", f"text_encoder.{ENCODER}"),
        ("diffusion_model.a", "diffusion_model.c", f"text_encoders.clip_l.transformer.{ENCODER}"),
        # ai-toolkit's earlier format of LoKr, which is LyCORIS' own.
        ("lycoris_a", "lycoris_c", f"lycoris_{ENCODER.replace('.', '_')}"),
    ],
    ids=["kohya", "diffusers", "comfy", "lycoris"],
)
def test_loha_and_lokr_as_trainers_write_them(
    tmp_path: Path, linear: str, convolution: str, encoder: str
) -> None:
    keys = dict(zip((linear, convolution, encoder), TRAINED, strict=True))
    flat, conv = TRAINED["diffusion_model.a.weight"], TRAINED["diffusion_model.c.weight"]
    # ai-toolkit does not put the smaller factor first: w1 may have more rows than w2.
    files = [
        [onetrainers_loha(TRAINED[key], 3, 1.5) for key in keys.values()],
        [
            trained_lokr(flat, 2, 1.0, outer=(4, 2), form="w2"),
            trained_lokr(conv, 2, 3.0, outer=(2, 3), form="core"),
            # Full factors: their alpha is the trainer's full rank, which has no place in float16.
            trained_lokr(flat, 2, math.inf, outer=(2, 3), form="none"),
        ],
        [
            trained_lokr(flat, 2, 1.0, outer=(2, 3), form="both"),
            trained_lokr(conv, 2, 3.0, outer=(2, 3), form="w2"),
            trained_lokr(flat, 2, 1.0, outer=(8, 1), form="w2"),
        ],
        [
            trained_lokr(flat, 2, 1.0, outer=(2, 3), form="none"),
            trained_lokr(conv, 2, 1e10, outer=(2, 3), form="none"),
            trained_lokr(flat, 2, 1.0, outer=(1, 12), form="none"),
        ],
    ]
    for number, file in enumerate(files):
        named = dict(zip(keys, file, strict=True))
        tensors = {f"{name}.{k}": t for name, (own, _) in named.items() for k, t in own.items()}
        found = changes(read(tmp_path, tensors, f"x{number}"), TRAINED)
        close(found, {keys[name]: wanted for name, (_, wanted) in named.items()})


@pytest.mark.parametrize("suffix", ["dora_scale", "lora_magnitude_vector.weight"])
def test_onetrainers_lokr_with_a_magnitude_of_the_outputs(tmp_path: Path, suffix: str) -> None:
    """DoRA's definition. Its diffusers format has PEFT's name and shape for the magnitude of the outputs."""
    shape = TRAINED["diffusion_model.a.weight"]
    tensors, delta = trained_lokr(shape, 2, 1.0, outer=(2, 3), form="w2")
    magnitude = 1 + torch.rand(8)
    tensors[suffix] = magnitude if suffix.startswith("lora") else magnitude[:, None]
    adapter = read(tmp_path, {f"transformer.a.{k}": t for k, t in tensors.items()})
    weight = torch.randn(shape, dtype=torch.float64)
    moved = weight + delta
    wanted = magnitude.double()[:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        weight + adapter.layers["transformer.a"].delta(weight), wanted, rtol=1e-6, atol=1e-6
    )


# Keys of a file, each of which is used or reported.
WHOLE = {
    "lora_unet_x": [*lora((8, 8), 2), "alpha", "dora_scale", "diff_b"],
    "lora_unet_y": [*loha((8, 8), 2), "alpha"],
    "transformer.z": ["lora_A.default.weight", "lora_B.default.weight"],
    "oft_unet_w": ["alpha", *(f"oft_blocks.{n}" for n in range(3))],
    "oft_unet_w.1": ["alpha", "oft_blocks"],
    "oft_unet_v": ["oft_blocks", "rescale"],
    "bundle_emb.word": ["clip_l"],
}
MUTATIONS = (
    lambda key, _: key + ".0",
    lambda key, _: key + "\n",
    lambda key, _: "." + key,
    lambda key, _: key.replace(".", "..", 1),
    lambda key, _: key.rpartition(".")[0] or key,
    lambda key, _: key.replace(".alpha", ".oft_blocks"),
    lambda key, _: key.replace(".0", ".00"),
    lambda key, _: key.replace(".lora_", ".lora_A.style.lora_"),
    lambda key, other: f"{key.rpartition('.')[0]}.{other.rpartition('.')[2]}",
    lambda key, other: f"{other.rpartition('.')[0]}.{key.rpartition('.')[2]}",
)


def test_each_key_of_a_file_is_used_or_reported(tmp_path: Path) -> None:
    """Whatever is renamed. Only an error may come instead; alpha is shared by the parts of a fused layer."""
    generator = random.Random(0)
    whole = [f"{name}.{suffix}" for name, suffixes in WHOLE.items() for suffix in suffixes]
    read = 0
    for number in range(200):
        keys = dict.fromkeys(whole)
        for _ in range(generator.randint(1, 3)):
            old, other = generator.sample(sorted(keys), 2)
            del keys[old]
            keys[generator.choice(MUTATIONS)(old, other)] = None
        path = tmp_path / f"{number}.safetensors"
        save_file({key: torch.ones(shape_of(key)) for key in keys}, path)
        try:
            adapter = lyc.load_adapter(path)
        except lyc.LycorisError:
            continue
        read += 1
        used = [key for info in adapter.info.values() for key in info.keys.values()]
        bundled = [key for key in keys if key.startswith("bundle_emb.")]
        assert {*used, *adapter.unused_keys, *bundled} == keys.keys(), keys.keys()
        shared = [key for key in used if key.endswith(("alpha", "rescale"))]
        assert len(set(used)) == len(used) - len(shared) + len(set(shared))
        assert not {*adapter.unused_keys} & {*used} - {*shared}
    assert read > 100


def shape_of(key: str) -> tuple[int, ...]:
    """A shape that fits the tensor that a key of `WHOLE` names, or what has become of the key."""
    if "oft_blocks" in key:
        return (2, 4, 4)
    if "alpha" in key:
        return ()
    if "_down" in key or "_A" in key or (key.endswith("_b") and "hada" in key):
        return (2, 8)
    return (8, 2) if "_up" in key or "_B" in key or key.endswith("_a") else (8,)


@pytest.mark.parametrize(
    "keys",
    [
        {"": (), ".weight": (8, 8), ".": (8,), "..weight": (), "weight": (3,)},
        {"text_model.encoder.layers.0.mlp.fc1.weight": ()},
        {"conditioner.embedders.0.model.transformer.resblocks.0.attn.in_proj_weight": (2,)},
        {"conditioner.embedders.0.model.transformer.resblocks.0.attn.out_proj.weight": (0,)},
        {"a.qkv.weight": (7,), "b.qkv.weight": (), "c.qkv.weight": (0, 0), "c.out.weight": ()},
        {"a.to_q.weight": (), "a.to_k.weight": (4,), "a.to_v.weight": (4, 0)},
        {
            "double_blocks.0.img_attn.qkv.weight": (),
            "img_in.weight": (0,),
            "vector_in.in_layer.weight": (1,) * 9,
        },
        {
            "single_blocks.0.linear1.weight": (1, 0),
            "single_blocks.0.linear2.weight": (2,),
            "img_in.weight": (),
        },
    ],
)
def test_a_model_of_unusual_keys_and_shapes_is_read(keys: Shapes) -> None:
    """Every layer is found under its own path, and other look-ups find nothing or one of them."""
    targets = Targets(keys)
    blocks = Blocks(targets)
    assert sum(map(len, blocks.members.values())) == len(targets.all)
    for target in targets.all:
        assert target.key in {places[0].key for places in targets.find(target.path)}
    others = [
        "",
        "lora_unet_",
        "a.to_q",
        "a.qkv",
        "b.to_k",
        "transformer.single_transformer_blocks.0.attn.to_q",
    ]
    for candidates in targets.candidates(map(LayerName.of, others))[1].values():
        for places in candidates:
            rows = targets.shape_of(*places)
            assert not rows or rows[0] <= sum(keys[place.key][0] for place in places)
        targets.nearest("a.to_x")


LONG_NAMES = """
import resource, sys
import lycoris_ops as lyc
from lycoris_ops.names.layer_name import LayerName
from lycoris_ops.names.targets import Targets
import torch
from safetensors.torch import save_file

# Importing torch counts too.
used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 10, int(used) + 10))
COUNT, SIZE = 2_000, 950


def key(fill, number, end):
    return (fill * SIZE)[: SIZE - len(str(number)) - len(end)] + str(number) + end


# With up to 60 dots, of the 64 that a name may have.
DOTTED, NAMED = "." + 15 * "a", ".lora_A" + 13 * "a"
ENDS = {DOTTED: ".odd", "_": ".alpha", NAMED: ".lora_A.x.weight", "a_": ".diff", "a": ""}
for fill, end in ENDS.items():
    names = [key(fill, number, end) for number in range(COUNT)]
    tensors = {name: torch.zeros(1) for name in names} | {"lora_unet_x.diff": torch.zeros(1)}
    save_file(tensors, sys.argv[1])
    adapter = lyc.load_adapter(sys.argv[1])
    model = {f"diffusion_model.{name}": (1,) for name in names} | {"x.weight": (1,)}
    for keys in (model, {"x.weight": (1,)}, {name: (1,) for name in names}):
        lyc.describe(lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), keys))
        Targets(keys).candidates(map(LayerName.of, names))
        Targets(keys).nearest(names[0])
# Names that all mean the same weight.
variants = ["".join("._"[number >> bit & 1] + "ab" for bit in range(13)) for number in range(COUNT)]
targets = Targets({name: (1,) for name in variants})
assert len(targets.find(variants[0])) > 1
try:
    targets.find_each(map(LayerName.of, variants), "x")
except lyc.MatchError as error:
    assert len(str(error)) < 1000
else:
    raise AssertionError("rivals are an error")
"""


def test_many_long_names_take_little_time(tmp_path: Path) -> None:
    """The kernel ends the child after ten seconds of CPU, which is much for the ten megabytes of names."""
    command = [sys.executable, "-c", LONG_NAMES, str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
