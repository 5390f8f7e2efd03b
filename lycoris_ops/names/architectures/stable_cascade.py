"""Stable Cascade, stages C and B, under the names of diffusers and of the original code.

The original code and its files have query, key and value in one parameter, `in_proj_weight`;
OneTrainer's original layout numbers its thirds (`in_proj.0`). In the host the three are separate.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`.
"""

from __future__ import annotations

from .notation import Layout, Table, fused, same, split, under
from .record import Architecture

QUERY_KEY_VALUE = ("attn.to_q", "attn.to_k", "attn.to_v")
THIRDS = ("attn.in_proj.0", "attn.in_proj.1", "attn.in_proj.2")
OUTPUT = {"to_out.0": "attn.out_proj"}
# In the host.
IN_PARTS = {"to_q": "attn.to_q", "to_k": "attn.to_k", "to_v": "attn.to_v", **OUTPUT}
IN_PARTS_OTHERS = {
    **dict(zip(THIRDS, QUERY_KEY_VALUE, strict=True)),
    "attn.in_proj_weight": fused(*QUERY_KEY_VALUE),
}
# In files.
IN_ONE = {**split("attn.in_proj_weight", "to_q", "to_k", "to_v"), **OUTPUT}
IN_ONE_OTHERS = {
    **split("attn.in_proj_weight", *QUERY_KEY_VALUE),
    **split("attn.in_proj_weight", *THIRDS),
}


def _attentions(table: Table) -> Table:
    return {
        name: meaning
        for attention in ("down_blocks.*.*.attention", "up_blocks.*.*.attention")
        for name, meaning in under(attention, attention, table).items()
    }


# One table for both stages. In diffusers the text embedding of stage B is named as in stage C; all
# other layers have the same name everywhere.
COMMON = {"clip_txt_pooled_mapper": "clip_mapper", **same("**")}
MARKS = ("clf.1", "embedding.1")

# Files first, then the host: MARKS alone fit both.
ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=(*MARKS, "up_blocks.*.*.attention.attn.in_proj_weight"),
            diffusers={**COMMON, **_attentions(IN_ONE)},
            others=_attentions(IN_ONE_OTHERS),
            component="prior",
        ),
        Layout(
            marks=MARKS,
            diffusers={**COMMON, **_attentions(IN_PARTS)},
            others=_attentions(IN_PARTS_OTHERS),
            component="prior",
        ),
    ),
    # Scales and shifts from the time.
    aside={
        f"{side}.*.*.{mapper}": "modulation"
        for side in ("down_blocks", "up_blocks")
        for mapper in ("mapper", "mapper_sca", "mapper_crp")
    },
    tokens={
        "kv_mapper": "text",
        **dict.fromkeys(("mapper", "mapper_sca", "mapper_crp"), "text"),
        **dict.fromkeys((f"attention.attn.to_{letter}" for letter in "kv"), "level, text"),
        **dict.fromkeys(("down_blocks", "up_blocks"), "level"),
        # Convolutions.
        **dict.fromkeys(
            (
                *("embedding", "effnet_mapper", "pixels_mapper", "clf"),
                *("down_downscalers", "down_repeat_mappers", "up_upscalers", "up_repeat_mappers"),
            ),
            "places",
        ),
    },
)
