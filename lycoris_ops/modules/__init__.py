"""Which parts of a model can be adapted, and how they are chosen by name."""

from .named import named_modules
from .patterns import check_used, patterns
from .shares import left_out
from .sites import Kind, Site, all_sites, left_alone, select, shared_weights
from .statistics import Statistics, evaluating

__all__ = [
    "Kind",
    "Site",
    "Statistics",
    "all_sites",
    "check_used",
    "evaluating",
    "left_alone",
    "left_out",
    "named_modules",
    "patterns",
    "select",
    "shared_weights",
]
