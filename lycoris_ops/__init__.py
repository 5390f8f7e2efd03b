"""LoRA-family adapters on any torch weights: read, match, weight, stack, patch and merge.

Importing this package initialises no accelerator and needs no host application. What makes, plans
and trains adapters is loaded when a name of it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before all that takes time.
from . import interrupts  # noqa: F401  # pyright: ignore[reportUnusedImport]
from .algorithms import ALGORITHMS, Layer
from .bake.checkpoint import MergeResult, merge_checkpoint
from .bypass import Bypass, BypassPlan, Met, geometry_of
from .bypass import refusal as bypass_refusal
from .changes.timing import CLOCKS, Clock, Curve, Moment, Timing
from .changes.timing import SHAPES as CURVES
from .charts import check_png
from .discovery import discover
from .errors import (
    DivergedError,
    FileFormatError,
    LayerError,
    LycorisError,
    MatchError,
    PlanError,
    RuleError,
    ScheduleError,
    TrainError,
    WriteError,
    located,
    number_of,
    unknown_name,
)
from .files.cache import TensorCache
from .files.dtypes import DTYPE_NAMES, WRITABLE, dtype_name
from .files.json_text import parse_json
from .files.quantised import Codec, Quantised, beginning_with
from .files.tensor_file import PICKLES, SAFETENSORS, Fingerprint, TensorFile, TensorInfo
from .files.tree_file import TreeForm
from .files.weights import ModelSource, Weights
from .files.writing import Progress, check_name, check_room
from .layers.part import Part
from .maths.chance import restore as restore_chance
from .maths.chance import states as chance_states
from .maths.shapes import Shape
from .names.model_files import read_shapes
from .names.written import KEPT, WRITTEN, Written, own_dialect
from .patch import PatchPlan, patch_, patch_report
from .reading.adapter import Adapter
from .reading.fitted import FitReport, FitRow
from .reading.load import adapter_of_tensors, adapter_stamp, load_adapter, peek_adapter
from .report.about import About, about
from .report.applied import describe, verdict
from .report.blocks import describe_blocks
from .report.fitted import describe_fit, fit_verdict
from .report.saved import describe_saved
from .report.summary import in_words, matched, summary
from .report.words import few, paragraph
from .rules.presets import BLOCK_PRESETS, PresetFile, read_presets
from .rules.rules import Rules, without_comment
from .rules.schedule import Schedule
from .stack.kept_plans import kept_plan
from .stack.resolve import Match, Resolution, resolve
from .stack.stack import Entry, Stack
from .stack.survey import Survey, survey
from .stack.weighted import weighted
from .writing.place import check_output
from .writing.save import (
    Expected,
    SaveResult,
    adapter_tensors,
    check_expected,
    faults_in_comfy,
    save_adapter,
)

if TYPE_CHECKING:
    from .train.surface import *
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(".train.surface", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = "0.2.0"

__all__ = [
    "ALGORITHMS",
    "BLOCK_PRESETS",
    "CLOCKS",
    "CURVES",
    "DTYPE_NAMES",
    "FITTED",
    "KEPT",
    "PICKLES",
    "PRESETS",
    "SAFETENSORS",
    "WRITABLE",
    "WRITTEN",
    "About",
    "Adapter",
    "Batches",
    "Budget",
    "Bypass",
    "BypassPlan",
    "Clock",
    "Codec",
    "Curve",
    "DivergedError",
    "Energy",
    "Entry",
    "Examination",
    "Expected",
    "FileFormatError",
    "Fingerprint",
    "FitReport",
    "FitRow",
    "FoundState",
    "History",
    "Layer",
    "LayerError",
    "Loss",
    "LycorisError",
    "LycorisNetwork",
    "Match",
    "MatchError",
    "MergeMethod",
    "MergeResult",
    "Met",
    "ModelSource",
    "Moment",
    "Moved",
    "Part",
    "PatchPlan",
    "Plan",
    "PlanError",
    "PresetFile",
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
    "Schedule",
    "ScheduleError",
    "Shape",
    "Sketch",
    "Stack",
    "StepReport",
    "Survey",
    "TensorCache",
    "TensorFile",
    "TensorInfo",
    "Timing",
    "TrainError",
    "TrainOptions",
    "TrainResult",
    "Trainer",
    "TreeForm",
    "Trial",
    "Trials",
    "Weights",
    "WriteError",
    "Written",
    "about",
    "adapter_of_tensors",
    "adapter_stamp",
    "adapter_tensors",
    "beginning_with",
    "blocks_picture",
    "bypass_refusal",
    "chance_states",
    "check_expected",
    "check_name",
    "check_output",
    "check_png",
    "check_room",
    "create_lycoris",
    "curves_picture",
    "describe",
    "describe_blocks",
    "describe_examination",
    "describe_fit",
    "describe_saved",
    "discover",
    "draw_examination",
    "draw_plan",
    "dtype_name",
    "examination_data",
    "examination_picture",
    "examine",
    "extract_adapter",
    "faults_in_comfy",
    "few",
    "fit_verdict",
    "geometry_of",
    "in_words",
    "join_networks",
    "kept_plan",
    "load_adapter",
    "located",
    "matched",
    "merge_adapters",
    "merge_checkpoint",
    "merge_methods",
    "newest_state",
    "number_of",
    "optimisers",
    "orthogonal_adapters",
    "own_dialect",
    "paragraph",
    "parse_json",
    "parse_size",
    "patch_",
    "patch_report",
    "peek_adapter",
    "plan_picture",
    "plan_ranks",
    "probe",
    "read_presets",
    "read_shapes",
    "resize_adapter",
    "resolve",
    "restore_chance",
    "save_adapter",
    "schedules",
    "sketches",
    "summary",
    "survey",
    "train_network",
    "trainable",
    "try_plans",
    "unknown_name",
    "verdict",
    "weighted",
    "without_comment",
]
