"""AuraFlow under the names of diffusers.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`.
"""

from __future__ import annotations

from .notation import SEQUENCE, Layout, same, swapped, under
from .record import Architecture, Family, Size

JOINT = {
    "norm1.linear": "modX.1",
    "norm1_context.linear": "modC.1",
    "attn.to_q": "attn.w2q",
    "attn.to_k": "attn.w2k",
    "attn.to_v": "attn.w2v",
    "attn.to_out.0": "attn.w2o",
    "attn.add_q_proj": "attn.w1q",
    "attn.add_k_proj": "attn.w1k",
    "attn.add_v_proj": "attn.w1v",
    "attn.to_add_out": "attn.w1o",
    "ff.linear_1": "mlpX.c_fc1",
    "ff.linear_2": "mlpX.c_fc2",
    "ff.out_projection": "mlpX.c_proj",
    "ff_context.linear_1": "mlpC.c_fc1",
    "ff_context.linear_2": "mlpC.c_fc2",
    "ff_context.out_projection": "mlpC.c_proj",
}
SINGLE = {
    "norm1.linear": "modCX.1",
    "attn.to_q": "attn.w1q",
    "attn.to_k": "attn.w1k",
    "attn.to_v": "attn.w1v",
    "attn.to_out.0": "attn.w1o",
    "ff.linear_1": "mlp.c_fc1",
    "ff.linear_2": "mlp.c_fc2",
    "ff.out_projection": "mlp.c_proj",
}
DIFFUSERS = {
    **same("register_tokens"),
    "pos_embed.pos_embed": "positional_encoding",
    "pos_embed.proj": "init_x_linear",
    "context_embedder": "cond_seq_linear",
    **under("time_step_proj", "t_embedder.mlp", SEQUENCE),
    **under("joint_transformer_blocks.*", "double_layers.*", JOINT),
    **under("single_transformer_blocks.*", "single_layers.*", SINGLE),
    # Shift before scale in the original code, scale before shift in diffusers.
    "norm_out.linear": swapped("modF.1"),
    "proj_out": "final_linear",
}

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("cond_seq_linear", "double_layers.*.attn.w1q"), diffusers=DIFFUSERS),),
    aside=dict.fromkeys(
        ("double_layers.*.modX", "double_layers.*.modC", "single_layers.*.modCX"), "modulation"
    ),
    tokens={
        "init_x_linear": "places",
        **dict.fromkeys((f"double_layers.*.attn.w2{letter}" for letter in "qkvo"), "places"),
        "double_layers.*.mlpX": "places",
        **dict.fromkeys((f"single_layers.*.{sublayer}" for sublayer in ("attn", "mlp")), "text, places"),
        "final_linear": "places",
    },
    families=(
        Family(
            "AuraFlow",
            said=r"aura_?-?flow",
            mark=r"((double|single)_layers|joint_transformer_blocks)_\d",
            like=r"single_transformer_blocks_\d",
            unlike=r"(double|transformer)_blocks",
            sizes=(Size({"single": 32}),),
            lists={"single": r"single_transformer_blocks_(\d+)_"},
        ),
    ),
)
