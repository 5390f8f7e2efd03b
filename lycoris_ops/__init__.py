"""LoRA-family adapters on any torch weights: read, match, weight, stack, patch and merge.

Importing this package initialises no accelerator and needs no host application.
"""

from .adapters.adapter import Adapter, adapter_stamp, load_adapter
from .adapters.save import SaveResult, describe_saved, save_adapter
from .algorithms import ALGORITHMS, Layer
from .bake.checkpoint import MergeResult, merge_checkpoint
from .bypass import Bypass, BypassPlan, geometry_of
from .bypass import refusal as bypass_refusal
from .errors import (
    FileFormatError,
    LayerError,
    LycorisError,
    MatchError,
    RuleError,
    WriteError,
)
from .files.cache import TensorCache
from .files.quantised import Codec, Quantised
from .files.tensor_file import PICKLES, SAFETENSORS, Fingerprint
from .layers.part import Part
from .names.written import WRITTEN
from .patch import PatchPlan, patch_, patch_report
from .report.applied import describe
from .stack.resolve import Resolution, resolve
from .stack.rules import Rules
from .stack.stack import Entry, Stack

__version__ = "0.2.0"

__all__ = [
    "ALGORITHMS",
    "PICKLES",
    "SAFETENSORS",
    "WRITTEN",
    "Adapter",
    "Bypass",
    "BypassPlan",
    "Codec",
    "Entry",
    "FileFormatError",
    "Fingerprint",
    "Layer",
    "LayerError",
    "LycorisError",
    "MatchError",
    "MergeResult",
    "Part",
    "PatchPlan",
    "Quantised",
    "Resolution",
    "RuleError",
    "Rules",
    "SaveResult",
    "Stack",
    "TensorCache",
    "WriteError",
    "adapter_stamp",
    "bypass_refusal",
    "describe",
    "describe_saved",
    "geometry_of",
    "load_adapter",
    "merge_checkpoint",
    "patch_",
    "patch_report",
    "resolve",
    "save_adapter",
]
