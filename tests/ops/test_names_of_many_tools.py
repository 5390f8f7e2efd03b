"""Layers that several tools name differently: Flux, SD3, AuraFlow, Hunyuan, PixArt, Cascade.

A tiny model in the host's layout, in which no number occurs twice, goes through diffusers' conversion. Each
tensor of the result must be the rows that the library's table has for its name. Where diffusers only has a
script, the names and the shapes are compared with its model class instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import ModuleType

import diffusers
import pytest
import torch
from architectures import (
    Names,
    Others,
    Shapes,
    Tensors,
    check_converted,
    check_one_meaning,
    check_others,
    check_sizes,
    check_without_shapes,
    every,
    numbered,
    read,
)
from diffusers.loaders import lora_conversion_utils as loras
from diffusers.loaders import single_file_utils as checkpoints
from torch import Tensor, nn

from lycoris_ops.names.architectures import (
    auraflow,
    flux,
    hunyuan_dit,
    hunyuan_video,
    pixart,
    sd3,
    stable_cascade,
)
from lycoris_ops.names.architectures.base import Places

PARAMETERS = re.compile(
    r"(.*\.)?(scale|scale_shift_table|pos_embed|positional_\w+|register_tokens|\w+_padding|in_proj_weight)$"
)
"""Parameters that are not called weight: their path is their whole name."""


def blocks(root: str, count: int, shapes: Shapes) -> Shapes:
    """The layers of `count` equal blocks below `root`."""
    return {f"{root}.{n}.{path}": shape for n in range(count) for path, shape in shapes.items()}


def checkpoint(tensors: Tensors) -> Tensors:
    """The tensors under the keys of a file, with a bias for every matrix: the first value of each row."""
    file = {path if PARAMETERS.match(path) else f"{path}.weight": value for path, value in tensors.items()}
    biases = {f"{path}.bias": value.flatten(1)[:, 0] for path, value in tensors.items() if value.ndim > 1}
    return {**file, **biases}


def written(shapes: Shapes, places: Places, value: Tensor) -> Tensors:
    """The change of each of the model's weights when an adapter changes these places by `value`."""
    change = {path: torch.zeros(shape[0], *value.shape[1:]) for path, shape in shapes.items()}
    start = 0
    for place in places:
        first, end = place.rows or (0, shapes[place.path][0])
        change[place.path][first:end] += value[start : start + end - first]
        start += end - first
    assert start == len(value)
    return change


def weights(converted: Mapping[str, Tensor]) -> Tensors:
    """The weights of a file by names of layers. Biases are left out."""
    return {
        key.removesuffix(".weight"): value
        for key, value in converted.items()
        if key.endswith(".weight") or (PARAMETERS.match(key) and not key.endswith(".bias"))
    }


def check(
    module: ModuleType, shapes: Shapes, theirs: Tensors, others: Others, more: Mapping[str, Tensor] = {}
) -> None:
    """Assert that every name of a module means the right rows.

    `theirs` is the result of diffusers' conversion, whose names must be the module's. `others` are names
    that other tools use for layers of diffusers'. `more` has tensors for names of parts that diffusers does
    not name.
    """
    check_converted(module.diffusers(shapes), shapes, theirs)
    check_others(module.aliases(shapes), shapes, {**theirs, **more}, others)
    check_one_meaning(shapes)
    check_without_shapes(module, shapes)


def model(kind: type[nn.Module], **sizes: object) -> Tensors:
    """The parameters of a tiny model of a class of diffusers."""
    return weights(dict(kind(**sizes).named_parameters()))


def check_names(module: ModuleType, shapes: Shapes, theirs: Tensors, rivalry: Iterable[str] = ()) -> Names:
    """Assert that diffusers' names are the layers of its model, and that no name has two meanings.

    `rivalry` are names that do have two meanings. The result is all names of the model's layers.
    """
    check_sizes(module.diffusers(shapes), shapes, theirs)
    check_one_meaning(shapes, rivalry)
    check_without_shapes(module, shapes)
    return every(module, shapes)


def rows(found: Mapping[str, Places], name: str) -> list[tuple[str, tuple[int, int] | None]]:
    """The places of a name, each as (path, rows)."""
    return [(place.path, place.rows) for place in found[name]]


def halves(path: str, half: int) -> list[tuple[str, tuple[int, int] | None]]:
    """The places of a layer whose halves change places: diffusers has scale first, the host shift."""
    return [(path, (half, 2 * half)), (path, (0, half))]


