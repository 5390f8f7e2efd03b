"""Stable Video Diffusion, and SV3D."""

from .family import Family, Unmade, marked

FAMILY = Family(
    hosts=("SVD_img2vid",),
    # The host does not mark it as image-to-video.
    animates=lambda model: True,
    unmade=Unmade("concat_latent_image", "SVD_img2vid_Conditioning"),
    variants={"SV3D_u": {"animates": marked}, "SV3D_p": {"animates": marked}},
)
