"""PiD."""

from .family import Family, Unmade

FAMILY = Family(hosts=("PiD",), unmade=Unmade("lq_latent", "PiDConditioning", needed=True))
