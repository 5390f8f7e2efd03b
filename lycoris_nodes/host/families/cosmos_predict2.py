"""Cosmos-Predict2."""

from .family import Family, Network
from .node import BOTH, FIRST, Node
from .shared import given_if_marked

FAMILY = Family(
    hosts=("CosmosPredict2",),
    name="Cosmos-Predict2",
    source="kohya-ss/sd-scripts",
    rank=8,
    given=given_if_marked(Node(dict.fromkeys((FIRST, BOTH), "CosmosPredict2ImageToVideoLatent"))),
    networks={"MiniTrainDIT": Network(fused=True)},
    variants={"CosmosI2VPredict2": {"frame_rate": 16}},
)
