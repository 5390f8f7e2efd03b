"""Flux and its relatives: Flux 2, Chroma (and Radiance), LongCat-Image, Ovis-Image.

Adapters have the names of diffusers, or those of XLabs and USO (`processor.qkv_lora1`), or name parts of a
single block's first layer (`linear1_qkv`).

Source of the correspondence: diffusers (Apache-2.0). It converts original checkpoints in
`diffusers/loaders/single_file_utils.py` and `scripts/convert_ovis_image_to_diffusers.py`, and adapters in
`diffusers/loaders/lora_conversion_utils.py`. LongCat-Image is published with diffusers' names, which are in
`diffusers/models/transformers/transformer_longcat_image.py`.
"""

from __future__ import annotations

from .notation import EMBEDDER, Layout, fused, rows, same, split, swapped, under
from .record import Architecture, Family, Size, Vector

IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
PROJECTIONS = (*IMAGE, *TEXT)
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    **split("img_attn.qkv", *IMAGE),
    **split("txt_attn.qkv", *TEXT),
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
}
MLP = {
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
# The gate and the value are one layer in diffusers, with the value first.
GATED_MLP = {
    "ff.net.0.proj": fused("img_mlp.up_proj", "img_mlp.gate_proj"),
    "ff.net.2": "img_mlp.down_proj",
    "ff_context.net.0.proj": fused("txt_mlp.up_proj", "txt_mlp.gate_proj"),
    "ff_context.net.2": "txt_mlp.down_proj",
}
FLUX_2_MLP = {
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE_NORM = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}
# `linear1` is query, key, value and the feed-forward's input. Each of the first three has the model's width,
# which is also the number of rows of `linear2`; the fourth has the rest.
SINGLE = {
    **SINGLE_NORM,
    "norm.linear": "modulation.lin",
    **split("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", like="linear2"),
    "proj_out": "linear2",
}
FLUX_2_SINGLE = {
    **SINGLE_NORM,
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
}


COMMON = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    **under("transformer_blocks.*", "double_blocks.*", DOUBLE),
    # Shift before scale in the original code, scale before shift in diffusers.
    "norm_out.linear": swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}
FLUX_BLOCKS = {
    **under("transformer_blocks.*", "double_blocks.*", MLP),
    **under("single_transformer_blocks.*", "single_blocks.*", SINGLE),
}
TIME_TEXT = {
    **under("time_text_embed.timestep_embedder", "time_in", EMBEDDER),
    **under("time_text_embed.text_embedder", "vector_in", EMBEDDER),
    **under("time_text_embed.guidance_embedder", "guidance_in", EMBEDDER),
}
FLUX_1 = {**COMMON, **TIME_TEXT, **FLUX_BLOCKS}
LONGCAT = {
    **COMMON,
    **under("time_embed.timestep_embedder", "time_in", EMBEDDER),
    **FLUX_BLOCKS,
}
CHROMA = {
    **COMMON,
    **same("distilled_guidance_layer.in_proj", "distilled_guidance_layer.out_proj"),
    **same("distilled_guidance_layer.norms.*"),
    **under("distilled_guidance_layer.layers.*", "distilled_guidance_layer.layers.*", EMBEDDER),
    **FLUX_BLOCKS,
}
OVIS = {
    **COMMON,
    **under("timestep_embedder", "time_in", EMBEDDER),
    "context_embedder_norm": "txt_norm",
    **under("transformer_blocks.*", "double_blocks.*", GATED_MLP),
    **under("single_transformer_blocks.*", "single_blocks.*", SINGLE),
}
FLUX_2 = {
    **COMMON,
    **under("time_guidance_embed.timestep_embedder", "time_in", EMBEDDER),
    **under("time_guidance_embed.guidance_embedder", "guidance_in", EMBEDDER),
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    **under("transformer_blocks.*", "double_blocks.*", FLUX_2_MLP),
    **under("single_transformer_blocks.*", "single_blocks.*", FLUX_2_SINGLE),
}
# If a file has LoKr of fused projections, diffusers fuses all projections of the model
# (`_maybe_fuse_qkv_projections_for_lokr` in `utils/peft_utils.py`), because a part of a Kronecker product
# need not be one itself.
FLUX_2_FUSED = {
    "attn.to_qkv": "img_attn.qkv",
    "attn.to_added_qkv": "txt_attn.qkv",
}
FLUX_2_LOKR = {
    **{name: meaning for name, meaning in FLUX_2.items() if not name.endswith(PROJECTIONS)},
    **under("transformer_blocks.*", "double_blocks.*", FLUX_2_FUSED),
}

