"""kohya-ss/sd-scripts and musubi-tuner: a command line, or a TOML whose sections mean nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from .....lycoris_ops import PRESETS
from ....files.pairs import HIGH, LOW
from ...data.losses import LOSSES
from ..config import ALGORITHMS, DTYPES, OF_PICTURES, SAMPLED, SAMPLING, SKIPPED, Config, Table, flat, pairs

NAME, FORM = "kohya", "TOML or a command line with network_dim"
OPTIONS = {
    "factor": "factor",
    "decompose_both": "decompose_both",
    "conv_dim": "conv_rank",
    "conv_alpha": "conv_alpha",
    "use_tucker": "tucker",
    "rs_lora": "rslora",
}
"""Arguments of its networks that are options of layers here."""
OF_ONE_MODEL = re.compile(r"(networks\.(?:lora|oft))_(?!fa$)(\w+)")
"""Networks such as `networks.lora_wan`, which differ only in the layers that they find."""
TIMES: Mapping[str, tuple[str, float | None]] = {
    "uniform": ("uniform", 1.0),
    "sigmoid": ("logit-normal", 1.0),
    "shift": ("logit-normal", None),
    **dict.fromkeys(("flux_shift", "flux2_shift", "qwen_shift", "krea2_shift"), ("logit-normal", 0.0)),
    "sigma": ("uniform", None),
}
WEIGHTED = ("sigma_sqrt", "cosmap")
"""The weighting schemes that weigh losses. The others say how the times of `sigma` are drawn."""
SILENT = {
    "flux": ("sigma", 3.0),
    "sd3": ("sigma", 1.0),
    "hunyuan_image": ("sigma", 5.0),
    "lumina": ("shift", 6.0),
    "anima": ("sigmoid", 1.0),
}
"""How the scripts for these models draw times, and with which shift, where a config does not say it."""
FILES = {"gemma2": "lumina", "byt5": "hunyuan_image", "qwen3": "anima", "ae": "flux", "clip_g": "sd3"}
"""The model by a file that its script loads, for networks that are not for one model."""
MUSUBI = ("sigma", 1.0)
"""The same for musubi-tuner, whose configs name a `dit`."""
ON_PICTURES = ("caption_extension", "shuffle_caption", "keep_tokens", "flip_aug")
"""Settings of data sets that inputs of LyCORIS Training Pictures are for."""
BUCKETS = ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")
BOUNDARIES = (0.875, 0.9, 875, 900)
"""The times between the experts of Wan 2.2."""


TABLE = Table(
    inputs={
        "gradient_accumulation_steps": ("accumulation", int, 1),
        "max_grad_norm": ("max_grad_norm", float, 1.0, True),
        "seed": ("seed", int),
        "debiased_estimation_loss": ("weighting", lambda on: "debiased"),
        "noise_offset": ("noise_offset", float),
        "huber_c": ("huber_c", float),
        "caption_dropout_rate": ("caption_dropout", float, 0),
        "scale_weight_norms": ("max_weight_norm", float),
        "prior_loss_weight": ("prior_weight", float, None, True),
        "mixed_precision": ("precision", {"bf16": "bf16", "fp16": "fp16", "no": "auto"}),
        "gradient_checkpointing": ("checkpointing", lambda value: "on"),
        "save_every_n_steps": ("checkpoint_every", int),
        "sample_every_n_steps": ("sample_every", int),
        "output_name": ("filename_prefix", lambda name: f"loras/{name}"),
        "save_precision": ("dtype", DTYPES),
    },
    elsewhere={
        "link the model": "pretrained_model_name_or_path dit task model_version model_type",
        "link on LyCORIS Training Pictures": "vae clip_l clip_g t5xxl ae gemma2 t5 clip "
        "text_encoder text_encoder1 text_encoder2 image_encoder",
        "link `stack`": "network_weights dim_from_weights",
        "link `masks`": "masked_loss alpha_mask",
        SAMPLED: "sample_prompts",
        SKIPPED: "clip_skip",
        SAMPLING: "v_parameterization zero_terminal_snr",
        OF_PICTURES: " ".join(("train_data_dir", *ON_PICTURES)),
        "link `regularisation_latents`": "reg_data_dir",
    },
    unused=f"""
        output_dir logging_dir log_with log_prefix xformers sdpa mem_eff_attn lowram cache_latents
        cache_latents_to_disk cache_text_encoder_outputs no_half_vae cache_text_encoder_outputs_to_disk
        max_data_loader_n_workers highvram full_bf16 persistent_data_loader_workers save_model_as
        save_last_n_steps {" ".join(BUCKETS)} sample_sampler huggingface_repo_id huggingface_token
        wandb_api_key fp8_base blocks_to_swap fp8_scaled fp8_vl fp8_llm fp8_t5 offload_inactive_dit
        disable_numpy_memmap gradient_checkpointing_cpu_offload sample_at_first sample_every_n_epochs
        split_attn flash_attn sage_attn vae_dtype force_v2_1_time_embedding num_cpu_threads_per_process
        num_processes num_machines multi_gpu gpu_ids dynamo_backend main_process_port""",
    without_effect={
        **dict.fromkeys(("guidance_scale", "sigmoid_scale", "logit_std"), 1.0),
        "mode_scale": 1.29,
        "model_prediction_type": "raw",
        "lr_scheduler_power": 1,
    },
)


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of this trainer; None for others."""
    settings = dict(flat(table))
    ours = settings.keys() & {"network_dim", "network_module", "network_args"} and "LoRA_type" not in settings
    return settings if ours else None


