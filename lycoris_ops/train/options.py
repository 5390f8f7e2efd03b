"""The options of a training: how long, with which optimiser, what is written and where."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import TrainError, unknown_name
from ..files.dtypes import DTYPE_NAMES, FLOATS
from ..writing.metadata import check_text
from ..writing.paths import has_folder
from .sketches import Sketch

AUTOCAST = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
"""The dtypes that a model can compute in while it is trained, by name."""
SEARCHES = ("off", "rate", "all")
"""The searches that a race before a training can make."""
SAVED = ("best", "last")
"""Which weights a finished training keeps."""
OURS = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "max_train_steps": "steps",
    "num_train_epochs": "epochs",
    "max_train_epochs": "epochs",
    "optimizer": "optimiser",
    "optimizer_type": "optimiser",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "lr_warmup_steps": "warmup",
    "gradient_accumulation_steps": "accumulation",
    "max_grad_norm": "clip_norm",
    "mixed_precision": "autocast",
    "save_every_n_steps": "checkpoint_every",
}
"""Other trainers' names of options, each with ours."""
STATE = ".state.safetensors"
"""The ending of the files that a training can be resumed from."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The settings of a training. A step is one update of the weights, whatever the accumulation.

    Raises TrainError for an unknown name, and for a value out of its range.
    """

    steps: int | None = None
    """How many steps. Either this or `epochs` is given."""
    epochs: int | None = None
    """How many times the training goes through the batches, which then need a length."""

    optimiser: str = "adamw"
    """A name in `train.optimisers`, or `module:Class` of any installed package."""
    optimiser_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of the optimiser, such as `betas`."""
    lr: float | None = None
    """The learning rate; None is the usual one, see `train.rates`."""
    lora_plus: float | None = None
    """The ratio of the rate of `up` to the rate of `down` (LoRA+, arXiv 2402.12354)."""
    weight_decay: float = 0.0
    schedule: str = "constant"
    """A name in `train.schedules`: the course of the rate after the warm-up."""
    warmup: float = 0
    """Steps in which the rate rises to its full value; below 1 it is a share of all steps."""
    restarts: int = 0
    """How often the schedule begins anew after the warm-up."""

    search: str = "off"
    """What a race before the training finds, see `search_network`: nothing ("off"), the learning rate
    ("rate"), or the kind of the network too ("all")."""
    search_share: float = 0.4
    """The most that the race may cost, as a share of the training's steps. The extra time of the
    training counts too if a slower kind may win. With 0 there is no race."""

    accumulation: int = 1
    """Batches of one step. Their gradients are averaged."""
    clip_norm: float | None = 1.0
    """The largest norm of all gradients together; larger ones are scaled down to it."""
    max_weight_norm: float | None = None
    """The largest norm of each layer's change, see `LycorisNetwork.clip_weight_norm`."""
    rise: float | None = 1.5
    """Stop the training where the ratio of its loss to the loss of the model alone is more than `rise` times
    the first ratio at two checks in a row, see `train.rise.Rise`. A check costs one more pass. Checks are a
    twentieth of the steps apart, but at least 25 steps, and one is in the last step. Trainings of fewer than
    8 steps have no checks, and with None there are none at all."""
    ema: float | None = None
    """The decay of an average of the weights, such as 0.999, which is then validated and saved in place of
    the weights. In step n the decay is min(ema, (1 + n) / (10 + n)), so that the start is soon forgotten."""
    autocast: str | None = None
    """The dtype that the model computes in: bf16, fp16 (with scaled gradients) or None. The trained tensors
    stay float32."""
    scaled: bool | None = None
    """Whether the loss is scaled, so that small gradients are not lost where the model itself computes in
    fp16. None scales it only with `autocast` fp16."""
    data: Mapping[str, Sequence[Sketch]] = field(default_factory=dict[str, Sequence[Sketch]])
    """Sketches of the data by name, see `sketches`. The state holds them, and a resumed training says how its
    data changed, see `data_changes`. Names that begin with `validation_` are of held-out data."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further numbers and texts that affect the trained weights but are not options, such as the batch size.
    The state holds them, see `FoundState`; kept races are compared by them."""
    seed: int = 0
    """The seed of all random numbers. Step n draws the same numbers, whether or not the training was resumed
    before it."""
    device: str | torch.device | None = None
    """The device to which the model and each batch are moved. None moves nothing."""

    mesh: Any | None = None
    """The `DeviceMesh` over copies of the model, where several processes compute each copy and see the same
    batches. None takes it from the model's sharded weights; without any, each process has its own copy."""

    validate_every: int | None = None
    """Steps between two validations. The first one is before step 1, the last one at the end."""
    saved: str = "best"
    """The weights that the network and `output` have at the end: those with the lowest held-out loss ("best",
    see `History.best`), or those after the last step ("last"). Without validation both are the same."""
    patience: int | None = None
    """The training stops after this many validations in a row without a new best one."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints. The last and the best are always written where there is a folder."""
    keep: int = 3
    """How many of the regular checkpoints are kept."""
    checkpoint_minutes: float | None = 10.0
    """Minutes without a checkpoint after which `last` is written, so that a crash loses no more than that.
    None or inf: only at the end, and after an error or an interrupt."""

    output: str | os.PathLike[str] | None = None
    """The file of the finished adapter."""
    dialect: str = "lycoris"
    dtype: torch.dtype | None = None
    """The dtype of the written adapter; None keeps the dtype of the trained tensors."""
    metadata: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])
    """Entries of the file's metadata. They override those that the training writes; None removes one."""
    checkpoints: str | os.PathLike[str] | None = None
    """The folder of the checkpoints; None: a folder beside `output`, or no folder without `output`."""
    overwrite: bool = False
    """Whether the files of an earlier training may be replaced. A resumed training always replaces its
    own."""

    bar: bool = True
    """Whether progress is shown on stderr."""
    log: str | os.PathLike[str] | None = None
    """A folder for TensorBoard."""
    picture: bool = True
    """Whether the curves are drawn beside `output`, where Pillow is installed."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise TrainError("E-training-length-unknown", got="neither" if self.steps is None else "both")
        for name in ("steps", "epochs", "accumulation", "validate_every", "patience", "checkpoint_every"):
            self._check(name, lambda v: isinstance(v, int) and v >= 1, "a whole number of at least 1")
        for name in ("keep", "restarts"):
            self._check(name, lambda v: isinstance(v, int) and v >= 0, "a whole number of at least 0")
        self._check("seed", lambda v: isinstance(v, int), "a whole number")
        for name in ("lr", "lora_plus", "clip_norm", "max_weight_norm", "rise"):
            self._check(name, lambda v: 0 < v < math.inf, "a number above 0")
        self._check("checkpoint_minutes", lambda v: v > 0, "a number above 0")
        self._check("mesh", lambda v: hasattr(v, "get_coordinate"), "a DeviceMesh of torch")
        self._check("saved", lambda v: v in SAVED, ", ".join(SAVED))
        self._check("search", lambda v: v in SEARCHES, ", ".join(SEARCHES))
        for name in ("weight_decay", "warmup", "search_share"):
            self._check(name, lambda v: 0 <= v < math.inf, "a number of at least 0")
        self._check("warmup", lambda v: v < 1 or v == int(v), "a share below 1, or a whole number of steps")
        self._check("ema", lambda v: 0 < v < 1, "a number between 0 and 1")
        self._check("autocast", lambda v: v in AUTOCAST, ", ".join([*AUTOCAST, "None"]))
        self._check("dtype", lambda v: DTYPE_NAMES.get(v) in FLOATS, f"a dtype of torch: {', '.join(FLOATS)}")
        for name in ("optimiser", "schedule"):
            self._check(name, lambda v: isinstance(v, str), "a name")
        for name in ("optimiser_options", "metadata", "data", "settings"):
            self._check(name, lambda v: isinstance(v, Mapping), "a mapping")
        for name in ("lr", "weight_decay"):
            if name in self.optimiser_options:
                raise TrainError(
                    "E-option-set-per-layer",
                    key=f"optimiser_options[{name!r}]",
                    name=name,
                    got=repr(self.optimiser_options[name]),
                )
        check_text(self.metadata, TrainError)
        if self.checkpoint_every is not None and self.folder is None:
            raise TrainError(
                "E-checkpoints-without-folder", key="checkpoint_every", got=str(self.checkpoint_every)
            )
        if self.restarts and self.schedule == "constant":
            raise TrainError("E-restarts-without-schedule", key="restarts", got=str(self.restarts))
        if self.patience is not None and self.validate_every is None:
            raise TrainError("E-early-stop-without-validation-interval", key="patience")

    def _check(self, name: str, holds: Callable[[Any], bool], expected: str) -> None:
        value = getattr(self, name)
        optional = next(str(each.type).endswith("| None") for each in fields(self) if each.name == name)
        try:
            fine = optional if value is None else holds(value)
        except TypeError:
            fine = False
        if not fine or isinstance(value, bool):
            raise TrainError("E-setting-out-of-range", key=name, got=repr(value), expected=expected)

    def _beside(self, ending: str) -> Path:
        out = Path(self.output or "")
        # PEFT's output is a folder: text after a dot in its name is no ending.
        name = out.name if has_folder(self.dialect) else out.stem
        return out.with_name(f"{name}{ending}")

    @property
    def folder(self) -> Path | None:
        """The folder of the checkpoints, if there is one."""
        if self.checkpoints is not None:
            return Path(self.checkpoints)
        if self.output is None:
            return None
        return self._beside("-checkpoints")

    @property
    def race_file(self) -> Path | None:
        """The file for the outcome of a race: beside `output`, or else in the folder of the checkpoints."""
        if self.output is None:
            return None if self.folder is None else self.folder / "race.json"
        return self._beside("-race.json")

    @property
    def last_state(self) -> Path | None:
        """The file for the state after the last step of a run, finished or stopped, if there is a folder."""
        return None if self.folder is None else self.folder / f"last{STATE}"


def _named(make: Any) -> Any:
    """The constructor of the options, which raises TrainError for an unknown name."""
    known = [each.name for each in fields(TrainOptions)]

    @wraps(make)
    def checked(self: TrainOptions, *args: Any, **options: Any) -> None:
        for name in options.keys() - set(known):
            raise unknown_name(
                "E-training-option-unknown", name, known, error=TrainError, meant=OURS.get(name)
            )
        make(self, *args, **options)

    return checked


# A dataclass writes its constructor itself.
cast("Any", TrainOptions).__init__ = _named(TrainOptions.__init__)
