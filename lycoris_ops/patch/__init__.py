"""The patch ops: which layers are fused with which, and the ways of adding them to a weight."""

from .plan import PatchPlan, patch_, patch_report

__all__ = ["PatchPlan", "patch_", "patch_report"]
