"""SD3 and SD3.5 (MMDiT) under the names of diffusers.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...maths.shapes import Shape
from .notation import SEQUENCE, Layout, Table, same, split, swapped, under
from .record import Architecture, Family, Size

BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    **split("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **split("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    # Some blocks of SD3.5 have a second attention on the image alone.
    **split("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
DIFFUSERS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    **under("time_text_embed.timestep_embedder", "t_embedder.mlp", SEQUENCE),
    **under("time_text_embed.text_embedder", "y_embedder.mlp", SEQUENCE),
    **same("context_embedder"),
    **under("transformer_blocks.*", "joint_blocks.*", BLOCK),
    # Shift before scale in the original code, scale before shift in diffusers.
    "norm_out.linear": swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}
MODULATION, OUTPUT = ".context_block.adaLN_modulation.1", ".context_block.attn.proj"


def table(shapes: Mapping[str, Shape]) -> Table:
    """The table for one model.

    The block where the text stream ends has no text output. Its text modulation has only shift and scale,
    which diffusers exchanges.
    """
    last = {
        path.replace("joint_blocks", "transformer_blocks").replace(
            MODULATION, ".norm1_context.linear"
        ): swapped(path)
        for path in shapes
        if path.endswith(MODULATION) and path.replace(MODULATION, OUTPUT) not in shapes
    }
    return {**DIFFUSERS, **last}


ARCHITECTURE = Architecture(
    order=2,
    layouts=(
        Layout(
            marks=("joint_blocks.*.context_block.attn.qkv",),
            diffusers=table,
            encoders=("clip_l", "clip_g", "t5xxl"),
        ),
    ),
    tokens={
        "x_embedder": "places",
        "joint_blocks.*.x_block.adaLN_modulation": "text",
        "joint_blocks.*.x_block": "places",
        "final_layer.linear": "places",
    },
    families=(
        Family(
            "SD3",
            said=r"stable-diffusion-3|^sd3",
            mark=r"joint_blocks_\d",
            like=r"transformer_blocks_\d+_(ff_context|norm1_context)",
            unlike=r"single_",
            sizes=(Size({"joint": 24}, "SD3"), Size({"joint": 38}, "SD3.5-LARGE")),
        ),
    ),
)
