"""bmaltais/kohya_ss: the JSON of the program that starts sd-scripts with the settings of a form.

Source of names and of what is passed on: `train_model` of its kohya_gui/lora_gui.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import kohya

NAME, FORM = "kohya_ss", "JSON with LoRA_type"
RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "LyCORIS_preset": "preset",
    "constrain": "constraint",
    "unit": "block_size",
}
DROPOUTS = ("rank_dropout", "module_dropout", "loraplus_lr_ratio")
SIZES = ("conv_dim", "conv_alpha")
CONVOLUTIONS = (*SIZES, "use_tucker")
OF_LYCORIS = ("LyCORIS_preset", "train_norm", "rank_dropout_scale")
NETWORKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Standard": ("lora", ()),
    "Kohya LoCon": ("lora", SIZES),
    "Kohya LoHa": ("loha", CONVOLUTIONS),
    "Kohya LoKr": ("lokr", (*CONVOLUTIONS, "factor")),
    "Kohya DyLoRA": ("dylora", ("unit",)),
    "LoRA-FA": ("lora_fa", ()),
    "Flux1": ("lora_flux", ()),
    "Flux1 OFT": ("oft_flux", ()),
    "HunyuanImage-2.1": ("lora_hunyuan_image", ()),
    "Anima": ("lora_anima", ()),
    "Lumina": ("lora_lumina", ()),
}
"""Kinds of sd-scripts: the network, without `networks.` in front, and the fields that become its arguments
besides `DROPOUTS`. Fields of other kinds do nothing."""
LYCORIS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "LyCORIS/BOFT": ("boft", (*CONVOLUTIONS, "constrain", "rescaled")),
    "LyCORIS/Diag-OFT": ("diag-oft", (*CONVOLUTIONS, "constrain", "rescaled")),
    "LyCORIS/DyLoRA": ("dylora", (*CONVOLUTIONS, "unit")),
    "LyCORIS/GLoRA": ("glora", CONVOLUTIONS),
    "LyCORIS/iA3": ("ia3", (*SIZES, "train_on_input")),
    "LyCORIS/LoCon": ("locon", (*CONVOLUTIONS, "dora_wd", "use_scalar")),
    "LyCORIS/LoHa": ("loha", (*CONVOLUTIONS, "dora_wd", "use_scalar")),
    "LyCORIS/LoKr": ("lokr", (*CONVOLUTIONS, "dora_wd", "use_scalar", "factor", "decompose_both")),
    "LyCORIS/Native Fine-Tuning": ("full", ()),
}
"""The same for kinds of the package LyCORIS, which have the fields `OF_LYCORIS` too."""
MODELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "flux1_checkbox": (
        "flux1_",
        (
            *("model_type", "ae", "clip_l", "t5xxl", "discrete_flow_shift", "model_prediction_type"),
            *("timestep_sampling", "split_mode", "train_blocks", "t5xxl_max_token_length", "guidance_scale"),
            *("enable_all_linear", "mem_eff_save", "apply_t5_attn_mask", "split_qkv", "train_t5xxl"),
            *("cpu_offload_checkpointing", "single_blocks_to_swap", "double_blocks_to_swap"),
        ),
    ),
    "sd3_checkbox": (
        "sd3_",
        (
            *("clip_g", "clip_g_dropout_rate", "logit_mean", "logit_std", "mode_scale", "save_clip"),
            *("pos_emb_random_crop_rate", "save_t5xxl", "t5xxl_device", "t5xxl_dtype", "weighting_scheme"),
        ),
    ),
    "hunyuan_image_checkbox": ("hunyuan_", ()),
    "anima_checkbox": ("anima_", ()),
    "lumina_checkbox": ("lumina_", ()),
}
"""For each model's box in the form: how names of its fields begin, and its fields with other names. Where the
box is not ticked they do nothing."""
UNSET = {
    "clip_skip": 1,
    "lr_scheduler_power": 1,
    "max_timestep": 1000,
    "max_token_length": 75,
    "huber_schedule": "snr",
}
"""Values that mean that the field is not set."""
OF_THE_PROGRAM = (
    *("LoRA_type", "additional_parameters", "epoch", "sdxl"),
    *("model_list", "training_comment", "dynamo_mode"),
    *("dynamo_use_dynamic", "dynamo_use_fullgraph", "extra_accelerate_launch_args", "sdxl_no_half_vae"),
    *("sdxl_cache_text_encoder_outputs", "vae_batch_size", "wandb_run_name", "lr_warmup"),
    *("noise_offset_type", "use_cp", *MODELS),
    *(box.replace("checkbox", "cache_text_encoder_outputs") for box in MODELS),
    *(box.replace("checkbox", "cache_text_encoder_outputs_to_disk") for box in MODELS),
)
"""Fields that are read above, or that change nothing that is learned."""


read = kohya.read


def config_of(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings that the program passes to sd-scripts, under the names of sd-scripts.

    None for the file of another program.

    The program passes on only the network's fields for the chosen kind. `epoch` counts where no steps are
    given. `lr_warmup` is in percent of the steps.
    """
    if "LoRA_type" not in table:
        return None
    kind = str(table["LoRA_type"])
    # An older name of it.
    kind = "LyCORIS/LoCon" if kind == "LoCon" else kind
    ticked = _of_its_model({key: value for key, value in table.items() if not _unset(key, value)})
    if kind in LYCORIS:
        algorithm, own = LYCORIS[kind]
        module, arguments, own = "lycoris.kohya", [f"algo={algorithm}"], (*OF_LYCORIS, *own)
    else:
        network, own = NETWORKS.get(kind, (kind, ()))
        network = "lora_sd3" if network == "lora" and "sd3_checkbox" in ticked else network
        module, arguments = f"networks.{network}", []
    arguments += [f"{RENAMED.get(key, key)}={ticked[key]}" for key in (*own, *DROPOUTS) if key in ticked]
    fields = {field for _, fields in (*NETWORKS.values(), *LYCORIS.values()) for field in fields}
    others = {*OF_THE_PROGRAM, *OF_LYCORIS, *DROPOUTS, *fields}
    settings = {RENAMED.get(key, key): value for key, value in ticked.items() if key not in others}
    settings |= {"network_module": module, "network_args": arguments}
    if "max_train_steps" not in ticked:
        settings.setdefault("max_train_epochs", ticked.get("epoch"))
    settings.setdefault("lr_scheduler_num_cycles", ticked.get("epoch"))
    if "lr_warmup_steps" not in ticked:
        settings["lr_warmup_steps"] = float(ticked.get("lr_warmup", 0)) / 100
    if ticked.get("noise_offset_type") == "Multires":
        settings.pop("noise_offset", None)
    else:
        for key in ("multires_noise_iterations", "multires_noise_discount"):
            settings.pop(key, None)
    if "unet_lr" in ticked and "text_encoder_lr" not in ticked:
        settings["network_train_unet_only"] = True
    if more := ticked.get("additional_parameters"):
        settings["additional_parameters"] = more
    return settings


def _of_its_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those of models whose box is not ticked. Those of the model lose their prefix."""
    kept = dict(fields)
    for box, (prefix, own) in MODELS.items():
        for key in fields:
            if key in own or (key.startswith(prefix) and key not in OF_THE_PROGRAM):
                del kept[key]
                if box in fields:
                    kept[key.removeprefix(prefix)] = fields[key]
    return kept


def _unset(key: str, value: Any) -> bool:
    """Whether a field is left as it is in an empty form. Numbers may be texts there."""
    return str(value) in ("", "0", "0.0", "False", "None", "[]", str(UNSET.get(key, "")))