# SD3.5: the first block has a second attention, the last one has no text stream after its attention.
H = 4
SD3_X = {
    "adaLN_modulation.1": (9 * H, H),
    "attn.qkv": (3 * H, H),
    "attn.proj": (H, H),
    "attn.ln_q": (2,),
    "attn.ln_k": (2,),
    "mlp.fc1": (4 * H, H),
    "mlp.fc2": (H, 4 * H),
}
SD3_SECOND = {"qkv": (3 * H, H), "proj": (H, H), "ln_q": (2,), "ln_k": (2,)}
SD3_LAST = {
    "adaLN_modulation.1": (2 * H, H),
    "attn.qkv": (3 * H, H),
    "attn.ln_q": (2,),
    "attn.ln_k": (2,),
}
SD3: Shapes = {
    "pos_embed": (1, 9, H),
    "x_embedder.proj": (H, 2, 2, 2),
    "t_embedder.mlp.0": (H, 6),
    "t_embedder.mlp.2": (H, H),
    "y_embedder.mlp.0": (H, 5),
    "y_embedder.mlp.2": (H, H),
    "context_embedder": (H, 7),
    **blocks("joint_blocks", 2, {f"x_block.{path}": shape for path, shape in SD3_X.items()}),
    **{f"joint_blocks.0.context_block.{path}": shape for path, shape in SD3_X.items()},
    **{f"joint_blocks.1.context_block.{path}": shape for path, shape in SD3_LAST.items()},
    **{f"joint_blocks.0.x_block.attn2.{path}": shape for path, shape in SD3_SECOND.items()},
    "final_layer.linear": (8, H),
    "final_layer.adaLN_modulation.1": (2 * H, H),
}
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
BLOCK = "transformer_blocks.*"
SINGLE = "single_transformer_blocks.*"
QKV = tuple(f"{BLOCK}.{name}" for name in ATTENTION)
ADDED_QKV = tuple(f"{BLOCK}.{name}" for name in ADDED)
SINGLE_QKV = tuple(f"{SINGLE}.{name}" for name in ATTENTION)


def test_sd3() -> None:
    theirs = weights(checkpoints.convert_sd3_transformer_checkpoint_to_diffusers(checkpoint(numbered(SD3))))
    check(sd3, SD3, theirs, {})


# Flux: diffusers' conversions take for granted that a single block is 3072 wide.
W = 3072
LINEAR = ("img_mod.lin", "txt_mod.lin", "img_attn.proj", "txt_attn.proj", "img_mlp.2", "txt_mlp.2")
FLUX_DOUBLE: Shapes = {
    **dict.fromkeys(LINEAR, (2, 3)),
    **{f"{stream}_attn.qkv": (6, 2) for stream in ("img", "txt")},
    **{f"{stream}_mlp.0": (8, 2) for stream in ("img", "txt")},
    **{f"{s}_attn.norm.{qk}_norm.scale": (2,) for s in ("img", "txt") for qk in ("query", "key")},
}
FLUX_SINGLE: Shapes = {
    "modulation.lin": (6, 2),
    "linear1": (7 * W, 1),
    "linear2": (W, 1),
    "norm.query_norm.scale": (2,),
    "norm.key_norm.scale": (2,),
}
FINAL: Shapes = {"final_layer.linear": (4, 2), "final_layer.adaLN_modulation.1": (4, 2)}
FLUX: Shapes = {
    **dict.fromkeys(("img_in", "txt_in"), (2, 3)),
    **{
        f"{embedder}_in.{layer}": (2, 3)
        for embedder in ("time", "vector", "guidance")
        for layer in ("in_layer", "out_layer")
    },
    **blocks("double_blocks", 2, FLUX_DOUBLE),
    **blocks("single_blocks", 2, FLUX_SINGLE),
    **FINAL,
}
CHROMA: Shapes = {
    path: shape
    for path, shape in FLUX.items()
    if "_mod." not in path
    and ".modulation." not in path
    and "adaLN" not in path
    and not re.match("(time|vector|guidance)_in", path)
} | {
    "distilled_guidance_layer.in_proj": (2, 3),
    "distilled_guidance_layer.out_proj": (2, 3),
    "distilled_guidance_layer.layers.0.in_layer": (2, 3),
    "distilled_guidance_layer.layers.0.out_layer": (2, 3),
    "distilled_guidance_layer.norms.0.scale": (2,),
}
FLUX_2: Shapes = {
    path: shape
    for path, shape in FLUX.items()
    if "_mod." not in path and ".modulation." not in path and "vector" not in path
} | {
    "double_stream_modulation_img.lin": (12, 2),
    "double_stream_modulation_txt.lin": (12, 2),
    "single_stream_modulation.lin": (6, 2),
}
PROCESSORS = {
    "double_blocks.*.processor.qkv_lora1": QKV,
    "double_blocks.*.processor.qkv_lora2": ADDED_QKV,
    "double_blocks.*.processor.proj_lora1": f"{BLOCK}.attn.to_out.0",
    "double_blocks.*.processor.proj_lora2": f"{BLOCK}.attn.to_add_out",
}
"""Names that XLabs uses for layers of the double blocks."""
FLUX_OTHERS: Others = {
    "img_in.proj": "x_embedder",
    f"{BLOCK}.attn.add_qkv_proj": ADDED_QKV,
    **PROCESSORS,
    **{
        f"double_blocks.*.{stream}_attn.norm.{norm}": f"{BLOCK}.attn.{name}"
        for stream, norm, name in (
            ("img", "query_norm", "norm_q"),
            ("img", "key_norm", "norm_k"),
            ("txt", "query_norm", "norm_added_q"),
            ("txt", "key_norm", "norm_added_k"),
        )
    },
    "single_blocks.*.norm.query_norm": f"{SINGLE}.attn.norm_q",
    "single_blocks.*.norm.key_norm": f"{SINGLE}.attn.norm_k",
}
"""Names that other tools use for layers of Flux."""
FLUX_SINGLE_OTHERS: Others = {
    "single_blocks.*.processor.qkv_lora": SINGLE_QKV,
    "single_blocks.*.processor.proj_lora": f"{SINGLE}.proj_out",
    "single_blocks.*.linear1_qkv": SINGLE_QKV,
    "single_blocks.*.linear1_mlp": f"{SINGLE}.proj_mlp",
}
"""Names that other tools use for parts of a single block."""


