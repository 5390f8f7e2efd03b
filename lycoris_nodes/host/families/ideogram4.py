"""Ideogram 4."""

from .family import Family, Network

FAMILY = Family(networks={"Ideogram4Transformer2DModel": Network()})
