"""ostris/ai-toolkit: a YAML with `config.process`. Only the first process is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ..config import ALGORITHMS, DTYPES, Config

NAME, FORM = "ai-toolkit", "YAML with config.process"
PARTS = ("network", "train", "save", "sample", "model")
TIMES = {
    "sigmoid": "logit-normal",
    "linear": "uniform",
    **dict.fromkeys(("shift", "flux_shift", "weighted", "lumina2_shift"), "auto"),
}
LOSSES = {"mse": "l2", "mae": "l1"}


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of this trainer; None for others."""
    inner = table.get("config")
    processes = inner.get("process") if isinstance(inner, dict) else None
    if not (isinstance(processes, list) and processes and isinstance(processes[0], dict)):
        return None
    process, given = cast("dict[str, Any]", processes[0]), cast("dict[str, Any]", inner)
    found: dict[str, Any] = {"name": given.get("name")}
    for part, value in process.items():
        nested = part in PARTS and isinstance(value, dict)
        found |= {f"{part}.{key}": one for key, one in value.items()} if nested else {part: value}
    return found


def read(config: Config) -> None:
    config.choose("network.type", "algorithm", ALGORITHMS)
    config.put("network.linear", "rank", int, usual=4)
    config.put("network.rank", "rank", int)
    # Its templates have these settings for any kind.
    algorithm = config.values.get("algorithm", "lora")
    config.left.setdefault("network.lokr_full_rank", True)
    config.whole(algorithm, "network.lokr_full_rank")
    config.everywhere(algorithm, {"network.lokr_factor": "factor"})
    # Its default is 1, not the rank.
    config.put("network.alpha", "alpha", float, usual=1)
    config.put("network.linear_alpha", "alpha", float)
    config.put("train.lr", "learning_rate", float)
    config.optimiser("train.optimizer", config.take("train.optimizer_params", {}))
    rising = config.left.get("train.lr_scheduler") == "constant_with_warmup"
    config.schedule("train.lr_scheduler", usual="constant")
    schedule = config.inside("train.lr_scheduler_params", config.take("train.lr_scheduler_params", {}))
    schedule.put("num_warmup_steps", "warmup", float, usual=1000 if rising else 0, zero=True)
    config.add(schedule)
    config.put("train.steps", "steps", int, usual=1000)
    # It has no epochs. Here they would count in place of the steps.
    config.values["epochs"] = 0
    config.put("train.batch_size", "batch_size", int, usual=1)
    config.put("train.gradient_accumulation_steps", "accumulation", int, usual=1)
    # It refuses a config in which both are above 1.
    other = config.values["accumulation"]
    config.put("train.gradient_accumulation", "accumulation", lambda count: max(int(count), other))
    config.put("train.max_grad_norm", "max_grad_norm", float, usual=1.0)
    config.choose("train.loss_type", "loss_type", LOSSES)
    flow = config.left.get("train.noise_scheduler") == "flowmatch"
    config.choose("train.timestep_type", "times", TIMES, usual="sigmoid" if flow else None)
    config.put("train.noise_offset", "noise_offset", float)
    config.min_snr("train.min_snr_gamma")
    config.choose("train.dtype", "precision", {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"})
    config.put("train.gradient_checkpointing", "checkpointing", lambda value: "on")
    average = config.inside("train.ema_config", config.take("train.ema_config", {}))
    averaged = average.take("use_ema")
    if not averaged:
        average.left.clear()
    average.put("ema_decay", "ema", float, usual=0.99 if averaged else None)
    config.add(average)
    config.put("save.save_every", "checkpoint_every", int)
    config.put("save.max_step_saves_to_keep", "keep", int)
    config.choose("save.dtype", "dtype", DTYPES)
    config.put("sample.sample_every", "sample_every", int)
    config.put("sample.seed", "seed", int)
    config.put("name", "filename_prefix", lambda name: f"loras/{name}")
    config.elsewhere("link `clip` and `captions`", "train.train_text_encoder")
    datasets = [one for one in config.left.get("datasets") or [] if isinstance(one, dict)]
    # Only the first data set is read: here all data sets share one dropout.
    first = config.inside("datasets", datasets[0] if datasets else {})
    first.put("caption_dropout_rate", "caption_dropout", float, usual=0)
    first.left.clear()
    config.add(first)
    config.elsewhere("set on LyCORIS Training Pictures", "datasets", "trigger_word")
    config.elsewhere("link the model", "model.name_or_path", "model.arch", "model.is_flux")
    config.unused(
        *("type", "training_folder", "device", "performance_log_every", "train.noise_scheduler", "logging"),
        *("train.train_unet", "train.disable_sampling", "train.unload_text_encoder", "save.save_format"),
        *("save.push_to_hub", "model.quantize", "model.quantize_te", "meta"),
        *("model.qtype", "model.qtype_te", "model.low_vram", "train.cache_text_embeddings", "sqlite_db_path"),
    )
    config.unused(*[key for key in config.left if key.startswith("sample.")])