def test_flux() -> None:
    theirs = weights(checkpoints.convert_flux_transformer_checkpoint_to_diffusers(checkpoint(numbered(FLUX))))
    check(flux, FLUX, theirs, FLUX_OTHERS | FLUX_SINGLE_OTHERS)


def test_chroma() -> None:
    theirs = weights(
        checkpoints.convert_chroma_transformer_checkpoint_to_diffusers(checkpoint(numbered(CHROMA)))
    )
    # diffusers calls the norm as the host does; only in files the path ends in `scale`.
    assert flux.diffusers(CHROMA)["distilled_guidance_layer.norms.0"][0].path.endswith(".scale")
    check(flux, CHROMA, theirs, FLUX_OTHERS | FLUX_SINGLE_OTHERS)


def test_flux_2() -> None:
    theirs = weights(
        checkpoints.convert_flux2_transformer_checkpoint_to_diffusers(checkpoint(numbered(FLUX_2)))
    )
    cut = {
        # Some exports cut the word short.
        name.replace("transformer_blocks.", "sformer_blocks."): name
        for name in theirs
        if name.startswith("transformer_blocks.0")
    }
    short = {name.replace(".0.", ".*.", 1): meaning.replace(".0.", ".*.", 1) for name, meaning in cut.items()}
    # Parts that diffusers has no names for: in its Flux 2 the whole layer is one.
    linear1 = {n: numbered(FLUX_2)[f"single_blocks.{n}.linear1"] for n in (0, 1)}
    parts = {f"single_blocks.{n}.linear1_qkv": value[: 3 * W] for n, value in linear1.items()}
    parts |= {f"single_blocks.{n}.linear1_mlp": value[3 * W :] for n, value in linear1.items()}
    parts |= {f"single_blocks.{n}.processor.qkv_lora": value[: 3 * W] for n, value in linear1.items()}
    others = {"single_blocks.*.processor.proj_lora": f"{SINGLE}.attn.to_out"}
    check(flux, FLUX_2, theirs, FLUX_OTHERS | others | short, parts)


def test_flux_as_the_host_has_it() -> None:
    """A loaded model calls the parameter of a norm `weight`. Files, and BFL's adapters, call it `scale`."""
    for file in (FLUX, CHROMA, FLUX_2):
        shapes = {path.removesuffix(".scale"): shape for path, shape in file.items()}
        in_file, in_host = every(flux, file), every(flux, shapes)
        assert {*in_file, *file} == {*in_host, *shapes, *file}
        for name, places in in_file.items():
            bare = [(place.path.removesuffix(".scale"), place.rows) for place in places]
            assert bare == (rows(in_host, name) if name in in_host else [(name, None)])


