"""Cosmos."""

from .family import Family, Network
from .node import BOTH, FIRST, Node
from .shared import given_if_marked

FAMILY = Family(
    hosts=("CosmosVideo",),
    frame_rate=24,
    latents={"Cosmos1CV8x8x8": 8},
    given=given_if_marked(Node(dict.fromkeys((FIRST, BOTH), "CosmosImageToVideoLatent"))),
    networks={"GeneralDIT": Network()},
)
