"""Training beside the host's models: the model opened, its inputs, and the loss for the library's trainer.

    with opened(model) as session:
        family = family_of(session.model)
        latent = latent_of(session.model, encoded_picture, session.device)
        sample = Sample(latent, caption_of(session.model, conditioning, latent))
        net = session.adapted(rank=family.rank, preset=family.preset)
        loss = DiffusionLoss(session=session, times=family.times)
        train_network(net, [[sample]], loss, TrainOptions(steps=100, lr=family.lr))
        net.save_weights("mine.safetensors")

`opened` goes for the patcher of text encoders too.
"""

from .captions import Caption, PictureSize, Text, caption_of, is_told_sizes
from .families import FAMILIES, Family, family_of
from .host import grid_of, held
from .latents import Latent, latent_of, mask_of
from .loss import DiffusionLoss, Sample, batches_of
from .recompute import blocks
from .session import Session, opened, prediction
from .targets import WEIGHTINGS, Weighting
from .texts import TextEncoder
from .times import DISTRIBUTIONS, ByTokens, Times
from .widths import check_width

__all__ = [
    "DISTRIBUTIONS",
    "FAMILIES",
    "WEIGHTINGS",
    "ByTokens",
    "Caption",
    "DiffusionLoss",
    "Family",
    "Latent",
    "PictureSize",
    "Sample",
    "Session",
    "Text",
    "TextEncoder",
    "Times",
    "Weighting",
    "batches_of",
    "blocks",
    "caption_of",
    "check_width",
    "family_of",
    "grid_of",
    "held",
    "is_told_sizes",
    "latent_of",
    "mask_of",
    "opened",
    "prediction",
]
