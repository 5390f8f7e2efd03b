"""Lens."""

from .family import Family, Network

FAMILY = Family(networks={"LensTransformer2DModel": Network()})
