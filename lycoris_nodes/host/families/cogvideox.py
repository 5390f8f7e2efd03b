"""CogVideoX."""

from .family import Family, Network

FAMILY = Family(hosts=("CogVideoX",), frame_rate=8, networks={"CogVideoXTransformer3DModel": Network()})
