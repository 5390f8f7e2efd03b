"""Models with the layers of Stable Diffusion 1 or 2 that are given something else beside the text."""

from .family import Family, Unmade
from .shared import CONCATENATED_ALONE

FAMILY = Family(
    variants={
        "SD15_instructpix2pix": {"references": CONCATENATED_ALONE},
        "SD_X4Upscaler": {"unmade": Unmade("concat_image", "SD_4XUpscale_Conditioning")},
        "SD21UNCLIP": {"unmade": Unmade("unclip_conditioning", "unCLIPConditioning")},
    }
)