def test_xlabs_adapters() -> None:
    """diffusers' conversion of an XLabs adapter must change the model as the library's names do."""
    found = every(flux, FLUX)
    names = [name for name in found if ".processor." in name]
    assert len(names) == 2 * (4 + 2)
    factors: Tensors = {}
    start = 0
    for name in names:
        rows = sum(len(read(numbered(FLUX), (place,))) for place in found[name])
        factors[f"{name}.up.weight"] = torch.arange(start, start + rows, dtype=torch.float32)[:, None]
        factors[f"{name}.down.weight"] = torch.ones(1, 1)
        start += rows
    ours = [written(FLUX, found[name], factors[f"{name}.up.weight"]) for name in names]
    converted = loras._convert_xlabs_flux_lora_to_diffusers(dict(factors))
    theirs = [
        written(FLUX, found[key.removeprefix("transformer.").removesuffix(".lora_B.weight")], value)
        for key, value in converted.items()
        if key.endswith(".lora_B.weight")
    ]
    for path in FLUX:
        assert torch.equal(sum(change[path] for change in ours), sum(change[path] for change in theirs)), path


def test_radiance_has_the_blocks_of_flux() -> None:
    """Chroma Radiance has Flux's blocks, with other layers before and after them."""
    shapes = {path: shape for path, shape in CHROMA.items() if path not in {"img_in", *FINAL}}
    shapes |= {"img_in_patch": (2, 3, 4, 4), "nerf_blocks.0.norm.scale": (2,)}
    found = every(flux, shapes)
    assert found["single_transformer_blocks.1.proj_mlp"][0].rows == (3 * W, 7 * W)
    assert found["nerf_blocks.0.norm"][0].path == "nerf_blocks.0.norm.scale"
    assert "x_embedder" not in found


def test_unknown_shapes_leave_slices_out() -> None:
    found = every(flux, dict.fromkeys(FLUX, ()))
    assert "transformer_blocks.0.attn.to_out.0" in found
    assert "transformer_blocks.0.attn.to_q" not in found
    assert "norm_out.linear" not in found


def test_hunyuan_3d_is_no_flux() -> None:
    """Hunyuan 3D has Flux's blocks, but no layer for text."""
    shapes = {path: shape for path, shape in FLUX.items() if path not in {"img_in", "txt_in"}}
    assert not every(flux, {**shapes, "latent_in": (2, 3), "cond_in": (2, 3)})


AURA_MLP: Shapes = {"c_fc1": (8, 2), "c_fc2": (8, 2), "c_proj": (2, 8)}
AURAFLOW: Shapes = {
    "positional_encoding": (1, 9, 2),
    "register_tokens": (1, 8, 2),
    "init_x_linear": (2, 16),
    "cond_seq_linear": (2, 5),
    "t_embedder.mlp.0": (2, 6),
    "t_embedder.mlp.2": (2, 2),
    **blocks(
        "double_layers",
        2,
        {
            **{f"attn.w{n}{letter}": (2, 2) for n in (1, 2) for letter in "qkvo"},
            **{f"mlp{stream}.{path}": shape for stream in "XC" for path, shape in AURA_MLP.items()},
            "modX.1": (12, 2),
            "modC.1": (12, 2),
        },
    ),
    **blocks(
        "single_layers",
        2,
        {
            **{f"attn.w1{letter}": (2, 2) for letter in "qkvo"},
            **{f"mlp.{path}": shape for path, shape in AURA_MLP.items()},
            "modCX.1": (12, 2),
        },
    ),
    "modF.1": (4, 2),
    "final_linear": (8, 2),
}


def test_auraflow() -> None:
    file = checkpoint(numbered(AURAFLOW))
    theirs = weights(checkpoints.convert_auraflow_transformer_checkpoint_to_diffusers(file))
    check(auraflow, AURAFLOW, theirs, {})


