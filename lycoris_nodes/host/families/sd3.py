"""Stable Diffusion 3 and 3.5."""

from .family import Family, Network

FAMILY = Family(
    hosts=("SD3",),
    name="Stable Diffusion 3",
    source="huggingface/diffusers; the layers: OneTrainer",
    # With these all linear and convolutional layers are trained.
    include=("joint_blocks.*adaLN_modulation*", "final_layer*", "*_embedder*"),
    networks={"OpenAISignatureMMDITWrapper": Network()},
)
