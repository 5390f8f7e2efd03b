"""AuraFlow."""

from .family import Family, Network

FAMILY = Family(networks={"MMDiT": Network()})
