"""ostris/ai-toolkit: a YAML with `config.process`. Only the first process is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ....files.pairs import HIGH, LOW
from ..config import ALGORITHMS, DTYPES, OF_PICTURES, SAMPLED, WHOLE, Config, Table

NAME, FORM = "ai-toolkit", "YAML with config.process"
PARTS = ("network", "train", "save", "sample", "model")
WEIGHTED = 1.66
"""Its `weighted` draws times evenly and weighs losses by a table. The table is nearly the density of even
times with this shift: the mean is the same, 0.584, and the divergence is 0.006."""
SHIFTS = {
    "wan22_5b": 5.0,
    "lumina2": 6.0,
    **dict.fromkeys(("ace_step", "anima", "boogu", "ernie", "hidream", "sd3", "wan2", "zimage"), 3.0),
    **dict.fromkeys(("ideogram4", "omnigen2"), 1.0),
}
"""The shifts of its models whose shift does not grow with the picture, by how their names begin."""
PAIR = "wan22_14b"
"""How the names of its models begin that are two experts."""


TABLE = Table(
    inputs={
        "train.max_grad_norm": ("max_grad_norm", float, 1.0),
        "train.loss_type": ("loss_type", {"mse": "l2", "mae": "l1"}),
        "train.noise_offset": ("noise_offset", float),
        "train.dtype": ("precision", {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}),
        "train.gradient_checkpointing": ("checkpointing", lambda value: "on"),
        "save.save_every": ("checkpoint_every", int),
        "save.max_step_saves_to_keep": ("keep", int),
        "save.dtype": ("dtype", DTYPES),
        "sample.sample_every": ("sample_every", int),
        "sample.seed": ("seed", int),
        "name": ("filename_prefix", lambda name: f"loras/{name}"),
    },
    elsewhere={
        "link `clip` and `captions`": "train.train_text_encoder",
        OF_PICTURES: "datasets trigger_word",
        "set on Train LyCORIS Slider": "slider",
        "link the model": "model.name_or_path model.arch model.is_flux model.is_v3",
        SAMPLED: "sample.prompts sample.samples",
    },
    unused="""
        type training_folder device performance_log_every train.noise_scheduler logging train.train_unet
        train.disable_sampling train.unload_text_encoder save.save_format save.push_to_hub model.quantize
        model.quantize_te meta model.qtype model.qtype_te model.low_vram train.cache_text_embeddings
        sqlite_db_path train.skip_first_sample train.force_first_sample train.switch_boundary_every
        model.compile model.quantize_kwargs model.layer_offloading
        model.layer_offloading_transformer_percent model.layer_offloading_text_encoder_percent""",
    without_effect={
        "train.content_or_style": "balanced",
        **{f"train.{key}_preservation_multiplier": 1.0 for key in ("diff_output", "blank_prompt")},
    },
)


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of this trainer; None for others."""
    inner = table.get("config")
    processes = inner.get("process") if isinstance(inner, dict) else None
    if not (isinstance(processes, list) and processes and isinstance(processes[0], dict)):
        return None
    process, config = cast("dict[str, Any]", processes[0]), cast("dict[str, Any]", inner)
    settings: dict[str, Any] = {"name": config.get("name")}
    for section, value in process.items():
        nested = section in PARTS and isinstance(value, dict)
        settings |= (
            {f"{section}.{key}": member for key, member in value.items()} if nested else {section: value}
        )
    return settings


