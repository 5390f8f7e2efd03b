"""LoRA-family adapters on any torch weights: read, match, weight, stack, patch and merge.

Importing this package initialises no accelerator and needs no host application.
"""

from .adapters.adapter import Adapter
from .adapters.load import adapter_stamp, load_adapter
from .adapters.save import SaveResult, save_adapter
from .algorithms import ALGORITHMS, Layer
from .bake.checkpoint import MergeResult, merge_checkpoint
from .bypass import Bypass, BypassPlan, Met, geometry_of
from .bypass import refusal as bypass_refusal
from .discovery import discover
from .errors import (
    DivergedError,
    FileFormatError,
    LayerError,
    LycorisError,
    MatchError,
    PlanError,
    RuleError,
    TrainError,
    WriteError,
)
from .files.cache import TensorCache
from .files.dtypes import DTYPE_NAMES, WRITABLE, dtype_name
from .files.json_text import parse_json
from .files.quantised import Codec, Quantised, beginning_with
from .files.tensor_file import PICKLES, SAFETENSORS, Fingerprint, TensorFile, TensorInfo
from .files.writing import Progress, check_name
from .layers.part import Part
from .maths.shapes import Shape
from .modules.presets import PRESETS
from .names.model_files import read_shapes
from .names.written import WRITTEN
from .patch import PatchPlan, patch_, patch_report
from .ranks.choice import captured_energy, captured_norm, captured_roots, plan_ranks
from .ranks.gradients import Loss
from .ranks.picture import draw_plan
from .ranks.plan import Plan, Row
from .ranks.probe import Probe, probe
from .ranks.sizes import Budget, Energy, Rank, Ratio
from .report.applied import describe
from .report.saved import describe_saved
from .report.summary import in_words, matched, summary
from .report.words import few, paragraph
from .stack.kept_plans import kept_plan
from .stack.resolve import Match, Resolution, resolve
from .stack.rules import Rules
from .stack.stack import Entry, Stack
from .train.create import create_lycoris
from .train.feed import Batches
from .train.history import History, StepReport
from .train.loop import TrainResult, train_network
from .train.network import LycorisNetwork
from .train.optimisers import families as optimisers
from .train.options import TrainOptions
from .train.reallocation import Moved, Reallocation, Reallocator
from .train.schedules import schedules
from .train.settings import trainable
from .train.trainer import Trainer
from .train.trials import Trial, Trials, try_plans

__version__ = "0.2.0"

__all__ = [
    "ALGORITHMS",
    "DTYPE_NAMES",
    "PICKLES",
    "PRESETS",
    "SAFETENSORS",
    "WRITABLE",
    "WRITTEN",
    "Adapter",
    "Batches",
    "Budget",
    "Bypass",
    "BypassPlan",
    "Codec",
    "DivergedError",
    "Energy",
    "Entry",
    "FileFormatError",
    "Fingerprint",
    "History",
    "Layer",
    "LayerError",
    "Loss",
    "LycorisError",
    "LycorisNetwork",
    "Match",
    "MatchError",
    "MergeResult",
    "Met",
    "Moved",
    "Part",
    "PatchPlan",
    "Plan",
    "PlanError",
    "Probe",
    "Progress",
    "Quantised",
    "Rank",
    "Ratio",
    "Reallocation",
    "Reallocator",
    "Resolution",
    "Row",
    "RuleError",
    "Rules",
    "SaveResult",
    "Shape",
    "Stack",
    "StepReport",
    "TensorCache",
    "TensorFile",
    "TensorInfo",
    "TrainError",
    "TrainOptions",
    "TrainResult",
    "Trainer",
    "Trial",
    "Trials",
    "WriteError",
    "adapter_stamp",
    "beginning_with",
    "bypass_refusal",
    "captured_energy",
    "captured_norm",
    "captured_roots",
    "check_name",
    "create_lycoris",
    "describe",
    "describe_saved",
    "discover",
    "draw_plan",
    "dtype_name",
    "few",
    "geometry_of",
    "in_words",
    "kept_plan",
    "load_adapter",
    "matched",
    "merge_checkpoint",
    "optimisers",
    "paragraph",
    "parse_json",
    "patch_",
    "patch_report",
    "plan_ranks",
    "probe",
    "read_shapes",
    "resolve",
    "save_adapter",
    "schedules",
    "summary",
    "train_network",
    "trainable",
    "try_plans",
]
