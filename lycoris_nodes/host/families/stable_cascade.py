"""Stable Cascade."""

from .family import Family, Network, Unmade

FAMILY = Family(
    networks={"StageB": Network(), "StageC": Network()},
    variants={
        "StableCascade_B": {"unmade": Unmade("stable_cascade_prior", "StableCascade_StageB_Conditioning")}
    },
)
