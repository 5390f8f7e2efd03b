"""LoRA-family adapters on any torch weights: read, match, weight, stack, patch and merge.

Importing this package initialises no accelerator and needs no host application.
"""

from .algorithms import ALGORITHMS, Layer
from .bypass import Bypass, BypassPlan, geometry_of
from .bypass import refusal as bypass_refusal
from .checkpoint import MergeResult, merge_checkpoint
from .codec import Codec, Quantised
from .errors import (
    FileFormatError,
    LayerError,
    LycorisError,
    MatchError,
    RuleError,
    WriteError,
)
from .files.adapter import Adapter, adapter_stamp, load_adapter
from .files.cache import TensorCache
from .files.naming import WRITTEN
from .files.tensor_file import PICKLES, SAFETENSORS, Fingerprint
from .kernels import PatchPlan, patch_, patch_report
from .parts import Part
from .report import describe
from .resolve import Resolution, resolve
from .rules import Rules
from .save import SaveResult, describe_saved, save_adapter
from .stack import Entry, Stack

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
