"""The patch ops: what is fused with what, and the paths that do it."""

from .plan import PatchPlan, patch_, patch_report

__all__ = ["PatchPlan", "patch_", "patch_report"]
