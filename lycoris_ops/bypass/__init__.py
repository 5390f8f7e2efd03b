"""Adapters computed beside a module, in each of its passes, while its weight stays as it is."""

from .blend import Blend
from .geometry import Geometry, geometry_of
from .hook import Bypass, Reader
from .plan import BypassPlan, Met, Slot, bypass_refusal
from .rebuilt import Rebuilt

__all__ = [
    "Blend",
    "Bypass",
    "BypassPlan",
    "Geometry",
    "Met",
    "Reader",
    "Rebuilt",
    "Slot",
    "bypass_refusal",
    "geometry_of",
]