# HunyuanVideo, in the layout of Tencent's files.
TENCENT_DOUBLE: Shapes = {
    f"{stream}_{path}": shape
    for stream in ("img", "txt")
    for path, shape in {
        "mod.linear": (12, 2),
        "attn_qkv": (6, 2),
        "attn_proj": (2, 2),
        "attn_q_norm": (2,),
        "attn_k_norm": (2,),
        "mlp.fc1": (8, 2),
        "mlp.fc2": (2, 8),
    }.items()
}
TENCENT_SINGLE: Shapes = {
    "modulation.linear": (6, 2),
    "linear1": (7 * W, 1),
    "linear2": (W, 1),
    "q_norm": (2,),
    "k_norm": (2,),
}
TENCENT_REFINER: Shapes = {
    "norm1": (2,),
    "norm2": (2,),
    "self_attn_qkv": (6, 2),
    "self_attn_proj": (2, 2),
    "mlp.fc1": (8, 2),
    "mlp.fc2": (2, 8),
    "adaLN_modulation.1": (4, 2),
}
TENCENT_COMMON: Shapes = {
    "img_in.proj": (2, 3, 1, 2, 2),
    **{f"{name}_in.mlp.{n}": (2, 3) for name in ("time", "guidance") for n in (0, 2)},
    **{f"txt_in.t_embedder.mlp.{n}": (2, 3) for n in (0, 2)},
    **{f"txt_in.c_embedder.linear_{n}": (2, 3) for n in (1, 2)},
    "txt_in.input_embedder": (2, 3),
    **blocks("txt_in.individual_token_refiner.blocks", 2, TENCENT_REFINER),
    **blocks("double_blocks", 2, TENCENT_DOUBLE),
    **FINAL,
}
TENCENT: Shapes = {
    **TENCENT_COMMON,
    "vector_in.in_layer": (2, 3),
    "vector_in.out_layer": (2, 3),
    **blocks("single_blocks", 2, TENCENT_SINGLE),
}
HOST_WORDS = (
    (r"_in\.(t_embedder\.)?mlp\.0$", r"_in.\1in_layer"),
    (r"_in\.(t_embedder\.)?mlp\.2$", r"_in.\1out_layer"),
    (r"c_embedder\.linear_1$", "c_embedder.in_layer"),
    (r"c_embedder\.linear_2$", "c_embedder.out_layer"),
    (r"_attn_q_norm$", "_attn.norm.query_norm"),
    (r"_attn_k_norm$", "_attn.norm.key_norm"),
    (r"(single_blocks\.\d+)\.q_norm$", r"\1.norm.query_norm"),
    (r"(single_blocks\.\d+)\.k_norm$", r"\1.norm.key_norm"),
    (r"_attn_(qkv|proj)$", r"_attn.\1"),
    (r"mlp\.fc1$", "mlp.0"),
    (r"mlp\.fc2$", "mlp.2"),
    (r"(_mod|modulation)\.linear$", r"\1.lin"),
)
"""What the host calls the layers of Tencent's files."""


def host_name(path: str) -> str:
    for word, host in HOST_WORDS:
        path = re.sub(word, host, path)
    return path


def in_host(shapes: Shapes) -> Shapes:
    """The layers of Tencent's files under the names of the host."""
    return {host_name(path): shape for path, shape in shapes.items()}


REFINER = "context_embedder.token_refiner.refiner_blocks.*"
REFINER_QKV = tuple(f"{REFINER}.{name}" for name in ATTENTION)
HUNYUAN_OTHERS: Others = {
    **{f"double_blocks.*.img_attn_{part}": name for part, name in zip("qkv", QKV, strict=True)},
    **{f"double_blocks.*.txt_attn_{part}": name for part, name in zip("qkv", ADDED_QKV, strict=True)},
    **{f"single_blocks.*.linear1_{part}": name for part, name in zip("qkv", SINGLE_QKV, strict=True)},
    "single_blocks.*.linear1_qkv": SINGLE_QKV,
    "single_blocks.*.linear1_mlp": f"{SINGLE}.proj_mlp",
    "single_blocks.*.linear2.fc": f"{SINGLE}.proj_out",
    "txt_in.t_embedder.linear_1": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.linear_2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "double_blocks.*.img_mlp.fc0": f"{BLOCK}.ff.net.0.proj",
    "double_blocks.*.txt_mlp.fc0": f"{BLOCK}.ff_context.net.0.proj",
    "txt_in.individual_token_refiner.blocks.*.mlp.fc0": f"{REFINER}.ff.net.0.proj",
}


@pytest.mark.parametrize("shapes", [TENCENT, in_host(TENCENT)], ids=["file", "host"])
def test_hunyuan_video(shapes: Shapes) -> None:
    theirs = weights(
        checkpoints.convert_hunyuan_video_transformer_to_diffusers(checkpoint(numbered(TENCENT)))
    )
    # Names of the other layout are known too: the host's for a file, and the file's for the host.
    other = {path: name for path, name in zip(in_host(TENCENT), TENCENT, strict=True) if path != name}
    if shapes is not TENCENT:
        other = {name: path for path, name in other.items()}
    numbers = numbered(shapes)
    layout = {name: numbers[path] for name, path in other.items()}
    assert layout.keys() <= hunyuan_video.aliases(shapes).keys()
    check(hunyuan_video, shapes, theirs, HUNYUAN_OTHERS, layout)