def read(config: Config) -> None:
    if not any(key.startswith("network.") for key in config.left):
        config.notes.append("no network: an adapter is trained here")
    config.choose("network.type", "algorithm", ALGORITHMS, usual="lora")
    config.put("network.linear", "rank", int, usual=4)
    config.put("network.rank", "rank", int)
    # Its templates have these settings for any kind.
    algorithm = config.values.get("algorithm", "lora")
    config.left.setdefault("network.lokr_full_rank", True)
    config.whole(algorithm, "network.lokr_full_rank")
    scheduler = config.left.get("train.noise_scheduler")
    # Its forms give convolutions a rank for every model, and flow models have none.
    if scheduler != "flowmatch" and config.left.get("network.conv"):
        config.values["preset"] = "full"
    if scheduler == "flowmatch" or config.values["rank"] == WHOLE:
        config.unused("network.conv", "network.conv_alpha")
    options = {"lokr_factor": "factor", "conv": "conv_rank", "conv_alpha": "conv_alpha"}
    config.everywhere(algorithm, {f"network.{theirs}": ours for theirs, ours in options.items()})
    # Its default is 1, not the rank.
    config.put("network.alpha", "alpha", float, usual=1)
    config.put("network.linear_alpha", "alpha", float)
    # It trains at 1 with optimisers that find the rate, if they are given one for others.
    finds = str(config.left.get("train.optimizer")).lower().startswith(("prodigy", "dadapt"))
    config.put("train.lr", "learning_rate", lambda rate: 1.0 if finds and float(rate) < 0.1 else float(rate))
    config.optimiser("train.optimizer", config.take("train.optimizer_params", {}))
    rising = config.left.get("train.lr_scheduler") == "constant_with_warmup"
    if config.left.get("train.lr_scheduler") == "linear":
        # Torch's schedule of this name rises, from a third of the rate.
        config.notes.append("the schedule linear, which rises there")
        config.unused("train.lr_scheduler")
    else:
        config.schedule("train.lr_scheduler", usual="constant")
    schedule = config.inside("train.lr_scheduler_params", config.take("train.lr_scheduler_params", {}))
    schedule.put("num_warmup_steps", "warmup", float, usual=1000 if rising else 0, zero=True)
    config.add(schedule)
    arch = "lumina2" if config.take("model.is_lumina2") else str(config.left.get("model.arch", ""))
    _experts(config, arch)
    # It has no epochs. Here they would count in place of the steps.
    config.values["epochs"] = 0
    config.put("train.batch_size", "batch_size", int, usual=1)
    config.put("train.gradient_accumulation_steps", "accumulation", int, usual=1)
    # It refuses a config in which both are above 1.
    other = config.values["accumulation"]
    config.put("train.gradient_accumulation", "accumulation", lambda count: max(int(count), other))
    if scheduler not in (None, "flowmatch"):
        # Its forms have a type for every model, and only flow models heed it.
        config.left["train.timestep_type"] = "linear"
    shift = next((shift for start, shift in SHIFTS.items() if arch.startswith(start)), 0.0)
    config.times(
        "train.timestep_type",
        {
            "sigmoid": ("logit-normal", 1.0),
            "linear": ("uniform", 1.0),
            "weighted": ("uniform", WEIGHTED),
            **dict.fromkeys(("shift", "flux_shift", "lumina2_shift"), ("uniform", shift)),
        },
        usual=scheduler and "sigmoid",
    )
    config.min_snr("train.min_snr_gamma")
    average = config.inside("train.ema_config", config.take("train.ema_config", {}))
    averaged = average.take("use_ema")
    if not averaged:
        average.left.clear()
    average.put("ema_decay", "ema", float, usual=0.99 if averaged else None)
    config.add(average)
    datasets = [dataset for dataset in config.left.get("datasets") or [] if isinstance(dataset, dict)]
    # Only the first data set is read: here all data sets share one dropout.
    first = config.inside("datasets", datasets[0] if datasets else {})
    first.put("caption_dropout_rate", "caption_dropout", float, usual=0)
    # Each of several is a data set of its own there.
    first.resolution("resolution", lambda value: [*map(int, value if isinstance(value, list) else [value])])
    first.left.clear()
    config.add(first)
    if not config.left.get("train.diff_output_preservation"):
        config.unused("train.diff_output_preservation_class")
    config.read(TABLE)
    config.unused(*[key for key in config.left if key.startswith("sample.")])


def _experts(config: Config, arch: str) -> None:
    """The experts that are trained, and the steps, which the two share there. Here each has as many."""
    inner = config.inside("model.model_kwargs", config.take("model.model_kwargs", {}))
    off = {key: not inner.left.get(key, True) for key in ("train_high_noise", "train_low_noise")}
    inner.left |= off
    inner.put("train_high_noise", "expert", lambda off: LOW)
    inner.put("train_low_noise", "expert", lambda off: HIGH)
    inner.without_effect({"match_target_res": False})
    both = arch.startswith(PAIR) and not any(off.values())
    if both:
        config.elsewhere("link both models, and each has half of the steps", "model.arch")
    config.put("train.steps", "steps", lambda steps: -(-int(steps) // 2) if both else int(steps), usual=1000)
    config.add(inner)
