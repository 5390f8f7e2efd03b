"""SeedVR2."""

from .family import Family, Unmade

FAMILY = Family(hosts=("SeedVR2",), unmade=Unmade("condition", "SeedVR2Conditioning", needed=True))