def test_hunyuan_video_1_5() -> None:
    theirs = model(
        diffusers.HunyuanVideo15Transformer3DModel,
        in_channels=3,
        out_channels=1,
        num_attention_heads=1,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=2,
        mlp_ratio=4,
        patch_size=2,
        text_embed_dim=3,
        text_embed_2_dim=3,
        image_embed_dim=5,
        rope_axes_dim=(2, 2, 4),
        use_meanflow=True,
    )
    shapes: Shapes = {
        **hunyuan_blocks(8, conv=(3, 1, 2, 2)),
        **times(8, "time_in", "time_r_in"),
        **byt5(8),
        "vision_in.proj.0": (5,),
        "vision_in.proj.1": (5, 5),
        "vision_in.proj.3": (8, 5),
        "vision_in.proj.4": (8,),
        "cond_type_embedding": (3, 8),
    }
    check_names(hunyuan_video, shapes, theirs)


@pytest.mark.parametrize("refiner", [False, True])
def test_hunyuan_image(refiner: bool) -> None:
    patch = (1, 1, 1) if refiner else (2, 2)
    theirs = model(
        diffusers.HunyuanImageTransformer2DModel,
        in_channels=3,
        out_channels=1,
        num_attention_heads=1,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        mlp_ratio=4,
        patch_size=patch,
        text_embed_dim=3,
        text_embed_2_dim=None if refiner else 3,
        rope_axes_dim=(2, 2, 4) if refiner else (4, 4),
        guidance_embeds=True,
        use_meanflow=not refiner,
    )
    shapes: Shapes = {
        **hunyuan_blocks(8, conv=(3, *patch), singles=2),
        **times(8, "time_in", "guidance_in"),
        **({} if refiner else {**times(8, "time_r_in"), **byt5(8)}),
    }
    check_names(hunyuan_video, shapes, theirs)


def hunyuan_blocks(width: int, conv: tuple[int, ...], singles: int = 0) -> Shapes:
    """The layers that the later models of the family share, in the host's layout."""
    refiner: Shapes = {
        "norm1": (width,),
        "norm2": (width,),
        "self_attn.qkv": (3 * width, width),
        "self_attn.proj": (width, width),
        "mlp.0": (4 * width, width),
        "mlp.2": (width, 4 * width),
        "adaLN_modulation.1": (2 * width, width),
    }
    return {
        "img_in.proj": (width, *conv),
        "txt_in.input_embedder": (width, 3),
        "txt_in.t_embedder.in_layer": (width, 256),
        "txt_in.t_embedder.out_layer": (width, width),
        "txt_in.c_embedder.in_layer": (width, 3),
        "txt_in.c_embedder.out_layer": (width, width),
        **blocks("txt_in.individual_token_refiner.blocks", 2, refiner),
        **flux_blocks(width, width, singles),
        "final_layer.linear": (torch.Size(conv[1:]).numel(), width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }


def flux_blocks(width: int, head: int, singles: int, *, gated: bool = False) -> Shapes:
    """Two double blocks and some single blocks of Flux. Their MLPs may be gated."""
    mlp: Shapes = {"0": (4 * width, width), "2": (width, 4 * width)}
    if gated:
        wide = (4 * width, width)
        mlp = {"gate_proj": wide, "up_proj": wide, "down_proj": (width, 4 * width)}
    stream: Shapes = {
        "mod.lin": (6 * width, width),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "attn.norm.query_norm": (head,),
        "attn.norm.key_norm": (head,),
        **{f"mlp.{path}": shape for path, shape in mlp.items()},
    }
    double = {f"{name}_{path}": shape for name in ("img", "txt") for path, shape in stream.items()}
    single: Shapes = {
        "modulation.lin": (3 * width, width),
        "linear1": ((11 if gated else 7) * width, width),
        "linear2": (width, 5 * width),
        "norm.query_norm": (head,),
        "norm.key_norm": (head,),
    }
    return {**blocks("double_blocks", 2, double), **blocks("single_blocks", singles, single)}


def times(width: int, *embedders: str) -> Shapes:
    """The layers that embed a time or a guidance."""
    layers = {"in_layer": (width, 256), "out_layer": (width, width)}
    return {f"{name}.{layer}": shape for name in embedders for layer, shape in layers.items()}


def byt5(width: int) -> Shapes:
    """The layers that take the output of a ByT5 encoder."""
    return {
        "byt5_in.layernorm": (3,),
        "byt5_in.fc1": (2048, 3),
        "byt5_in.fc2": (2048, 2048),
        "byt5_in.fc3": (width, 2048),
    }


def longcat(gated: bool) -> Shapes:
    """LongCat-Image, and, with gated MLPs, the layers that it shares with Ovis-Image."""
    return {
        "img_in": (8, 4),
        "txt_in": (8, 5),
        **times(8, "time_in"),
        **flux_blocks(8, 8, 2, gated=gated),
        "final_layer.linear": (4, 8),
        "final_layer.adaLN_modulation.1": (16, 8),
    }


FLUX_SIZES = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 1,
    "joint_attention_dim": 5,
    "axes_dims_rope": (2, 2, 4),
}


