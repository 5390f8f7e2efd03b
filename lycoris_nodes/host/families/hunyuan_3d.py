"""Hunyuan3D 2 and 2.1."""

from .family import Family, Network

FAMILY = Family(networks={"Hunyuan3Dv2": Network(norms="Hunyuan3Dv2"), "HunYuanDiTPlain": Network()})
