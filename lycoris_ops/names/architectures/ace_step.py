"""ACE-Step 1.5: its decoder under the names of diffusers and of the official adapter files.

Official adapters are trained on the decoder alone, and their names lack `decoder.`. diffusers' class is the
decoder alone. ACE-Step 1 needs no table: its layers have one name everywhere.

Source of the correspondence: diffusers (Apache-2.0), `scripts/convert_ace_step_to_diffusers.py`, and
`_convert_non_diffusers_ace_step_lora_to_diffusers` in `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

from .notation import Layout, under
from .record import Architecture

ATTENTION = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "o_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
DIFFUSERS = {
    "proj_in_conv": "decoder.proj_in.1",
    "proj_out_conv": "decoder.proj_out.1",
    **under("layers.*.self_attn", "decoder.layers.*.self_attn", ATTENTION),
    **under("layers.*.cross_attn", "decoder.layers.*.cross_attn", ATTENTION),
    "**": "decoder.**",
}

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("decoder.condition_embedder", "decoder.layers.*.self_attn.q_proj"),
            diffusers=DIFFUSERS,
            others={"**": "decoder.**"},
        ),
    ),
)
