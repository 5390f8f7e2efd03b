"""Qwen-Image, and Mage-Flow, which derives from it."""

from .family import Family, Network, References
from .shared import numbered
from .times import ByTokens, Times

_FIRST = "first Qwen-Image-Edit"
"""Qwen-Image-Edit of August 2025, which has the same layers as later versions."""
_OF_FIRST = References(
    node="TextEncodeQwenImageEdit", most=1, given=lambda images, size: {"image": images[0]}
)
_OF_LATER = References(
    node="TextEncodeQwenImageEditPlus", most=3, given=lambda images, size: numbered(images, "", 1)
)
_OF_MAGE_FLOW = References(
    node="TextEncodeMageFlowEdit",
    given=lambda images, size: {
        "images": numbered(images, "_", 1),
        "width": size[0],
        "height": size[1],
    },
)

FAMILY = Family(
    hosts=("QwenImage",),
    name="Qwen-Image",
    source="ai-toolkit; the shift: kohya-ss/musubi-tuner",
    times=Times(shift=ByTokens(0.5, 0.9, 256, 8192)),
    rank=32,
    # The modulation, and the output layer.
    include=("*_mod.1", "proj_out"),
    references=lambda model, way: _OF_FIRST if way == _FIRST else _OF_LATER,
    ways=(_FIRST,),
    networks={"QwenImageTransformer2DModel": Network(), "MageFlowTransformer2DModel": Network()},
    variants={"MageFlow": {"references": _OF_MAGE_FLOW}},
)
