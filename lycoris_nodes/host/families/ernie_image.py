"""ERNIE-Image."""

from .family import Family, Network

FAMILY = Family(networks={"ErnieImageModel": Network(fused=True)})
