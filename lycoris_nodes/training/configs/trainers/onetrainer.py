"""Nerogar/OneTrainer: a JSON of one table, with a table for the optimiser in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..config import ALGORITHMS, DTYPES, Config

NAME, FORM = "OneTrainer", "JSON with training_method"
WEIGHTINGS = {"constant": "none", "min_snr_gamma": "min-snr", "debiased_estimation": "debiased"}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
DYNAMIC = ("ANIMA", "ERNIE", "FLUX", "IDEOGRAM", "KREA", "QWEN", "Z_IMAGE")
"""The beginnings of the names of models that can shift times by the size of the picture."""
TIMES = {"uniform": "uniform", "logit_normal": "logit-normal"}
PRECISIONS = {"bfloat_16": "bf16", "float_16": "fp16", "float_32": "fp32"}
FILES = {"bfloat_16": DTYPES["bf16"], "float_16": DTYPES["fp16"], "float_32": DTYPES["fp32"]}


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of this trainer; None for others."""
    return dict(table) if table.keys() >= {"training_method", "learning_rate"} else None


def read(config: Config) -> None:
    method = config.take("training_method")
    if method not in (None, "LORA"):
        config.notes.append(f"training_method = {method}: an adapter is trained here")
    config.choose("peft_type", "algorithm", ALGORITHMS)
    # Its presets leave the defaults out.
    config.put("lora_rank", "rank", int, usual=16)
    config.put("lora_alpha", "alpha", float, usual=1)
    config.put("lora_decompose", "dora", bool)
    config.put("learning_rate", "learning_rate", float)
    optimiser = config.inside("optimizer", config.take("optimizer", {}))
    betas = [optimiser.take(key) for key in ("beta1", "beta2")]
    used = {key: optimiser.left.pop(key, None) for key in ("weight_decay", "eps", "momentum", "d_coef")}
    optimiser.optimiser("optimizer", {**({"betas": betas} if None not in betas else {}), **used})
    # The rest belongs to other optimisers: OneTrainer writes the settings of all.
    optimiser.left.clear()
    config.add(optimiser)
    config.schedule("learning_rate_scheduler", "learning_rate_cycles", "constant")
    config.put("gradient_accumulation_steps", "accumulation", int, usual=1)
    updates = partial(_updates, config.values["accumulation"])
    config.put("learning_rate_warmup_steps", "warmup", updates, usual=200, zero=True)
    config.put("epochs", "epochs", int, usual=100)
    config.put("batch_size", "batch_size", int, usual=1)
    unlimited = config.left.get("clip_grad_norm", 1.0) is None
    config.put("clip_grad_norm", "max_grad_norm", float, usual=0.0 if unlimited else 1.0, zero=True)
    config.choose("loss_weight_fn", "weighting", WEIGHTINGS)
    config.put("offset_noise_weight", "noise_offset", float)
    config.choose("timestep_distribution", "times", TIMES, usual="uniform")
    config.put("timestep_shift", "shift", float, usual=1)
    # Here 0 stands for the shift that is usual for the model. Other models ignore the setting there.
    shift = 0.0 if str(config.left.get("model_type", DYNAMIC[0])).startswith(DYNAMIC) else None
    config.put("dynamic_timestep_shifting", "shift", lambda on: shift)
    config.put("masked_prior_preservation_weight", "masked_prior", float)
    config.put("dropout_probability", "input_dropout", float)
    averaged = str(config.take("ema", "OFF")).upper() != "OFF"
    if not averaged:
        config.unused("ema_decay")
    config.put("ema_decay", "ema", float, usual=0.999 if averaged else None)
    config.unused("ema_update_step_interval")
    config.choose("train_dtype", "precision", PRECISIONS)
    config.choose("output_dtype", "dtype", FILES)
    config.put(
        "gradient_checkpointing",
        "checkpointing",
        lambda value: "off" if str(value).upper() == "OFF" else "on",
    )
    config.put("seed", "seed", int)
    config.elsewhere("link the model", "base_model_name", "model_type")
    config.elsewhere(
        "set on LyCORIS Training Pictures",
        "concepts",
        "concept_file_name",
        "resolution",
        "aspect_ratio_bucketing",
    )
    for part in ENCODERS:
        # A config of all settings always has this table.
        encoder = config.inside(part, config.take(part, {}))
        encoder.elsewhere("link `clip` and `captions`", "train")
        encoder.left.clear()
        config.add(encoder)
    config.unused(
        *("__version", "workspace_dir", "cache_dir", "output_model_destination"),
        *("output_model_format", "debug_dir", "tensorboard", "dataloader_threads", "train_device"),
        *("temp_device", "samples", "sample_definition_file_name", "latent_caching", "only_cache"),
        *("compile", "attention_mechanism", "weight_dtype", "vae", "quantization", "optimizer_defaults"),
        *("backup_after", "backup_after_unit", "sample_after", "sample_after_unit"),
    )


def _updates(accumulation: int, steps: Any) -> float:
    """A warm-up in updates. OneTrainer counts it in steps of the data; up to 1 it is a share of all."""
    count = float(steps)
    return float(int(count / accumulation)) if count > 1 else min(count, 0.999)
