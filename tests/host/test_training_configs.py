"""Configs of other trainers as settings of Train LoRA / LyCORIS."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hosting import Host

from tools import other_trainers

pytestmark = pytest.mark.host

KOHYA = """
[network]
network_module = "lycoris.kohya"
network_dim = 32
network_args = ["algo=lokr", "factor=8", "dora_wd=True", "loraplus_lr_ratio=16"]
[train]
pretrained_model_name_or_path = "sdxl.safetensors"
train_data_dir = "img"
learning_rate = 5e-5
unet_lr = 2e-4
text_encoder_lr = [1e-5, 2e-5]
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.05", "betas=0.9, 0.99"]
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 3
lr_warmup_steps = 100
max_train_epochs = 10
train_batch_size = 2
min_snr_gamma = 5
loss_type = "huber"
mixed_precision = "bf16"
gradient_checkpointing = true
save_precision = "fp16"
output_name = "cat"
xformers = true
keep_tokens = 1
clip_skip = 2
masked_loss = true
prior_loss_weight = 0
zero_terminal_snr = true
sample_prompts = "prompts.txt"
"""
AI_TOOLKIT = """
job: extension
config:
  name: dog
  process:
    - type: sd_trainer
      network: {type: lora, linear: 16, linear_alpha: 8}
      save: {dtype: float16, save_every: 250}
      datasets: [{folder_path: /pictures, caption_dropout_rate: 0.05, resolution: [512, 768]}]
      train:
        batch_size: 1
        steps: 2000
        lr: 1e-4
        optimizer: adamw8bit
        optimizer_params: {weight_decay: 1e-4}
        timestep_type: sigmoid
        dtype: bf16
        gradient_checkpointing: true
        ema_config: {use_ema: true, ema_decay: 0.99}
        do_differential_guidance: true
      model: {name_or_path: black-forest-labs/FLUX.1-dev, quantize: true}
      sample: {sample_every: 250, prompts: [a dog]}
      slider: {targets: [{target_class: dog, positive: old dog, negative: puppy}]}
