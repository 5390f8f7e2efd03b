"""PixArt."""

from .family import Family, Network

FAMILY = Family(networks={"PixArtMS": Network()})
