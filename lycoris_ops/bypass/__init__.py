"""Adapters beside a module instead of in its weight: factors applied to the input in every pass."""

from .geometry import Geometry, geometry_of
from .hook import Bypass, Reader
from .plan import BypassPlan, Met, refusal

__all__ = ["Bypass", "BypassPlan", "Geometry", "Met", "Reader", "geometry_of", "refusal"]