"""
ONETRAINER = json.dumps(
    {
        "__version": 6,
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_XL_10_BASE",
        "learning_rate": 0.0003,
        "learning_rate_scheduler": "REX",
        "learning_rate_warmup_steps": 200,
        "epochs": 100,
        "batch_size": 4,
        "peft_type": "LOHA",
        "lora_rank": 8,
        "lora_decompose": True,
        "optimizer": {
            "optimizer": "PRODIGY",
            "beta1": 0.9,
            "beta2": 0.99,
            "weight_decay": 0.01,
            "d_coef": 2.0,
            "safeguard_warmup": True,
        },
        "text_encoder": {"train": True, "dropout_probability": 0.1, "stop_training_after_unit": "EPOCH"},
        "text_encoder_2": {"train": True, "learning_rate": 1e-5, "dropout_probability": 0.0},
        "loss_weight_fn": "DEBIASED_ESTIMATION",
        "timestep_distribution": "LOGIT_NORMAL",
        "ema": "CPU",
        "ema_decay": 0.999,
        "train_dtype": "BFLOAT_16",
        "layer_filter": "attn",
    }
)


def _toolkit(process: str) -> str:
    return f"config: {{process: [{{{process}}}]}}"


WANTED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "kohya": (
        KOHYA,
        {
            "algorithm": "lokr",
            "rank": 32,
            "layers.alpha": 1.0,
            "layers.dora": True,
            "layers.preset": "full",
            "layers.overrides": "*: factor 8",
            "learning_rate": 2e-4,
            "optimisation.text_learning_rate": 1e-5,
            "optimisation.optimiser": "adamw8bit",
            "optimisation.weight_decay": 0.05,
            "optimisation.optimiser_args": "betas=0.9,0.99",
            "optimisation.loraplus_ratio": 16.0,
            "optimisation.schedule": "cosine",
            "optimisation.restarts": 2,
            "optimisation.warmup": 100.0,
            "optimisation.epochs": 10,
            "optimisation.batch_size": 2,
            "noise.weighting": "min-snr",
            "noise.loss_type": "huber",
            # Theirs is none, where a config is silent.
            "regularisation.caption_dropout": 0.0,
            "regularisation.prior_weight": 0.0,
            "speed.precision": "bf16",
            "speed.checkpointing": "on",
            "output.dtype": "float16",
            "filename_prefix": "loras/cat",
        },
        (
            "train_data_dir, keep_tokens: set on LyCORIS Training Pictures",
            "pretrained_model_name_or_path: link the model",
            "the text encoders are trained too: link `clip` and `captions`",
            "text_encoder_lr = [1e-05, 2e-05]: all have 1e-05",
            "max_train_epochs: repeats that all pictures share do not lengthen an epoch here",
            "huber_schedule = snr: huber_c is the same for all noise here",
            "masked_loss: link `masks`",
            "clip_skip: put CLIP Set Last Layer before LyCORIS Training Pictures",
            "zero_terminal_snr: link the model through ModelSamplingDiscrete",
            "sample_prompts: link `sample_positive`, and set `output.sample_settings`",
        ),
    ),
    "ai-toolkit": (
        AI_TOOLKIT,
        {
            "algorithm": "lora",
            "rank": 16,
            "layers.alpha": 8.0,
            "steps": 2000,
            "learning_rate": 1e-4,
            "optimisation.optimiser": "adamw8bit",
            "optimisation.weight_decay": 1e-4,
            "optimisation.schedule": "constant",
            "optimisation.warmup": 0.0,
            "optimisation.epochs": 0,
            "noise.times": "logit-normal",
            "noise.shift": 1.0,
            "speed.precision": "bf16",
            "speed.checkpointing": "on",
            "regularisation.ema": 0.99,
            "output.checkpoint_every": 250,
            "output.dtype": "float16",
            "output.sample_every": 250,
            "filename_prefix": "loras/dog",
            "regularisation.caption_dropout": 0.05,
        },
        (
            "train.do_differential_guidance = True",
            "model.name_or_path: link the model",
            "slider: set on Train LyCORIS Slider",
            "sample.prompts: link `sample_positive`, and set `output.sample_settings`",
        ),
    ),
    "OneTrainer": (
        ONETRAINER,
        {
            "algorithm": "loha",
            "rank": 8,
            "layers.alpha": 1.0,
            "layers.dora": True,
            "learning_rate": 3e-4,
            "optimisation.optimiser": "prodigy",
            "optimisation.schedule": "rex",
            "optimisation.optimiser_args": "betas=0.9,0.99 d_coef=2.0 safeguard_warmup=True",
            "optimisation.text_learning_rate": 3e-4,
            "regularisation.caption_dropout": 0.1,
            "optimisation.weight_decay": 0.01,
            "optimisation.warmup": 200.0,
            "optimisation.epochs": 100,
            "optimisation.batch_size": 4,
            "noise.weighting": "debiased",
            "noise.times": "logit-normal",
            "noise.shift": 1.0,
            "regularisation.ema": 0.999,
            "speed.precision": "bf16",
        },
        (
            "layer_filter = attn",
            "model_type: link the model",
            "text_encoder: stop_training_after: it is trained to the end here",
            "text_encoder_2: caption_dropout = 0: all have 0.1",
            "text_encoder_2: text_learning_rate = 1e-05: all have 0.0003",
        ),
    ),
}


LEFT_OUT = {
    "optimisation.batch_size": 1,
    "optimisation.accumulation": 1,
    "optimisation.max_grad_norm": 1.0,
}
"""What all of these trainers do unless a config says otherwise."""
FORM = {
    "LoRA_type": "LyCORIS/LoKr",
    "LyCORIS_preset": "attn-mlp",
    "network_dim": 16,
    "network_alpha": 8,
    "conv_dim": 4,
    "conv_alpha": 1,
    "factor": 6,
    "train_on_input": True,
    "unit": 1,
    "learning_rate": "0.0001",
    "unet_lr": "0.0002",
    "text_encoder_lr": "",
    "optimizer": "Prodigy",
    "optimizer_args": '"d_coef=2.0" "weight_decay=0.4"',
    "lr_scheduler": "cosine_with_restarts",
    "lr_scheduler_num_cycles": "",
    "lr_warmup": "10",
    "epoch": 3,
    "max_train_epochs": "",
    "max_train_steps": "0",
    "train_batch_size": 2,
    "max_resolution": "512,512",
    "noise_offset": 0.05,
    "noise_offset_type": "Original",
    "multires_noise_discount": 0.2,
    "keep_tokens": "2",
    "clip_skip": "1",
    "num_cpu_threads_per_process": 2,
}
"""A form of kohya_ss as the program saves it: with fields of all kinds, and numbers as texts."""
WANTED["kohya_ss"] = (
    json.dumps(FORM),
    {
        "rank": 16,
        "layers.alpha": 8.0,
        "algorithm": "lokr",
        "layers.preset": "attn-mlp",
        "layers.overrides": "*: factor 6, conv_rank 4, conv_alpha 1",
        "learning_rate": 2e-4,
        "optimisation.optimiser": "prodigy",
        "optimisation.weight_decay": 0.4,
        "optimisation.optimiser_args": "d_coef=2.0",
        "optimisation.schedule": "cosine",
        "optimisation.restarts": 2,
        "optimisation.warmup": 0.1,
        "optimisation.epochs": 3,
        "optimisation.batch_size": 2,
        "noise.noise_offset": 0.05,
        "regularisation.caption_dropout": 0.0,
    },
    ("keep_tokens: set on LyCORIS Training Pictures", "resolution = 512: set on LyCORIS Training Pictures"),
)


@pytest.mark.parametrize(
    ("form", "algorithm", "preset"),
    [
        ("Standard", "lora", None),
        ("Flux1", "lora", None),
        ("Kohya LoCon", "lora", "full"),
        ("Kohya LoHa", "loha", "full"),
        ("LoCon", "lora", "attn-mlp"),
        ("LyCORIS/LoHa", "loha", "attn-mlp"),
        ("LyCORIS/iA3", "ia3", "attn-mlp"),
        ("LyCORIS/Diag-OFT", "oft", "attn-mlp"),
        ("LyCORIS/Native Fine-Tuning", "full", "attn-mlp"),
        ("LyCORIS/DyLoRA", None, "attn-mlp"),
    ],
)
def test_the_kind_of_a_form_decides_which_of_its_fields_count(
    host: Host, form: str, algorithm: str | None, preset: str | None
) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    found = configs.translated(json.dumps({**FORM, "LoRA_type": form}))
    values = found.values
    assert (values.get("algorithm"), values.get("layers.preset")) == (algorithm, preset)
    assert ("factor" in values.get("layers.overrides", "")) == (algorithm == "lokr")
    assert any("dylora" in note for note in found.notes) == (algorithm is None)


@pytest.mark.parametrize("trainer", WANTED)
def test_a_config_becomes_values_that_the_node_takes(host: Host, trainer: str) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    text, values, notes = WANTED[trainer]
    found = configs.translated(text)
    assert (found.trainer, found.values) == (trainer, {**LEFT_OUT, **values})
    assert set(notes) <= set(found.notes)
    # What changes nothing that is learned needs no note.
    assert not any("xformers" in note for note in found.notes)
    schema = host.module("lycoris_nodes.training.node.schema")
    # The node takes each of them as it is.
    literals = host.module("lycoris_nodes.schema.checks").literals
    taken = literals(schema.inputs(), found.values)
    assert all(taken[name.rpartition(".")[2]] == value for name, value in found.values.items())


KOHYA_SETS = """
[general]
resolution = 512
[[datasets]]
{0}
  [[datasets.subsets]]
  image_dir = "/a"