def test_longcat_image() -> None:
    theirs = model(diffusers.LongCatImageTransformer2DModel, **FLUX_SIZES, pooled_projection_dim=5)
    shapes = longcat(gated=False)
    found = check_names(flux, shapes, theirs)
    assert rows(found, "single_transformer_blocks.0.attn.to_v") == [("single_blocks.0.linear1", (16, 24))]
    assert rows(found, "norm_out.linear") == halves("final_layer.adaLN_modulation.1", 8)


def test_ovis_image() -> None:
    theirs = model(diffusers.OvisImageTransformer2DModel, **FLUX_SIZES, out_channels=4)
    shapes = {**longcat(gated=True), "txt_norm": (5,)}
    found = check_names(flux, shapes, theirs)
    assert rows(found, "transformer_blocks.1.ff.net.0.proj") == [
        ("double_blocks.1.img_mlp.up_proj", None),
        ("double_blocks.1.img_mlp.gate_proj", None),
    ]


@pytest.mark.parametrize("sigma", [False, True])
def test_pixart(sigma: bool) -> None:
    theirs = model(
        diffusers.PixArtTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=12,
        sample_size=8,
        caption_channels=5,
        use_additional_conditions=not sigma,
    )
    block: Shapes = {
        "scale_shift_table": (6, 12),
        "attn.qkv": (36, 12),
        "attn.proj": (12, 12),
        "cross_attn.q_linear": (12, 12),
        "cross_attn.kv_linear": (24, 12),
        "cross_attn.proj": (12, 12),
        "mlp.fc1": (48, 12),
        "mlp.fc2": (12, 48),
    }
    sizes = {f"{name}.mlp.0": (4, 256) for name in ("csize_embedder", "ar_embedder")}
    sizes |= {f"{name}.mlp.2": (4, 4) for name in ("csize_embedder", "ar_embedder")}
    shapes: Shapes = {
        "x_embedder.proj": (12, 4, 2, 2),
        "t_embedder.mlp.0": (12, 256),
        "t_embedder.mlp.2": (12, 12),
        "t_block.1": (72, 12),
        "y_embedder.y_proj.fc1": (12, 5),
        "y_embedder.y_proj.fc2": (12, 12),
        **({} if sigma else sizes),
        **blocks("blocks", 2, block),
        "final_layer.linear": (32, 12),
        "final_layer.scale_shift_table": (2, 12),
    }
    found = check_names(pixart, shapes, theirs)
    block_0 = "transformer_blocks.0"
    assert rows(found, f"{block_0}.attn1.to_k") == [("blocks.0.attn.qkv", (12, 24))]
    assert rows(found, f"{block_0}.attn2.to_k") == [("blocks.0.cross_attn.kv_linear", (0, 12))]
    assert rows(found, f"{block_0}.attn2.to_v") == [("blocks.0.cross_attn.kv_linear", (12, 24))]
    assert rows(found, "blocks.0.cross_attn.kv_linear.1") == rows(found, f"{block_0}.attn2.to_v")
    assert rows(found, f"{block_0}.attn2.to_kv") == [("blocks.0.cross_attn.kv_linear", None)]


