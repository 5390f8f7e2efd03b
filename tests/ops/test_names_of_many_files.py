"""Names that no list has, changes that a file holds twice, and rows that one tool orders in its own way.

The reference is the file without the peculiarity, diffusers' own conversion of it, or a product in float64.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as loras
from layers import loha, lokr, lora, rand
from models import flux, unet
from torch import Tensor
from written import changes, close, read, resolved

import lycoris_ops as lyc
from lycoris_ops.names.relation import Relation
from lycoris_ops.names.targets import Targets

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


WAN: Shapes = {
    f"diffusion_model.blocks.{n}.{path}.weight": shape
    for n in range(3)
    for path, shape in {"self_attn.q": (8, 8), "cross_attn.k": (8, 8), "ffn.0": (12, 8)}.items()
}
FLUX: Shapes = {key: shape for key, shape in flux(8).items() if len(shape) == 2}
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
    known, unknown = (
        r"is made for Flux 1, .* this model is SD 1\.5, ",
        "nothing in the adapter matches the model",
    )
    for spell, words in {"lora_unet_{1}": known, "pipe.dit.{0}": unknown, "transformer.{0}": known}.items():
        tensors = {f"{name}.{k}": t for name in named(FLUX, spell) for k, t in lora((8, 8), 2).items()}
        with pytest.raises(lyc.MatchError, match=words):
            resolved(read(tmp_path, tensors), unet()).check()


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
    relation = Relation(keys)
    assert {target.path for target in relation.targets.all} == {
        key.removeprefix("model.").removesuffix(".weight") for key in keys
    }
    ((target,),) = relation.find("transformer.joint_transformer_blocks.0.attn.to_q")
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
    assert "4 layers repeat others of the file: applied once" in lyc.describe(lyc.Resolution((entry,)))
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
    shape: tuple[int, ...], alpha: float, *, outer: tuple[int, int], low: bool
) -> tuple[Tensors, Tensor]:
    """`outer` is the shape of w1, and `low` says whether w2 is of rank 2. If it is full it has no scale."""
    (k, j), kernel = (shape[0] // outer[0], shape[1] // outer[1]), shape[2:]
    tensors: Tensors = {"alpha": torch.tensor(alpha), "lokr_w1": rand(*outer)}
    if low:
        tensors |= {"lokr_w2_a": rand(k, 2), "lokr_w2_b": rand(2, j * math.prod(kernel))}
        second = alpha / 2 * (tensors["lokr_w2_a"].double() @ tensors["lokr_w2_b"].double())
    else:
        tensors["lokr_w2"] = rand(k, j, *kernel)
        second = tensors["lokr_w2"].double()
    first = tensors["lokr_w1"].double().view(*outer, *(1 for _ in kernel))
    return tensors, torch.kron(first, second.view(k, j, *kernel).contiguous())


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
            trained_lokr(flat, 1.0, outer=(4, 2), low=True),
            trained_lokr(conv, 3.0, outer=(2, 3), low=True),
            # Full factors: their alpha is the trainer's full rank, which has no place in float16.
            trained_lokr(flat, math.inf, outer=(2, 3), low=False),
        ],
        [
            trained_lokr(flat, 1.0, outer=(8, 1), low=True),
            trained_lokr(conv, 1e10, outer=(2, 3), low=False),
            trained_lokr(flat, 1.0, outer=(1, 12), low=False),
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
    tensors, delta = trained_lokr(shape, 1.0, outer=(2, 3), low=True)
    magnitude = 1 + torch.rand(8)
    tensors[suffix] = magnitude if suffix.startswith("lora") else magnitude[:, None]
    adapter = read(tmp_path, {f"transformer.a.{k}": t for k, t in tensors.items()})
    weight = torch.randn(shape, dtype=torch.float64)
    moved = weight + delta
    wanted = magnitude.double()[:, None] * moved / moved.norm(dim=1, keepdim=True)
    close(weight + adapter.layers["transformer.a"].delta(weight), wanted)