[[datasets]]
resolution = [1152, 896]
  [[datasets.subsets]]
  image_dir = "/{1}"
"""


@pytest.mark.parametrize(
    ("text", "resolution"),
    [
        (AI_TOOLKIT, "768, 512"),
        (AI_TOOLKIT.replace("[512, 768]", "640"), "640"),
        (AI_TOOLKIT.replace("[512, 768]", "{a: 1}"), None),
        ('{"training_method": "LORA", "learning_rate": 1, "resolution": "512,1024x768"}', "887, 512"),
        (json.dumps(FORM), "512"),
        (KOHYA_SETS.format("", "a"), "1016, 512"),
        (KOHYA_SETS.format("resolution = 768", "a"), "1016, 768"),
        (KOHYA_SETS.format("", "b"), "512"),
    ],
)
def test_resolutions_become_those_of_the_pictures(host: Host, text: str, resolution: str | None) -> None:
    found = host.module("lycoris_nodes.training.configs.config").translated(text)
    assert found.pictures == ({"resolution": resolution} if resolution else {})
    assert any("resolution = " in note and "set on LyCORIS Training Pictures" in note for note in found.notes)


@pytest.mark.parametrize("text", ["", "{", "a: [", "[1, 2]", "just words", '{"steps": 3}'])
def test_other_texts_are_refused_with_what_is_known(host: Host, text: str) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    with pytest.raises(host.ops.LycorisError, match=r"not a config|no known trainer"):
        configs.translated(text)


@pytest.mark.parametrize(
    ("text", "which"),
    [
        ("network_dim = 'much'", "network_dim: .*found much"),
        ("network_dim = inf", "network_dim: .*found inf"),
        ("network_dim = 4\nnetwork_args = ['rank_dropout=x']", "network_args: rank_dropout: .*found x"),
        ("network_dim = 4\nnetwork_args = 3", ""),
        ("config: {process: [{train: {ema_config: [1]}}]}", ""),
        ('{"training_method": "LORA", "learning_rate": 1, "optimizer": "ADAMW"}', ""),
        ('{"LoRA_type": "Standard", "lr_warmup": "much"}', "cannot be read.*much"),
        ('{"LoRA_type": "Standard", "lr_warmup": "-10"}', r"lr_warmup_steps: .*range \(found -0\.1; .* 0 to"),
        (
            "network_dim = 4\nlr_warmup_steps = -5",
            r"lr_warmup_steps: .*range \(found -5; expected 0 to 100000",
        ),
        (
            "network_dim = 4\nnetwork_args = ['rank_dropout=2']",
            "network_args: rank_dropout: .*range.*found 2",
        ),
        ("config:\n  process:\n    - a: 1\n   - b: 2", r"not a config.*as YAML: .*line 4"),
        ("[train]\nnetwork_dim = 4\nlr = much", r"not a config.*as TOML: .*line 3"),
        ('{"training_method": "LORA",\n "learning_rate" 1}', r"not a config.*as JSON: .*line 2"),
        ("python train_network.py --network_dim 4 --output_name 'a", "as a command line: No closing"),
        ("accelerate launch train_network.py --config_file a.toml", "Paste the text of a.toml"),
    ],
)
def test_what_cannot_be_read_is_refused_and_says_where(host: Host, text: str, which: str) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    with pytest.raises(host.ops.LycorisError, match=which or "cannot be read"):
        configs.translated(text)


def test_what_an_optimiser_without_a_counterpart_was_given_is_noted_with_it(host: Host) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    text = 'network_dim = 4\noptimizer_type = "Lion"\noptimizer_args = ["weight_decay=0.1", "eps=1e-30"]'
    found = configs.translated(text)
    assert "optimizer_type = Lion weight_decay=0.1 eps=1e-30" in found.notes
    assert not found.values.keys() & {"optimisation.weight_decay", "optimisation.optimiser_args"}


def test_a_config_that_trains_no_adapter_says_so(host: Host) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    text = '{"training_method": "FINE_TUNE", "learning_rate": 1e-5, "text_encoder": {"train": true}}'
    found = configs.translated(text)
    assert "training_method = FINE_TUNE: an adapter is trained here" in found.notes
    assert "text_encoder: train: link `clip` and `captions`" in found.notes
    assert found.values["rank"] == 16


def test_arguments_may_be_one_text(host: Host) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    # With a byte order mark, as from some editors.
    found = configs.translated(
        "\ufeffnetwork_dim = 4\noptimizer_args = 'weight_decay=0.1 \"betas=0.9,0.95\"'"
    )
    assert found.values["optimisation.weight_decay"] == 0.1
    assert found.values["optimisation.optimiser_args"] == "betas=0.9,0.95"


@pytest.mark.parametrize(
    ("text", "alpha"),
    [
        ("network_dim = 4", 1.0),
        # The rank.
        ("network_dim = 4\nnetwork_alpha = 0", 0.0),
        # In YAML this is a table, because of the colon.
        ('python a.py --network_dim 4 --training_comment "my cat: a test"', 1.0),
        ("config: {process: [{network: {linear: 16}}]}", 1.0),
        ("config: {process: [{network: {linear: 16, alpha: 4}}]}", 4.0),
        ("config: {process: [{network: {rank: 16, alpha: 4, linear_alpha: 8}}]}", 8.0),
    ],
)
def test_alpha_is_the_trainers_own_where_a_config_says_nothing(host: Host, text: str, alpha: float) -> None:
    values = host.module("lycoris_nodes.training.configs.config").translated(text).values
    assert values["layers.alpha"] == alpha and values["rank"] in (4, 16)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("network_dim = 4", {"rank": 4}),
        (
            "network_dim = 4\nnetwork_args = ['conv_dim=8', 'conv_alpha=1']",
            {"rank": 4, "layers.preset": "full", "layers.overrides": "*: conv_rank 8, conv_alpha 1"},
        ),
        (
            "network_module = 'lycoris'\nnetwork_args = ['algo=lokr', 'conv_dim=0', 'full_matrix=True']",
            {"layers.preset": "full-lin", "rank": 1_000_000},
        ),
        (
            "network_module = 'lycoris.kohya'\nnetwork_args = ['preset=attn-mlp', 'use_tucker=True']",
            {"rank": 4, "layers.preset": "attn-mlp", "layers.overrides": "*: tucker True"},
        ),
        (
            "config: {process: [{network: {type: lokr, linear: 32, lokr_full_rank: true, lokr_factor: 8}}]}",
            {"rank": 1_000_000, "layers.overrides": "*: factor 8"},
        ),
        ("config: {process: [{network: {type: lora, lokr_full_rank: true, lokr_factor: -1}}]}", {"rank": 4}),
        # As there, an option that a kind lacks does nothing.
        (
            "network_module = 'lycoris.kohya'\nnetwork_dim = 8\n"
            "network_args = ['algo=loha', 'factor=8', 'full_matrix=True', 'use_tucker=True', 'rs_lora=True']",
            {"rank": 8, "layers.preset": "full", "layers.overrides": "*: tucker True, rslora True"},
        ),
        (
            "network_module = 'lycoris.kohya'\n"
            "network_args = ['algo=diag-oft', 'use_tucker=True', 'rs_lora=True']",
            {"rank": 4, "layers.preset": "full"},
        ),
    ],
)
def test_what_layers_are_like_is_taken_over_as_options_of_all(
    host: Host, text: str, values: dict[str, Any]
) -> None:
    found = host.module("lycoris_nodes.training.configs.config").translated(text)
    chosen = ("layers.preset", "layers.overrides", "rank")
    there = {name: found.values[name] for name in chosen if name in found.values}
    assert there == values
    assert not [note for note in found.notes if "lokr" in note or "conv" in note]
    overrides = host.module("lycoris_nodes.training.node.overrides").overrides_of
    algorithm = found.values.get("algorithm", "lora")
    for options in overrides(there.get("layers.overrides", "")).values():
        # The library takes each option.
        host.ops.create_lycoris(
            torch.nn.Sequential(torch.nn.Linear(16, 16)),
            algorithm=algorithm,
            rank=4,
            overrides={"*": options},
        )


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("network_dim = 4", {"steps": 1600, "optimisation.epochs": 0, "optimisation.warmup": 0.0}),
        ("network_dim = 4\nmax_train_epochs = 5", {"optimisation.epochs": 5, "optimisation.warmup": 0.0}),
        ("network_dim = 4\nmax_grad_norm = 0.0", {"optimisation.max_grad_norm": 0.0}),
        # Text encoders are trained at the rate of the whole training.
        (
            "network_alpha = 4\nnetwork_args = ['loraplus_unet_lr_ratio=4']\nlearning_rate = 1e-4\n"
            "unet_lr = 2e-4\nlr_scheduler = 'polynomial'",
            {
                "rank": 4,
                "learning_rate": 2e-4,
                "optimisation.text_learning_rate": 1e-4,
                "optimisation.loraplus_ratio": 4.0,
                "optimisation.schedule": "linear",
            },
        ),
        # Of two encoders the second alone.
        ("network_dim = 4\ntext_encoder_lr = [0, 5e-6]", {"optimisation.text_learning_rate": 5e-6}),
        ("network_dim = 4\ntext_encoder_lr = [0, 0]", {"optimisation.text_learning_rate": None}),
        ("--network_dim 8\n--network_train_unet_only", {"rank": 8, "optimisation.text_learning_rate": None}),
        # A data set says its batch size in its own file, which is read by itself.
        ("network_dim = 4\ndataset_config = 'data.toml'", {"optimisation.batch_size": None}),
        (
            "[general]\nbatch_size = 4\n[[datasets]]\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = 'a'\n"
            "caption_dropout_rate = 0.1",
            {"optimisation.batch_size": 2, "regularisation.caption_dropout": 0.1, "rank": None},
        ),
        # Its steps are as large as the rate, which those of the one here are not.
        ("network_dim = 4\noptimizer_type = 'Adafactor'", {"optimisation.optimiser": None}),
        (
            "config: {process: [{train: {optimizer: prodigy, lr: 1e-4, lr_scheduler: linear}}]}",
            {"optimisation.optimiser": "prodigy", "learning_rate": 1.0, "optimisation.schedule": None},
        ),
        (
            '{"training_method": "LORA", "learning_rate": 3e-5, '
            '"learning_rate_scheduler": "COSINE_WITH_RESTARTS", "learning_rate_cycles": 2.0}',
            {"optimisation.schedule": None, "optimisation.restarts": None},
        ),
        ("config: {process: [{train: {lr: 1e-4}}]}", {"steps": 1000, "optimisation.warmup": 0.0}),
        (
            "config: {process: [{train: {lr_scheduler: constant_with_warmup}}]}",
            {"optimisation.schedule": "constant", "optimisation.warmup": 1000.0},
        ),
        (
            "config: {process: [{train: {lr_scheduler: constant_with_warmup, lr_scheduler_params: "
            "{num_warmup_steps: 0}, noise_scheduler: flowmatch, gradient_accumulation: 4, "
            "gradient_accumulation_steps: 1}}]}",
            {"optimisation.warmup": 0.0, "noise.times": "logit-normal", "optimisation.accumulation": 4},
        ),
        ("config: {process: [{network: {type: lokr, linear: 8}}]}", {"rank": 1_000_000}),
        (
            '{"training_method": "LORA", "learning_rate": 3e-5, "clip_grad_norm": null}',
            {
                "optimisation.epochs": 100,
                "optimisation.warmup": 200.0,
                "optimisation.schedule": "constant",
                "optimisation.max_grad_norm": 0.0,
                "noise.times": "uniform",
                "noise.shift": 1.0,
                "regularisation.caption_dropout": 0.0,
            },
        ),
        (
            '{"training_method": "LORA", "learning_rate": 3e-5, "dynamic_timestep_shifting": true}',
            {"noise.shift": 0.0},
        ),
        (
            '{"training_method": "LORA", "learning_rate": 3e-5, "dynamic_timestep_shifting": true, '
            '"model_type": "STABLE_DIFFUSION_3", "learning_rate_warmup_steps": 0}',
            {"noise.shift": 1.0, "optimisation.warmup": 0.0},
        ),
        (
            '{"training_method": "LORA", "learning_rate": 3e-5}',
            {"algorithm": "lora", "layers.preset": "full"},
        ),
        (
            # Its steps are of batches, not of updates.
            '{"training_method": "LORA", "learning_rate": 3e-5, "gradient_accumulation_steps": 4}',
            {"optimisation.warmup": 50.0, "optimisation.accumulation": 4},
        ),
    ],
)
def test_what_a_config_leaves_out_is_as_in_its_trainer(host: Host, text: str, values: dict[str, Any]) -> None:
    """The defaults are those of the trainers' sources."""
    found = host.module("lycoris_nodes.training.configs.config").translated(text).values
    assert {name: found.get(name) for name in values} == values


