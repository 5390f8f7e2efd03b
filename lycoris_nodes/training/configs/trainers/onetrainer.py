"""Nerogar/OneTrainer: a JSON of one table, with a table for the optimiser in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..config import ALGORITHMS, DTYPES, OF_PICTURES, SAMPLED, SAMPLING, SKIPPED, Config, Table

NAME, FORM = "OneTrainer", "JSON with training_method"
WEIGHTINGS = {"constant": "none", "min_snr_gamma": "min-snr", "debiased_estimation": "debiased"}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
ENCODED = {
    "STABLE_DIFFUSION_XL": 2,
    "STABLE_DIFFUSION_3": 3,
    "FLUX_DEV": 2,
    "FLUX_FILL": 2,
    "HUNYUAN": 2,
    "HI": 4,
}
"""How many text encoders its models have, by how their names begin. Others have one."""
DYNAMIC = ("ANIMA", "ERNIE", "FLUX", "IDEOGRAM", "KREA", "QWEN", "Z_IMAGE")
"""The beginnings of the names of models that can shift times by the size of the picture."""
PRESETS = ("full", "attn-mlp", "attn-only")
"""Its sets of layers that are the same here."""
SIZES = {"lokr": ("lokr_dim", 16), "oftv2": ("oft_block_size", 32)}
"""The setting for the size of a layer, and its default, of kinds that have their own."""
OPTIONS = {
    "lokr_decompose_factor": "factor",
    "lokr_decompose_both": "decompose_both",
    "lokr_use_tucker": "tucker",
}
MODELS = ("unet", "prior", "transformer")
FOUND = ("use_bias_correction", "safeguard_warmup", "d0", "growth_rate", "beta3", "slice_p", "decouple")
"""The arguments of Prodigy beside those of other optimisers."""
FILES = {"bfloat_16": DTYPES["bf16"], "float_16": DTYPES["fp16"], "float_32": DTYPES["fp32"]}


TABLE = Table(
    inputs={
        "epochs": ("epochs", int, 100),
        "batch_size": ("batch_size", int, 1),
        "loss_weight_fn": ("weighting", WEIGHTINGS),
        "offset_noise_weight": ("noise_offset", float),
        "timestep_distribution": ("times", {"uniform": "uniform", "logit_normal": "logit-normal"}, "uniform"),
        "masked_prior_preservation_weight": ("masked_prior", float),
        "dropout_probability": ("input_dropout", float),
        "train_dtype": ("precision", {"bfloat_16": "bf16", "float_16": "fp16", "float_32": "fp32"}),
        "output_dtype": ("dtype", FILES),
        "gradient_checkpointing": ("checkpointing", lambda on: "off" if str(on).upper() == "OFF" else "on"),
        "seed": ("seed", int),
    },
    elsewhere={
        "link the model": "base_model_name model_type",
        OF_PICTURES: "concepts concept_file_name frames aspect_ratio_bucketing",
        "link `masks`": "masked_training",
        SAMPLING: "rescale_noise_scheduler_to_zero_terminal_snr force_v_prediction",
        SAMPLED: "samples",
    },
    unused="""
        __version workspace_dir cache_dir output_model_destination output_model_format debug_dir tensorboard
        dataloader_threads train_device temp_device sample_definition_file_name latent_caching only_cache
        compile attention_mechanism weight_dtype vae quantization optimizer_defaults backup_after
        backup_after_unit sample_after sample_after_unit secrets cloud tensorboard_port validate_after
        validate_after_unit include_train_config gradient_reduce_precision fused_gradient_reduce
        async_gradient_reduce async_gradient_reduce_buffer async_offloading clear_cache_before_training
        fallback_train_dtype enable_autocast_cache loss_scaler unconditional_transformer effnet_encoder
        decoder decoder_text_encoder decoder_vqgan embedding embedding_weight_dtype
        bundle_additional_embeddings text_encoder_sequence_length text_encoder_2_sequence_length
        sample_image_format sample_video_format sample_audio_format samples_to_tensorboard non_ema_sampling
        rolling_backup_count backup_before_save lora_weight_dtype lora_decompose_norm_epsilon
        lokr_vec_trick""",
    without_effect={
        **dict.fromkeys(("mse_strength", "vb_loss_strength", "huber_delta", "max_noising_strength"), 1.0),
        "loss_weight_strength": 5.0,
        "learning_rate_scaler": "NONE",
        "save_every_unit": "NEVER",
    },
)


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of this trainer; None for others."""
    return dict(table) if table.keys() >= {"training_method", "learning_rate"} else None


