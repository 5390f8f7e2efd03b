"""HiDream."""

from .family import Family, Network
from .shared import CONCATENATED_ALONE

FAMILY = Family(
    hosts=("HiDream",),
    name="HiDream",
    source="OneTrainer, ai-toolkit",
    rank=32,
    lr=2e-4,
    references=CONCATENATED_ALONE,
    networks={"HiDreamImageTransformer2DModel": Network()},
)