MUSUBI = "network_dim = 4\nnetwork_module = 'networks.lora_wan'\ndit = 'low.safetensors'\n"
FLUX = "network_dim = 4\nnetwork_module = 'networks.lora_flux'\n"


@pytest.mark.parametrize(
    ("text", "times", "shift"),
    [
        # The shift belongs to the word: usually the node's own would be 3 for Wan, and by size for Flux.
        (_toolkit("train: {timestep_type: sigmoid}"), "logit-normal", 1.0),
        (_toolkit("train: {timestep_type: linear}"), "uniform", 1.0),
        (_toolkit("train: {timestep_type: weighted}"), "uniform", 1.66),
        (_toolkit("train: {timestep_type: flux_shift}"), "uniform", 0.0),
        (_toolkit("train: {timestep_type: shift}, model: {arch: 'zimage:turbo'}"), "uniform", 3.0),
        (_toolkit("train: {timestep_type: shift}, model: {arch: anima}"), "uniform", 3.0),
        (_toolkit("train: {timestep_type: shift}, model: {arch: omnigen2}"), "uniform", 1.0),
        # Its form for SDXL has this type too, which does nothing there.
        (_toolkit("train: {timestep_type: sigmoid, noise_scheduler: ddpm}"), "uniform", 1.0),
        (FLUX + "timestep_sampling = 'sigmoid'\ndiscrete_flow_shift = 3.0", "logit-normal", 1.0),
        (FLUX + "timestep_sampling = 'shift'", "logit-normal", 3.0),
        (FLUX + "timestep_sampling = 'flux_shift'", "logit-normal", 0.0),
        (FLUX, "uniform", 3.0),
        (FLUX + "weighting_scheme = 'logit_normal'", "logit-normal", 3.0),
        (FLUX + "weighting_scheme = 'mode'", None, None),
        # A network for any model: the script is known by the files that it loads.
        ("network_module = 'lycoris.kohya'\nae = 'ae.sft'\ntimestep_sampling = 'shift'", "logit-normal", 3.0),
        ("network_module = 'networks.lokr'\nqwen3 = 'qwen.safetensors'", "logit-normal", 1.0),
        (MUSUBI, "uniform", 1.0),
        (MUSUBI + "timestep_sampling = 'shift'\ndiscrete_flow_shift = 5.0", "logit-normal", 5.0),
        (MUSUBI + "timestep_sampling = 'qwen_shift'\ndiscrete_flow_shift = 2.2", "logit-normal", 0.0),
        (MUSUBI + "timestep_sampling = 'qinglong_qwen'", None, None),
    ],
)
def test_times_are_drawn_as_in_the_trainer(
    host: Host, text: str, times: str | None, shift: float | None
) -> None:
    found = host.module("lycoris_nodes.training.configs.config").translated(text)
    assert (found.values.get("noise.times"), found.values.get("noise.shift")) == (times, shift)
    which = "weighting_scheme = mode" if "mode" in text else "timestep_sampling"
    assert any(which in note for note in found.notes) == (times is None)


