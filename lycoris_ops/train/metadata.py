"""What the file of a trained adapter says about its training, under kohya's and ModelSpec's keys.

The keys are those of kohya-ss/sd-scripts (networks and library/train_util.py, Apache-2.0) and of the
specification https://github.com/Stability-AI/ModelSpec. No date is written, so that the same training makes
the same file.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..algorithms.base import alpha_of
from ..writing.metadata import DIM, DYNAMIC, NETWORK_ALPHA
from .network import LycorisNetwork
from .options import TrainOptions

ELSEWHERE = frozenset(
    {
        "device",
        "mesh",
        "data",
        "settings",
        "validate_every",
        "saved",
        "patience",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep",
    }
    | {"output", "dialect", "dtype", "metadata", "checkpoints", "overwrite", "bar", "log", "picture"}
)
"""The options that are not written. The state holds `data` and `settings`, and the others do not affect how
a step is made."""
IN_LYCORIS = {"oft": "diag-oft"}
"""From our names of kinds to LyCORIS' names, where they differ."""
TRAINING = "lycoris_training"
"""The key of the training's options and network, as JSON."""


def metadata_of_training(
    options: TrainOptions, net: LycorisNetwork, *, rate: float, step: int, of: int, epoch: int | None
) -> dict[str, str | None]:
    """The entries for the weights of a step among `of`, with the rate before its schedule; None for an epoch
    that is not known."""
    layers = [member.layer for member in net.members.values()]
    # The kinds that the file holds. The settings of this package are in the recipe.
    kinds = sorted({layer.algorithm for layer in layers})
    title = Path(options.output).stem if options.output is not None else None
    entries: dict[str, Any] = {
        "ss_output_name": title,
        "ss_network_module": "networks.lora" if kinds == ["lora"] else "lycoris.kohya",
        "ss_network_args": json.dumps({"algo": ",".join(IN_LYCORIS.get(kind, kind) for kind in kinds)}),
        DIM: _one_of([layer.rank for layer in layers]),
        NETWORK_ALPHA: _one_of([alpha_of(layer) for layer in layers]),
        "ss_v2": False,
        # The model's name is not known here, but readers expect the key.
        "ss_base_model_version": "unknown",
        "ss_steps": step,
        "ss_max_train_steps": of,
        "ss_epoch": epoch,
        "ss_learning_rate": rate,
        "ss_optimizer": options.optimiser,
        "ss_lr_scheduler": options.schedule,
        "ss_lr_warmup_steps": options.warmup,
        "ss_gradient_accumulation_steps": options.accumulation,
        "ss_max_grad_norm": options.clip_norm,
        "ss_scale_weight_norms": options.max_weight_norm,
        "ss_mixed_precision": options.autocast or "no",
        "ss_seed": options.seed,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.implementation": "lycoris_ops",
        TRAINING: json.dumps({"options": _plain(options), "network": net.recipe()}),
    }
    return {key: str(value) for key, value in entries.items() if value is not None}


def _one_of(values: list[float | None]) -> float | str | None:
    """The value that all layers have, or kohya's word for different ones."""
    stated = set(values) - {None}
    return DYNAMIC if len(stated) > 1 else next(iter(stated), None)


def _plain(options: TrainOptions) -> dict[str, Any]:
    """The options that are written, as JSON has them."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    plain = {name: value for name, value in values.items() if name not in ELSEWHERE}
    return plain | {"optimiser_options": {key: repr(v) for key, v in options.optimiser_options.items()}}
