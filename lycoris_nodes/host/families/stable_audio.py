"""Stable Audio."""

from .family import Family, Network

FAMILY = Family(networks={"AudioDiffusionTransformer": Network()})