@pytest.mark.parametrize(
    ("text", "steps", "expert", "note"),
    [
        (_toolkit("train: {steps: 2001}, model: {arch: 'wan22_14b:t2v'}"), 1001, None, "link both models"),
        (
            _toolkit(
                "train: {steps: 2000}, model: {arch: wan22_14b_i2v, "
                "model_kwargs: {train_high_noise: false, train_low_noise: true}}"
            ),
            2000,
            "low noise",
            "model.arch: link the model",
        ),
        (MUSUBI + "task = 't2v-A14B'\nmin_timestep = 875\nmax_timestep = 1000", 1600, "high noise", "shape"),
        (MUSUBI + "task = 'i2v-A14B'\nmin_timestep = 0\nmax_timestep = 900", 1600, "low noise", "shape"),
        (MUSUBI + "task = 't2v-1.3B'\nmax_timestep = 900", 1600, None, "max_timestep = 900"),
        (MUSUBI + "dit_high_noise = 'high.safetensors'", 1600, None, "dit_high_noise: link both models"),
    ],
)
def test_experts_and_their_steps_are_those_of_the_trainer(
    host: Host, text: str, steps: int, expert: str | None, note: str
) -> None:
    found = host.module("lycoris_nodes.training.configs.config").translated(text)
    assert (found.values["steps"], found.values.get("noise.expert")) == (steps, expert)
    assert any(note in one for one in found.notes)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"peft_type": "LOKR", "lora_rank": 8, "lokr_dim": 4}, {"rank": 4}),
        ({"peft_type": "LOKR", "lokr_full_matrix": True}, {"rank": 1_000_000}),
        ({"peft_type": "LOKR", "lokr_decompose_factor": 8}, {"layers.overrides": "*: factor 8"}),
        ({"peft_type": "LOKR", "lokr_weight_decompose": True}, {"layers.dora": True}),
        ({"peft_type": "OFT_2", "lora_rank": 8}, {"algorithm": "oftv2", "rank": 32}),
        ({"layer_filter_preset": "attn-mlp", "layer_filter": "attn,ff"}, {"layers.preset": "attn-mlp"}),
        ({"transformer": {"learning_rate": 1e-4, "train": True}}, {"learning_rate": 1e-4}),
        ({"mse_strength": 0.0, "mae_strength": 1.0}, {"noise.loss_type": "l1"}),
    ],
)
def test_settings_of_onetrainer_that_depend_on_others(
    host: Host, settings: dict[str, Any], values: dict[str, Any]
) -> None:
    text = json.dumps({"training_method": "LORA", "learning_rate": 3e-4, **settings})
    found = host.module("lycoris_nodes.training.configs.config").translated(text)
    assert {name: found.values.get(name) for name in values} == values
    assert not found.notes