def read(config: Config) -> None:
    config.put("network_dim", "rank", int, usual=4)
    # Its default is 1, not the rank. In both places 0 stands for the rank.
    config.put("network_alpha", "alpha", float, usual=1, zero=True)
    more = config.inside("network_args", pairs(config.take("network_args", ())))
    module = str(config.left.get("network_module", ""))
    lycoris = module.startswith("lycoris")
    if match := OF_ONE_MODEL.fullmatch(module):
        config.left["network_module"] = match[1]
    if lycoris:
        config.unused("network_module")
        more.choose("algo", "algorithm", ALGORITHMS, usual="locon")
    else:
        config.choose("network_module", "algorithm", ALGORITHMS, usual="networks.lora")
    # LyCORIS trains convolutions unless their rank is 0; kohya's own networks only where they have a rank.
    convolutions = more.left.get("conv_dim", "" if lycoris else "0") != "0"
    preset = "full" if convolutions else "full-lin" if lycoris else None
    more.choose("preset", "preset", {name: name for name in PRESETS}, usual=preset)
    algorithm = {**config.values, **more.values}.get("algorithm", "lora")
    more.everywhere(algorithm, OPTIONS)
    more.whole(algorithm, "full_matrix")
    more.put("dora_wd", "dora", lambda text: text.lower() == "true")
    more.put("loraplus_lr_ratio", "loraplus_ratio", float)
    more.put("loraplus_unet_lr_ratio", "loraplus_ratio", float)
    more.put("rank_dropout", "rank_dropout", float)
    more.put("module_dropout", "module_dropout", float)
    config.add(more)

    config.put("learning_rate", "learning_rate", float)
    _text_encoders(config, match[2] if match else "")
    config.put("unet_lr", "learning_rate", float)
    config.optimiser("optimizer_type", pairs(config.take("optimizer_args", ())))
    if config.left.get("lr_scheduler") == "polynomial" and config.left.get("lr_scheduler_power", 1) == 1:
        config.left["lr_scheduler"] = "linear"
    config.schedule("lr_scheduler", "lr_scheduler_num_cycles", "constant")
    # Its default is no warm-up.
    config.put("lr_warmup_steps", "warmup", float, usual=0)
    by_epochs = bool(config.left.get("max_train_epochs"))
    config.put("max_train_steps", "steps", int, usual=None if by_epochs else 1600)
    config.put("max_train_epochs", "epochs", int, usual=0)
    if by_epochs:
        config.notes.append("max_train_epochs: repeats that all pictures share do not lengthen an epoch here")
    # A data set's own file may say it too.
    config.put("train_batch_size", "batch_size", int, usual=None if "dataset_config" in config.left else 1)
    config.elsewhere("paste that file too, for its batch size", "dataset_config")

    config.min_snr("min_snr_gamma")
    config.choose("loss_type", "loss_type", {name: name for name in LOSSES})
    schedule = config.left.pop("huber_schedule", "snr")
    if config.values.get("loss_type") in ("huber", "smooth_l1") and schedule != "constant":
        config.notes.append(f"huber_schedule = {schedule}: huber_c is the same for all noise here")
    _times(config, match[2] if match else "")
    _experts(config)
    config.resolution("resolution", lambda value: [side_of(value)])
    config.read(TABLE)


