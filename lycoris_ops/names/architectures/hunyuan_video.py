"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1 with its refiner.

Adapters have the names of diffusers or of Tencent's own code. Tencent's are `img_attn_qkv`, `mlp.fc1` and
`modulation.linear`, and in the later models also `img_attn_q` and `linear1_mlp`. Checkpoint files of the
first model can have Tencent's names too.

Source of the correspondence: diffusers (Apache-2.0), `diffusers/loaders/single_file_utils.py`,
`scripts/convert_hunyuan_video1_5_to_diffusers.py` and `scripts/convert_hunyuan_image_to_diffusers.py`.
"""

from __future__ import annotations

from .flux import DOUBLE, LIKE, LISTS, MLP, SINGLE
from .notation import EMBEDDER, Layout, Meaning, rows, same, split, swapped, under
from .record import Architecture, Family, Size

REFINER = {
    **same("norm1", "norm2"),
    **split("self_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.to_out.0": "self_attn.proj",
    "ff.net.0.proj": "mlp.0",
    "ff.net.2": "mlp.2",
    "norm_out.linear": "adaLN_modulation.1",
}
CONTEXT = {
    "proj_in": "input_embedder",
    **under("time_text_embed.timestep_embedder", "t_embedder", EMBEDDER),
    **under("time_text_embed.text_embedder", "c_embedder", EMBEDDER),
    **under("token_refiner.refiner_blocks.*", "individual_token_refiner.blocks.*", REFINER),
}
COMMON = {
    "x_embedder.proj": "img_in.proj",
    **under("context_embedder", "txt_in", CONTEXT),
    "context_embedder_2.norm": "byt5_in.layernorm",
    "context_embedder_2.linear_1": "byt5_in.fc1",
    "context_embedder_2.linear_2": "byt5_in.fc2",
    "context_embedder_2.linear_3": "byt5_in.fc3",
    "image_embedder.norm_in": "vision_in.proj.0",
    "image_embedder.linear_1": "vision_in.proj.1",
    "image_embedder.linear_2": "vision_in.proj.3",
    "image_embedder.norm_out": "vision_in.proj.4",
    "cond_type_embed": "cond_type_embedding",
    **under("transformer_blocks.*", "double_blocks.*", {**DOUBLE, **MLP}),
    **under("single_transformer_blocks.*", "single_blocks.*", SINGLE),
    # Shift before scale in the original code, scale before shift in diffusers.
    "norm_out.linear": swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}


def _embedders(theirs: str) -> dict[str, Meaning]:
    """The embedders of one model. diffusers' classes have them in modules of different names."""
    return {
        **under(f"{theirs}.timestep_embedder", "time_in", EMBEDDER),
        **under(f"{theirs}.timestep_embedder_r", "time_r_in", EMBEDDER),
        **under(f"{theirs}.guidance_embedder", "guidance_in", EMBEDDER),
        **under(f"{theirs}.text_embedder", "vector_in", EMBEDDER),
    }


HUNYUAN_VIDEO = {**COMMON, **_embedders("time_text_embed")}
HUNYUAN_VIDEO_15 = {**COMMON, **_embedders("time_embed")}
HUNYUAN_IMAGE = {**COMMON, **_embedders("time_guidance_embed")}

TENCENT_DOUBLE = {
    **split("img_attn.qkv", "img_attn_q", "img_attn_k", "img_attn_v"),
    **split("txt_attn.qkv", "txt_attn_q", "txt_attn_k", "txt_attn_v"),
}
TENCENT_SINGLE = {
    **split("linear1", "linear1_q", "linear1_k", "linear1_v", "linear1_mlp", like="linear2"),
    "linear1_qkv": rows("linear1", 0, 3, of=4, like="linear2"),
}
TENCENT_PARTS = {
    **under("double_blocks.*", "double_blocks.*", TENCENT_DOUBLE),
    **under("single_blocks.*", "single_blocks.*", TENCENT_SINGLE),
}
"""Layers that are separate in the code of the later models, and parts of one layer in the host."""


