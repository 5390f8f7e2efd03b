"""ACE-Step 1.5: its decoder under the names of the official adapter files and of diffusers.

Official adapters are trained on the decoder alone and leave its name out. Source of the correspondence:
diffusers (Apache-2.0), `scripts/convert_ace_step_to_diffusers.py`, and
`_convert_non_diffusers_ace_step_lora_to_diffusers` in `loaders/lora_conversion_utils.py`.
ACE-Step 1 has one layout only.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import followed, gathered, renamed

ATTENTION = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
DECODER = {"decoder.*": "*"}
DIFFUSERS = {
    "decoder.proj_in.1": "proj_in_conv",
    "decoder.proj_out.1": "proj_out_conv",
    **{f"decoder.layers.*.*.{ours}": f"layers.*.*.{theirs}" for ours, theirs in ATTENTION.items()},
    **DECODER,
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """The decoder, which is the whole model there; nothing for another architecture."""
    if not {"decoder.condition_embedder", "decoder.layers.0.self_attn.q_proj"} <= shapes.keys():
        return {}
    return gathered(shapes, renamed(shapes, DIFFUSERS))


def aliases(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Official names, and those that follow from diffusers'; nothing for another architecture."""
    names = diffusers(shapes)
    official = renamed(shapes, DECODER) if names else {}
    return {**followed(shapes, names), **gathered({**shapes, **dict.fromkeys(names, ())}, official)}
