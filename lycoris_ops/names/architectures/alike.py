"""Models whose layers have one name in the host, in published files and in diffusers.

Source: the classes in diffusers (Apache-2.0), `models/transformers/transformer_qwenimage.py`,
`transformer_hidream_image.py`, `transformer_ernie_image.py`, `transformer_kandinsky.py` and
`transformer_joyimage.py`.
"""

from __future__ import annotations

from .notation import Layout, names_of, same

MARKS = (
    # Qwen-Image.
    ("txt_norm", "transformer_blocks.*.img_mod.1", "transformer_blocks.*.attn.add_q_proj"),
    # HiDream I1.
    ("double_stream_blocks.*.block.attn1.to_q_t", "single_stream_blocks.*.block.attn1.to_q"),
    # ERNIE-Image.
    ("layers.*.adaLN_sa_ln", "final_linear"),
    # Kandinsky 5.
    ("visual_embeddings.in_layer", "visual_transformer_blocks.*.self_attention.to_query"),
    # JoyImage.
    ("condition_embedder.time_proj", "double_blocks.*.attn.img_attn_qkv"),
)

diffusers, aliases = names_of(*(Layout(marks, same("**")) for marks in MARKS))

# Of HiDream I1: one for each layer of a text encoder whose output the model takes.
aside = {"caption_projection.*": "embedders of captions"}
