"""Z-Image."""

from .family import Family, Network
from .shared import pictures_of_the_text
from .times import Times

FAMILY = Family(
    hosts=("ZImage",),
    name="Z-Image",
    source="kohya-ss/musubi-tuner; the layers: ai-toolkit",
    times=Times("logit-normal", shift=2.0),
    rank=32,
    # The modulation, and the output layer.
    include=("layers.*adaLN_modulation*", "final_layer.linear"),
    references=pictures_of_the_text,
    networks={"NextDiTPixelSpace": Network()},
    variants={
        "ZImagePixelSpace": {
            "name": "Z-Image in pixel space",
            "source": "as Z-Image",
            # Its output layer is in a decoder of pixels.
            "include": ("layers.*adaLN_modulation*",),
        }
    },
)
