"""HunyuanDiT under the names of diffusers.

diffusers exchanges the names of a block's second and third norm. A file does not say whose names it uses for
these norms: they are read as the model's own.

Source of the correspondence: diffusers (Apache-2.0), `scripts/convert_hunyuandit_to_diffusers.py`.
"""

from __future__ import annotations

from .notation import SEQUENCE, Layout, same, split, swapped, under
from .record import Architecture

BLOCK = {
    "norm1.norm": "norm1",
    "norm1.linear": "default_modulation.1",
    "norm2": "norm3",
    "norm3": "norm2",
    **split("attn1.Wqkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn1.norm_q": "attn1.q_norm",
    "attn1.norm_k": "attn1.k_norm",
    "attn1.to_out.0": "attn1.out_proj",
    "attn2.to_q": "attn2.q_proj",
    **split("attn2.kv_proj", "attn2.to_k", "attn2.to_v"),
    "attn2.norm_q": "attn2.q_norm",
    "attn2.norm_k": "attn2.k_norm",
    "attn2.to_out.0": "attn2.out_proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    **same("skip_norm", "skip_linear"),
}
DIFFUSERS = {
    "pos_embed.proj": "x_embedder.proj",
    **same("text_embedding_padding"),
    **under("text_embedder", "mlp_t5", SEQUENCE),
    **under("time_extra_emb.timestep_embedder", "t_embedder.mlp", SEQUENCE),
    **under("time_extra_emb.extra_embedder", "extra_embedder", SEQUENCE),
    # Only version 1.0 has it.
    "time_extra_emb.style_embedder": "style_embedder",
    "time_extra_emb.pooler.positional_embedding": "pooler.positional_embedding",
    "time_extra_emb.pooler.k_proj": "pooler.k_proj",
    "time_extra_emb.pooler.q_proj": "pooler.q_proj",
    "time_extra_emb.pooler.v_proj": "pooler.v_proj",
    "time_extra_emb.pooler.c_proj": "pooler.c_proj",
    **under("blocks.*", "blocks.*", BLOCK),
    # Shift before scale in the original code, scale before shift in diffusers.
    "norm_out.linear": swapped("final_layer.adaLN_modulation.1"),
    "proj_out": "final_layer.linear",
}

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("mlp_t5.0", "blocks.*.attn1.Wqkv"), diffusers=DIFFUSERS),),
    tokens={
        "x_embedder": "places",
        # The host does not give this attention the options of the pass.
        "blocks.*.attn2.kv_proj": "for places, in turn",
        "blocks.*.default_modulation": "text",
        "blocks.*": "places",
        "final_layer.linear": "places",
    },
)