# 1 is the image stream, 2 the text stream.
XLABS_DOUBLE = {
    "processor.qkv_lora1": "img_attn.qkv",
    "processor.qkv_lora2": "txt_attn.qkv",
    "processor.proj_lora1": "img_attn.proj",
    "processor.proj_lora2": "txt_attn.proj",
}
XLABS_SINGLE = {
    "processor.qkv_lora": rows("linear1", 0, 3, of=4, like="linear2"),
    "processor.proj_lora": "linear2",
    "linear1_qkv": rows("linear1", 0, 3, of=4, like="linear2"),
    "linear1_mlp": rows("linear1", 3, 4, of=4, like="linear2"),
}
OTHERS = {
    "img_in.proj": "img_in",
    "transformer_blocks.*.attn.add_qkv_proj": "double_blocks.*.txt_attn.qkv",
    **under("double_blocks.*", "double_blocks.*", XLABS_DOUBLE),
    **under("single_blocks.*", "single_blocks.*", XLABS_SINGLE),
}
OVIS_OTHERS = {**OTHERS, "semantic_txt_norm": "txt_norm", "semantic_txt_in": "txt_in"}
# Some exports cut `transformer_blocks` short.
FLUX_2_OTHERS = {**OTHERS, **under("sformer_blocks.*", "double_blocks.*", {**DOUBLE, **FLUX_2_MLP})}

NORMS = (
    "double_blocks.*.img_attn.norm.query_norm",
    "double_blocks.*.img_attn.norm.key_norm",
    "double_blocks.*.txt_attn.norm.query_norm",
    "double_blocks.*.txt_attn.norm.key_norm",
    "single_blocks.*.norm.query_norm",
    "single_blocks.*.norm.key_norm",
    "distilled_guidance_layer.norms.*",
    "nerf_blocks.*.norm",
    "nerf_final_layer.norm",
    "nerf_final_layer_conv.norm",
    "txt_norm",
)
SPELLINGS = {f"{norm}.scale": norm for norm in NORMS}
"""The original files call a norm's weight `scale`; the host calls it `weight`."""

QKV = "double_blocks.*.img_attn.qkv"

PARTS = r"double_blocks_\d+_(img|txt)_|single_(transformer_)?blocks_\d"
LIKE = rf"{PARTS}|transformer_blocks_\d+_(ff_context|norm1_context)"
LISTS = {
    "double": r"(?:double_blocks|transformer_blocks)_(\d+)_",
    "single": r"single_(?:transformer_)?blocks_(\d+)_",
}
BLOCKS = {"double": 19, "single": 38}

ARCHITECTURE = Architecture(
    order=1,
    layouts=(
        Layout(
            ("img_in", QKV, "double_stream_modulation_img.lin"), FLUX_2, FLUX_2_OTHERS, SPELLINGS, FLUX_2_LOKR
        ),
        Layout(("img_in", QKV, "distilled_guidance_layer.in_proj"), CHROMA, OTHERS, SPELLINGS),
        # Radiance, which has no class in diffusers.
        Layout(("img_in_patch", QKV, "distilled_guidance_layer.in_proj"), CHROMA, OTHERS, SPELLINGS),
        Layout(("img_in", QKV, "double_blocks.*.img_mlp.gate_proj"), OVIS, OVIS_OTHERS, SPELLINGS),
        Layout(("img_in", QKV, "vector_in.in_layer"), FLUX_1, OTHERS, SPELLINGS),
        # LongCat-Image: a Flux without CLIP's pooled text.
        Layout(("img_in", QKV), LONGCAT, {**OTHERS, **TIME_TEXT}, SPELLINGS),
    ),
    tokens={
        "img_in": "places",
        **dict.fromkeys((f"double_blocks.*.img_{sublayer}" for sublayer in ("attn", "mlp")), "places"),
        **dict.fromkeys((f"single_blocks.*.linear{n}" for n in "12"), "text, places"),
        "final_layer.linear": "places",
    },
    # Chroma's: it makes the modulation of each block from the time and the block's number.
    aside={"distilled_guidance_layer": "the network that makes the modulation"},
    families=(
        Family("Flux 1", said=r"flux", like=LIKE, sizes=(Size(BLOCKS, "FLUX"),), lists=LISTS),
        Family(
            "Flux 2",
            said=r"flux-?\.?2",
            mark=r"(double|single)_stream_modulation|single_transformer_blocks_\d+_attn_to_qkv_mlp",
            like=PARTS,
            sizes=(Size({"double": 8, "single": 48}),),
            lists=LISTS,
        ),
        Family(
            "Chroma",
            said=r"chroma",
            mark=r"distilled_guidance_layer",
            like=LIKE,
            sizes=(Size(BLOCKS),),
            lists=LISTS,
        ),
    ),
    vectors=(
        Vector(
            "Flux",
            (
                ("clip_l",),
                ("t5xxl",),
                ("img_in", "txt_in", "time_in", "vector_in", "guidance_in"),
                *((f"double.{n}",) for n in range(BLOCKS["double"])),
                *((f"single.{n}",) for n in range(BLOCKS["single"])),
                ("final_layer",),
            ),
            BLOCKS,
        ),
    ),
)
