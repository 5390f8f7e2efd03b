"""TripoSplat."""

from .family import Family, Network

FAMILY = Family(networks={"LatentSeqMMFlowModel": Network()})