def side_of(value: Any) -> int:
    """The side of the square with as many pixels as a resolution: a side, or a width and a height."""
    sides_given: list[Any] = (
        value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    )
    sides = [int(side) for side in sides_given]
    return round(math.prod(sides) ** (1 / len(sides)))


def _times(config: Config, model: str) -> None:
    """How times are drawn; `model` is the end of the network's name where it is for one model."""
    if "training_shift" in config.left:
        config.left["discrete_flow_shift"] = config.take("training_shift")
    model = model or next((model for file, model in FILES.items() if config.left.get(file)), "")
    sampling, shift = MUSUBI if "dit" in config.left else SILENT.get(model, (None, 1.0))
    choices = dict(TIMES)
    scheme = config.left.get("weighting_scheme")
    if scheme == "logit_normal":
        choices["sigma"] = ("logit-normal", None)
    elif scheme == "mode" and config.left.get("timestep_sampling", sampling) == "sigma":
        config.unused("timestep_sampling")
        return
    if scheme not in (None, *WEIGHTED):
        config.unused("weighting_scheme")
    config.times("timestep_sampling", choices, usual=sampling, shift="discrete_flow_shift", usual_shift=shift)


def _experts(config: Config) -> None:
    """The expert of Wan 2.2 by the range of its times."""
    config.elsewhere("link both models; the steps are for each", "dit_high_noise")
    if config.left.get("timestep_boundary") in BOUNDARIES:
        config.unused("timestep_boundary")
    if "A14B" not in str(config.left.get("task")):
        return
    config.without_effect({"max_timestep": 1000})
    for key, expert in (("min_timestep", HIGH), ("max_timestep", LOW)):
        config.put(key, "expert", dict.fromkeys(BOUNDARIES, expert).get)
    if "expert" in config.values and not config.take("preserve_distribution_shape"):
        config.notes.append("min_timestep, max_timestep: here the times keep their shape between them")


def _text_encoders(config: Config, model: str) -> None:
    """The rate of the text encoders, which are trained too unless a config says otherwise.

    `model` is the end of the network's name where it is for one model.
    """
    text_rate = config.left.get("text_encoder_lr")
    several = cast("list[Any]", text_rate) if isinstance(text_rate, list) else [text_rate]
    rates = [float(rate) for rate in several if rate is not None]
    # An encoder with the rate 0 is not trained.
    first = next(filter(None, rates), None)
    own = "dit" in config.left or model == "hunyuan_image"
    trained = not (config.left.get("network_train_unet_only") or own) and (first is not None or not rates)
    config.unused("network_train_unet_only")
    config.left["text_encoder_lr"] = first
    rate = config.values.get("learning_rate") if trained else None
    config.put("text_encoder_lr", "text_learning_rate", float, usual=rate)
    if trained:
        config.notes.append("the text encoders are trained too: link `clip` and `captions`")
    if len(set(rates)) > 1:
        config.notes.append(f"text_encoder_lr = {text_rate}: all have {first}")