@pytest.mark.parametrize("broken", ["\\\n", "^\n", "`\r\n"])
def test_a_command_line_is_read_as_the_toml_of_its_settings(host: Host, broken: str) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    command = (
        f"accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 wan_train.py {broken}"
        f'  --dit "low noise.safetensors" --network_module=networks.lora_wan --network_dim 32 {broken}'
        f"  --timestep_sampling shift --discrete_flow_shift 5.0 --learning_rate 2e-4 --sdpa {broken}"
        f"  --gradient_checkpointing --network_args 'loraplus_lr_ratio=4' rank_dropout=0.1\n"
    )
    toml = (
        "dit = 'low noise.safetensors'\nnetwork_module = 'networks.lora_wan'\nnetwork_dim = 32\nsdpa = true\n"
        "timestep_sampling = 'shift'\ndiscrete_flow_shift = 5.0\nlearning_rate = 2e-4\n"
        "gradient_checkpointing = true\nnetwork_args = ['loraplus_lr_ratio=4', 'rank_dropout=0.1']\n"
        "mixed_precision = 'bf16'"
    )
    found = configs.translated(command)
    assert found == configs.translated(toml)
    assert found.values["rank"] == 32 and found.notes == ["dit: link the model"]


def test_of_a_script_the_command_with_settings_of_a_training_is_read(host: Host) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    command = "python train_network.py --network_dim 32 --output_name cat --seed 3"
    script = (
        "@echo off\r\nREM It's for Wan\r\ncall venv\\Scripts\\activate\r\n"
        "python wan_cache_latents.py --vae vae.safetensors --batch_size 16\r\n"
        "cd scripts && python train_network.py --network_dim 32 ^\r\n"
        "  --output_name cat --seed 3 2>&1 | tee log.txt\r\npause\r\n"
    )
    assert configs.translated(script) == configs.translated(command)
    lines = command.replace(" --", "\n  --").replace("  --seed", "# --max_train_steps 5\n  --seed")
    assert configs.translated(lines) == configs.translated(command)