def _stream(name: str) -> dict[str, str]:
    return {
        f"double_blocks.*.{name}_mod.linear": f"double_blocks.*.{name}_mod.lin",
        f"double_blocks.*.{name}_attn_qkv": f"double_blocks.*.{name}_attn.qkv",
        f"double_blocks.*.{name}_attn_proj": f"double_blocks.*.{name}_attn.proj",
        f"double_blocks.*.{name}_attn_q_norm": f"double_blocks.*.{name}_attn.norm.query_norm",
        f"double_blocks.*.{name}_attn_k_norm": f"double_blocks.*.{name}_attn.norm.key_norm",
        f"double_blocks.*.{name}_mlp.fc1": f"double_blocks.*.{name}_mlp.0",
        f"double_blocks.*.{name}_mlp.fc2": f"double_blocks.*.{name}_mlp.2",
    }


REFINER_BLOCK = "txt_in.individual_token_refiner.blocks.*"
TENCENT = {
    "time_in.mlp.0": "time_in.in_layer",
    "time_in.mlp.2": "time_in.out_layer",
    "time_r_in.mlp.0": "time_r_in.in_layer",
    "time_r_in.mlp.2": "time_r_in.out_layer",
    "guidance_in.mlp.0": "guidance_in.in_layer",
    "guidance_in.mlp.2": "guidance_in.out_layer",
    "txt_in.t_embedder.mlp.0": "txt_in.t_embedder.in_layer",
    "txt_in.t_embedder.mlp.2": "txt_in.t_embedder.out_layer",
    "txt_in.c_embedder.linear_1": "txt_in.c_embedder.in_layer",
    "txt_in.c_embedder.linear_2": "txt_in.c_embedder.out_layer",
    f"{REFINER_BLOCK}.self_attn_qkv": f"{REFINER_BLOCK}.self_attn.qkv",
    f"{REFINER_BLOCK}.self_attn_proj": f"{REFINER_BLOCK}.self_attn.proj",
    f"{REFINER_BLOCK}.mlp.fc1": f"{REFINER_BLOCK}.mlp.0",
    f"{REFINER_BLOCK}.mlp.fc2": f"{REFINER_BLOCK}.mlp.2",
    **_stream("img"),
    **_stream("txt"),
    "single_blocks.*.modulation.linear": "single_blocks.*.modulation.lin",
    "single_blocks.*.q_norm": "single_blocks.*.norm.query_norm",
    "single_blocks.*.k_norm": "single_blocks.*.norm.key_norm",
    "single_blocks.*.linear2.fc": "single_blocks.*.linear2",
}
ONE_TRAINER = {
    **under("txt_in.t_embedder", "txt_in.t_embedder", EMBEDDER),
    f"{REFINER_BLOCK}.mlp.fc0": f"{REFINER_BLOCK}.mlp.0",
    "double_blocks.*.img_mlp.fc0": "double_blocks.*.img_mlp.0",
    "double_blocks.*.txt_mlp.fc0": "double_blocks.*.txt_mlp.0",
}
"""Names in OneTrainer's original layout that are not Tencent's."""

MARK = "txt_in.individual_token_refiner.blocks.*.norm1"
"""A layer that the whole family has."""
SINGLE_MARK = "single_blocks.*.linear1"
OTHERS = {**TENCENT_PARTS, **ONE_TRAINER}

ARCHITECTURE = Architecture(
    layouts=(
        Layout((MARK, SINGLE_MARK, "vector_in.in_layer"), HUNYUAN_VIDEO, OTHERS, TENCENT),
        Layout((MARK, SINGLE_MARK), HUNYUAN_IMAGE, OTHERS, TENCENT),
        Layout((MARK,), HUNYUAN_VIDEO_15, OTHERS, TENCENT),
    ),
    tokens={
        "img_in": "places",
        **dict.fromkeys((f"double_blocks.*.img_{sublayer}" for sublayer in ("attn", "mlp")), "places"),
        **dict.fromkeys((f"single_blocks.*.linear{n}" for n in "12"), "text, places"),
        "final_layer.linear": "places",
    },
    families=(
        Family(
            "HunyuanVideo",
            said=r"hunyuan-?_?video",
            mark=r"txt_in_individual|context_embedder_token_refiner",
            like=LIKE,
            sizes=(Size({"double": 20, "single": 40}, "HUNYUAN"),),
            lists=LISTS,
        ),
    ),
)