def read(config: Config) -> None:
    method = config.take("training_method")
    if method not in (None, "LORA"):
        config.notes.append(f"training_method = {method}: an adapter is trained here")
    # Its presets leave the defaults out.
    config.choose("peft_type", "algorithm", ALGORITHMS, usual="lora")
    algorithm = config.values.get("algorithm", "lora")
    # It writes the settings of all kinds.
    key, size = SIZES.get(algorithm, ("lora_rank", 16))
    config.put(key, "rank", int, usual=size)
    config.whole(algorithm, "lokr_full_matrix")
    config.everywhere(algorithm, OPTIONS)
    config.put("lora_alpha", "alpha", float, usual=1)
    config.put("lokr_weight_decompose" if algorithm == "lokr" else "lora_decompose", "dora", bool)
    config.elsewhere("link `stack`", "lora_model_name")
    others = {"lora_", "lokr_", "oft_"} - {key.partition("_")[0] + "_"}
    config.unused(*[key for key in config.left if key.startswith(tuple(others))])
    config.without_effect({"lokr_dora_on_output": True})
    if config.left.get("layer_filter_preset") in PRESETS:
        config.unused("layer_filter", "layer_filter_regex")
    all_of_it = None if config.left.get("layer_filter") else "full"
    config.choose("layer_filter_preset", "preset", {name: name for name in PRESETS}, usual=all_of_it)
    config.put("learning_rate", "learning_rate", float)
    rate = config.values.get("learning_rate")
    for model_name in MODELS:
        model = config.inside(model_name, config.take(model_name, {}))
        model.put("learning_rate", "learning_rate", float)
        model.without_effect({"guidance_scale": 1.0})
        model.left = {key: value for key, value in model.left.items() if key == "guidance_scale"}
        config.add(model)
    optimiser = config.inside("optimizer", config.take("optimizer", {}))
    betas = [optimiser.take(key) for key in ("beta1", "beta2")]
    own = FOUND if optimiser.left.get("optimizer") == "PRODIGY" else ()
    kept = ("weight_decay", "eps", "momentum", "d_coef", *own)
    used = {key: optimiser.left.pop(key, None) for key in kept}
    optimiser.optimiser("optimizer", {**({"betas": betas} if None not in betas else {}), **used})
    # The rest belongs to other optimisers: OneTrainer writes the settings of all.
    optimiser.left.clear()
    config.add(optimiser)
    if config.left.get("learning_rate_scheduler") == "COSINE_WITH_RESTARTS":
        # It rises again as smoothly as it falls. The other one, with hard restarts, is the one here.
        config.notes.append("the schedule COSINE_WITH_RESTARTS, which rises smoothly there")
        config.unused("learning_rate_scheduler", "learning_rate_cycles")
    else:
        config.schedule("learning_rate_scheduler", "learning_rate_cycles", "constant")
    config.put("gradient_accumulation_steps", "accumulation", int, usual=1)
    updates = partial(_updates, config.values["accumulation"])
    config.put("learning_rate_warmup_steps", "warmup", updates, usual=200, zero=True)
    unlimited = config.left.get("clip_grad_norm", 1.0) is None
    config.put("clip_grad_norm", "max_grad_norm", float, usual=0.0 if unlimited else 1.0, zero=True)
    config.put("timestep_shift", "shift", float, usual=1)
    # Here 0 stands for the shift that is usual for the model. Other models ignore the setting there.
    name = str(config.left.get("model_type", ""))
    shift = 0.0 if name.startswith(DYNAMIC) or not name else None
    config.put("dynamic_timestep_shifting", "shift", lambda on: shift)
    averaged = str(config.take("ema", "OFF")).upper() != "OFF"
    if not averaged:
        config.unused("ema_decay")
    config.put("ema_decay", "ema", float, usual=0.999 if averaged else None)
    config.unused("ema_update_step_interval")
    config.resolution("resolution", _sides)
    count = next((count for start, count in ENCODED.items() if name.startswith(start)), 1 if name else 4)
    config.unused(*ENCODERS[count:])
    _encoders(config, rate)
    if config.left.get("mse_strength") == 0 and config.take("mae_strength"):
        config.values["loss_type"] = "l1"
        config.unused("mse_strength")
    if not config.left.get("masked_training"):
        config.unused("unmasked_probability", "unmasked_weight")
    config.read(TABLE)


def _sides(value: Any) -> list[int]:
    """The sides of squares. `1024x768` is a size, and has as many pixels as one."""
    sizes = [[int(side) for side in square.lower().split("x")] for square in str(value).split(",")]
    return [round(math.prod(size) ** (1 / len(size))) for size in sizes]


def _encoders(config: Config, rate: float | None) -> None:
    """The rate of the text encoders and the dropout of captions, which here are the same for all of them.

    `rate` is that of the whole training, which theirs is where none is given.
    """
    first: dict[str, Any] = {}
    for encoder_name in ENCODERS:
        config.elsewhere(SKIPPED, f"{encoder_name}_layer_skip")
        # A config of all settings always has this table.
        encoder = config.inside(encoder_name, config.take(encoder_name, {}))
        encoder.put("dropout_probability", "caption_dropout", float, zero=True)
        if encoder.left.get("train"):
            encoder.put("learning_rate", "text_learning_rate", float, usual=rate)
            if encoder.left.get("stop_training_after_unit", "NEVER") != "NEVER":
                encoder.notes.append(f"{encoder_name}: stop_training_after: it is trained to the end here")
        encoder.elsewhere("link `clip` and `captions`", "train")
        encoder.left.clear()
        for name, value in encoder.values.items():
            if first.setdefault(name, value) != value:
                encoder.notes.append(f"{encoder_name}: {name} = {value:g}: all have {first[name]:g}")
        config.add(encoder)
    config.values |= {"caption_dropout": 0.0, **first}


def _updates(accumulation: int, steps: Any) -> float:
    """A warm-up in updates. OneTrainer counts it in steps of the data; up to 1 it is a share of all."""
    count = float(steps)
    return float(int(count / accumulation)) if count > 1 else min(count, 0.999)
