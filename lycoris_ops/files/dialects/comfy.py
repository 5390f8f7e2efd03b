"""Names as the host itself writes them: the path in its own module tree."""

from .base import Dialect, Prefix

DIALECT = Dialect(
    name="comfy",
    prefixes=(
        Prefix("diffusion_model.", "unet"),
        Prefix("model.diffusion_model.", "unet"),
        Prefix("text_encoders.", "te"),
    ),
)
