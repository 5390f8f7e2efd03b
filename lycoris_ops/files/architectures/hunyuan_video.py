"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1 with its refiner.

Names are those of diffusers and of Tencent's own code (`img_attn_qkv`, `mlp.fc1`,
`modulation.linear`; of the later models `img_attn_q` and `linear1_mlp`), in which files of
the first model can be, too.

Source of the correspondence: diffusers (Apache-2.0), `diffusers/loaders/single_file_utils.py`,
`scripts/convert_hunyuan_video1_5_to_diffusers.py` and `scripts/convert_hunyuan_image_to_diffusers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .tables import find, head, rest, split, swapped, under

DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    **split("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **split("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.to_qkv": "img_attn.qkv",
    "attn.to_added_qkv": "txt_attn.qkv",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
SINGLE = {
    "norm.linear": "modulation.lin",
    **split("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", like="linear2"),
    "attn.to_qkv": head("linear1", 3, like="linear2"),
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
REFINER = {
    "norm1": "norm1",
    "norm2": "norm2",
    **split("self_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.to_qkv": "self_attn.qkv",
    "attn.to_out.0": "self_attn.proj",
    "ff.net.0.proj": "mlp.0",
    "ff.net.2": "mlp.2",
    "norm_out.linear": "adaLN_modulation.1",
}
CONTEXT = {
    "proj_in": "input_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.out_layer",
    "time_text_embed.text_embedder.linear_1": "c_embedder.in_layer",
    "time_text_embed.text_embedder.linear_2": "c_embedder.out_layer",
    **under("token_refiner.refiner_blocks.*", "individual_token_refiner.blocks.*", REFINER),
}
TIMES = {
    "timestep_embedder.linear_1": "time_in.in_layer",
    "timestep_embedder.linear_2": "time_in.out_layer",
    "timestep_embedder_r.linear_1": "time_r_in.in_layer",
    "timestep_embedder_r.linear_2": "time_r_in.out_layer",
    "guidance_embedder.linear_1": "guidance_in.in_layer",
    "guidance_embedder.linear_2": "guidance_in.out_layer",
}
EMBEDDERS = ("time_text_embed", "time_embed", "time_guidance_embed")
"""Of HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1."""
NAMES = {
    "x_embedder.proj": "img_in.proj",
    **{f"{embedder}.{name}": path for embedder in EMBEDDERS for name, path in TIMES.items()},
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
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
    **under("transformer_blocks.*", "double_blocks.*", DOUBLE),
    **under("single_transformer_blocks.*", "single_blocks.*", SINGLE),
    "norm_out.linear": swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}

TENCENT_PARTS = {
    **under(
        "double_blocks.*",
        "double_blocks.*",
        {
            **split("img_attn.qkv", "img_attn_q", "img_attn_k", "img_attn_v"),
            **split("txt_attn.qkv", "txt_attn_q", "txt_attn_k", "txt_attn_v"),
        },
    ),
    **under(
        "single_blocks.*",
        "single_blocks.*",
        {
            **split("linear1", "linear1_q", "linear1_k", "linear1_v", "linear1_mlp", like="linear2"),
            "linear1_qkv": head("linear1", 3, like="linear2"),
            "linear1_mlp": rest("linear1", 3, like="linear2"),
        },
    ),
}
"""Layers that the code of the later models has in parts."""


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
    "txt_in.t_embedder.linear_1": "txt_in.t_embedder.in_layer",
    "txt_in.t_embedder.linear_2": "txt_in.t_embedder.out_layer",
    f"{REFINER_BLOCK}.mlp.fc0": f"{REFINER_BLOCK}.mlp.0",
    "double_blocks.*.img_mlp.fc0": "double_blocks.*.img_mlp.0",
    "double_blocks.*.txt_mlp.fc0": "double_blocks.*.txt_mlp.0",
}
"""Where its original layout is not Tencent's."""

MARK = "txt_in.individual_token_refiner.blocks.0.norm1"


def aliases(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    if MARK not in shapes:
        return {}
    return find({**NAMES, **TENCENT_PARTS, **ONE_TRAINER}, shapes, TENCENT)