def test_hunyuan_dit() -> None:
    theirs = model(
        diffusers.HunyuanDiT2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        mlp_ratio=4.0,
        cross_attention_dim=6,
        cross_attention_dim_t5=8,
        pooled_projection_dim=10,
        text_len=3,
        text_len_t5=3,
    )
    block: Shapes = {
        **{f"norm{n}": (16,) for n in (1, 2, 3)},
        "attn1.Wqkv": (48, 16),
        "attn1.out_proj": (16, 16),
        "attn2.q_proj": (16, 16),
        "attn2.kv_proj": (32, 6),
        "attn2.out_proj": (16, 16),
        **{f"attn{n}.{letter}_norm": (8,) for n in (1, 2) for letter in "qk"},
        "default_modulation.1": (16, 16),
        "mlp.fc1": (64, 16),
        "mlp.fc2": (16, 64),
    }
    skip: Shapes = {"skip_norm": (32,), "skip_linear": (16, 32)}
    shapes: Shapes = {
        "mlp_t5.0": (32, 8),
        "mlp_t5.2": (6, 32),
        "text_embedding_padding": (6, 6),
        "pooler.positional_embedding": (4, 8),
        **{f"pooler.{letter}_proj": (8, 8) for letter in "qkv"},
        "pooler.c_proj": (10, 8),
        "style_embedder": (1, 16),
        "x_embedder.proj": (16, 4, 2, 2),
        "t_embedder.mlp.0": (16, 256),
        "t_embedder.mlp.2": (16, 16),
        "extra_embedder.0": (64, 6 * 256 + 10 + 16),
        "extra_embedder.2": (16, 64),
        **blocks("blocks", 4, block),
        **{f"blocks.3.{path}": shape for path, shape in skip.items()},
        "final_layer.linear": (32, 16),
        "final_layer.adaLN_modulation.1": (32, 16),
    }
    # In diffusers the second and the third norm have each other's names, so both names have two meanings.
    rivalry = [f"blocks_{n}_norm{m}" for n in range(4) for m in (2, 3)]
    found = check_names(hunyuan_dit, shapes, theirs, rivalry)
    assert rows(found, "blocks.1.attn1.to_v") == [("blocks.1.attn1.Wqkv", (32, 48))]
    assert rows(found, "blocks.1.attn2.to_v") == [("blocks.1.attn2.kv_proj", (16, 32))]
    assert rows(found, "blocks.1.norm2") == [("blocks.1.norm3", None)]
    assert rows(found, "norm_out.linear") == halves("final_layer.adaLN_modulation.1", 16)


CASCADE_ATTENTION = {"attn.in_proj_weight": (6, 2), "attn.out_proj": (2, 2)}


@pytest.mark.parametrize("stage", "cb")
def test_stable_cascade(stage: str) -> None:
    """Query, key and value are one weight in files, and three weights in the host."""
    mapper = "clip_mapper" if stage == "b" else "clip_txt_pooled_mapper"
    shapes: Shapes = {
        **({} if stage == "b" else {"clip_txt_mapper": (2, 3), "clip_img_mapper": (8, 3)}),
        mapper: (8, 3),
        "embedding.1": (2, 4, 1, 1),
        **{
            f"{root}.{level}.{n}.{path}": shape
            for root in ("down_blocks", "up_blocks")
            for level in (0, 1)
            for n, block in enumerate(
                (
                    {"channelwise.0": (8, 2), "channelwise.4": (2, 8), "depthwise": (2, 1, 3, 3)},
                    {"mapper": (4, 3), "mapper_sca": (4, 3)},
                    {"kv_mapper.1": (2, 3), **{f"attention.{k}": v for k, v in CASCADE_ATTENTION.items()}},
                )
            )
            for path, shape in block.items()
        },
        "clf.1": (4, 2, 1, 1),
    }
    file = checkpoint(numbered(shapes))
    theirs = weights(checkpoints.convert_stable_cascade_unet_single_file_to_diffusers(file))
    qkv = ("to_q", "to_k", "to_v")
    others: Others = {}
    for layer in ("down_blocks.*.*.attention", "up_blocks.*.*.attention"):
        names = tuple(f"{layer}.{part}" for part in qkv)
        others |= {
            **{f"{layer}.attn.{part}": name for part, name in zip(qkv, names, strict=True)},
            **{f"{layer}.attn.in_proj.{n}": name for n, name in enumerate(names)},
        }
    check(stable_cascade, shapes, theirs, others)

    split = {path: shape for path, shape in shapes.items() if not path.endswith("in_proj_weight")}
    split |= {
        path.replace("in_proj_weight", part): (2, 2)
        for path in shapes
        if path.endswith("in_proj_weight")
        for part in qkv
    }
    in_host = check_names(stable_cascade, split, theirs)
    layer = "up_blocks.1.2.attention"
    for name in ("attn.in_proj_weight", "to_qkv"):
        assert rows(in_host, f"{layer}.{name}") == [(f"{layer}.attn.{part}", None) for part in qkv]
    for number, part in enumerate(qkv):
        assert rows(in_host, f"{layer}.attn.in_proj.{number}") == [(f"{layer}.attn.{part}", None)]