@pytest.mark.parametrize(
    ("box", "module", "times", "shift"),
    [
        (None, "Standard", None, None),
        ("flux1_checkbox", "Flux1", "uniform", 3.1),
        ("sd3_checkbox", "Standard", "logit-normal", 1.0),
        ("anima_checkbox", "Anima", "logit-normal", 2.0),
    ],
)
def test_fields_of_models_count_where_the_box_of_the_model_is_ticked(
    host: Host, box: str | None, module: str, times: str | None, shift: float | None
) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    fields = {
        "flux1_checkbox": False,
        "timestep_sampling": "sigma",
        "discrete_flow_shift": 3.1,
        "guidance_scale": 3.5,
        "model_prediction_type": "sigma_scaled",
        "weighting_scheme": "logit_normal" if box != "flux1_checkbox" else "",
        "logit_std": 1,
        "hunyuan_timestep_sampling": "uniform",
        "anima_timestep_sampling": "shift",
        "anima_discrete_flow_shift": 2,
        "anima_cache_text_encoder_outputs": True,
        "lumina_gemma2": "gemma.safetensors" if box is None else "",
    }
    # With this rate and none for them, it does not train the text encoders.
    form = {"LoRA_type": module, "network_dim": 4, "unet_lr": 1e-4, **fields, **({box: True} if box else {})}
    found = configs.translated(json.dumps(form))
    assert (found.values.get("noise.times"), found.values.get("noise.shift")) == (times, shift)
    assert bool(found.notes) == (box == "flux1_checkbox")


def test_what_a_trainer_writes_into_every_config_is_not_listed(host: Host) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    written = {
        "model_type": "QWEN",
        "max_noising_strength": 1.0,
        "mse_strength": 1.0,
        "unmasked_weight": 0.1,
        "text_encoder": {"train": False},
        "text_encoder_2": {"train": True},
        "prior": {"train": True, "guidance_scale": 1.0},
        "secrets": {"huggingface_token": "hf_1"},
        "lokr_dim": 16,
        "oft_block_size": 32,
        "lora_weight_dtype": "FLOAT_32",
    }
    text = json.dumps({"training_method": "LORA", "learning_rate": 3e-4, **written})
    assert configs.translated(text).notes == ["model_type: link the model"]
    form = _toolkit(
        "network: {type: lora, conv: 16, conv_alpha: 16, network_kwargs: {ignore_if_contains: []}}, "
        "train: {noise_scheduler: flowmatch, content_or_style: balanced, switch_boundary_every: 1, "
        "diff_output_preservation: false, diff_output_preservation_class: person}"
    )
    assert configs.translated(form).notes == []
    assert "layers.preset" not in configs.translated(form).values
    assert configs.translated(_toolkit("train: {lr: 1}")).notes == ["no network: an adapter is trained here"]


@pytest.mark.parametrize(
    ("text", "decay"),
    [
        ("network_dim = 4", 0.01),
        ('network_dim = 4\noptimizer_type = "AdamW8bit"\noptimizer_args = ["betas=0.9,0.99"]', 0.01),
        ('network_dim = 4\noptimizer_args = ["weight_decay=0"]', 0.0),
        ('network_dim = 4\noptimizer_type = "Prodigy"', None),
        ("config: {process: [{train: {optimizer: adam8bit}}]}", None),
        ("config: {process: [{train: {optimizer: adamw8bit}}]}", 0.01),
        ('{"training_method": "LORA", "learning_rate": 1, "optimizer": {"optimizer": "ADAMW"}}', 0.01),
    ],
)
def test_adamw_decays_as_in_the_trainer_where_a_config_says_nothing(
    host: Host, text: str, decay: float | None
) -> None:
    configs = host.module("lycoris_nodes.training.configs.config")
    assert configs.translated(text).values.get("optimisation.weight_decay") == decay


def test_the_page_has_a_row_for_each_setting_that_is_read(host: Host) -> None:
    """It is written by `python -m tools.other_trainers --write`."""
    text = other_trainers.page(host.pack.__name__)
    assert text == other_trainers.PAGE.read_text(encoding="utf-8")
    assert "| `network_args: algo` | `algorithm`" in text and "`optimisation.weight_decay`" in text
