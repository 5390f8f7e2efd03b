"""Train LoRA / LyCORIS and Plan LyCORIS Ranks in the real host, in this process, on a tiny model."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosting import Host, Patched, patcher
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from trainable import SIDE, WIDTH, WORDS, caption, held_out_loss, latent, module, run_node, tiny, unchanged

from tests.harness.facts import ROOT
from tests.harness.inputs import INPUTS

pytestmark = pytest.mark.host


def held_out() -> dict[str, Any]:
    return {
        "validation_latents": [latent(10), latent(11)],
        "validation_positive": [caption(0), caption(1)],
    }


def test_it_learns_and_the_file_gives_the_loss_that_training_had(
    host: Host, train: Callable[..., Any], tiny_unet: Any
) -> None:
    with unchanged(tiny_unet.model):
        made = train(
            steps=16,
            learning_rate=3e-2,
            preset="full",
            batch_size=2,
            validate_every=8,
            # One batch of four latents, as VAE Encode makes of four pictures, and a list of captions.
            latents=[{"samples": torch.cat([latent(seed)["samples"] for seed in range(4)])}],
            **held_out(),
        )
    losses = dict(made["loss_map"]["validation"])
    assert list(losses) == [0, 8, 16] and losses[16] < 0.9 * losses[0]
    assert made["steps_done"] == len(made["loss_map"]["loss"]) == 16
    path = Path(made["path"])
    assert path.name == "style_00001_.safetensors" and set(made["lora"]) == set(load_file(path))
    assert made["curves"].shape[0] == 1 and made["curves"].shape[-1] == 3
    for words in (
        "model: Stable Diffusion; defaults of kohya",
        "4 latents (8 x 8 x4), batches in an epoch: 2",
    ):
        assert words in made["report"]
    assert made["report"] in made["ui"]["text"] and made["ui"]["lycoris"][0]["state"] == "all"
    (drawn,) = made["ui"]["training"]
    assert drawn["validation"] == [[step, loss] for step, loss in losses.items()]
    assert len(drawn["losses"]) == 16 and drawn["name"] == "style_00001_" and not drawn["samples"]

    # With the file the model has the loss of the training's end, and without it the loss of its start.
    assert held_out_loss(host, tiny_unet, *held_out().values(), 2) == pytest.approx(losses[0], rel=1e-6)
    applied = host.apply(Patched(tiny_unet, None), made["stack"]).model
    assert held_out_loss(host, applied, *held_out().values(), 2) == pytest.approx(losses[16], rel=1e-5)
    # ComfyUI's own loader reads the file too.
    (loaded,) = host.nodes.NODE_CLASS_MAPPINGS["LoraModelLoader"].execute(tiny_unet, made["lora"], 1.0).args
    assert held_out_loss(host, loaded, *held_out().values(), 2) == pytest.approx(losses[16], rel=1e-5)


def test_a_ruined_training_says_so_and_its_file_is_no_worse_than_none(
    host: Host, train: Callable[..., Any], tiny_unet: Any
) -> None:
    given: dict[str, Any] = {"steps": 8, "preset": "full", "validate_every": 4}
    made = train(learning_rate=0.3, **given, **held_out())
    losses = dict(made["loss_map"]["validation"])
    first = made["report"].splitlines()[0]
    assert first.startswith(f"Held-out loss {losses[0]:.4g} before, {losses[8]:.4g} at the end, ")
    assert "The end is worse than the start" in first and made["ui"]["lycoris"][0]["state"] == "partly"
    applied = host.apply(Patched(tiny_unet, None), made["stack"]).model
    assert held_out_loss(host, applied, *held_out().values(), 1) == pytest.approx(losses[0], rel=1e-6)
    made = train(learning_rate=0.3, saved="last", **given, **held_out())
    assert made["ui"]["lycoris"][0]["state"] == "partly"
    applied = host.apply(Patched(tiny_unet, None), made["stack"]).model
    assert held_out_loss(host, applied, *held_out().values(), 1) == pytest.approx(losses[8], rel=1e-4)
    made = train(**given)
    assert made["report"].startswith("Nothing tells whether the model became better: ")
    assert made["ui"]["lycoris"][0]["state"] == "nothing"


def test_the_settings_of_other_trainers_reach_the_training(host: Host, train: Callable[..., Any]) -> None:
    made = train(
        preset="attn-only",
        latents=[latent(seed) for seed in range(3)],
        # The longest name, with the separator of another system.
        filename_prefix="loras\\" + "猫" * 71,
        positive=[caption(0)],
        epochs=2,
        batch_size=2,
        rank=4,
        alpha=2.0,
        dora=True,
        weight_decay=0.01,
        max_grad_norm=0.5,
        loraplus_ratio=4.0,
        optimiser_args="betas=0.9,0.99 eps=1e-6",
        schedule="cosine",
        warmup=4.0,
        restarts=1,
        loss_type="huber",
        huber_c=0.2,
    )
    assert "cosine after a warm-up of 4, which takes all steps, restarted 1 time" in made["report"]
    # Two batches an epoch.
    assert made["steps_done"] == 4 and Path(made["path"]).parent.name == "loras"
    written = host.ops.load_adapter(made["path"])
    options = json.loads(written.metadata["lycoris_training"])["options"]
    told = {"weight_decay": 0.01, "clip_norm": 0.5, "lora_plus": 4.0, "restarts": 1}
    assert told.items() <= options.items()
    assert options["optimiser_options"] == {"betas": "(0.9, 0.99)", "eps": "1e-06"}
    layer = next(iter(written.layers.values()))
    assert layer.rank == 4 and layer.alpha == 2 and "dora_scale" in layer.tensors()
    for words in ("LoRA+ at 4", "restarted 1 time", "huber from 0.2 on"):
        assert words in made["report"]
    for bad, problem in (
        ("betas", "betas"),
        ("eps=1 eps=2", "twice"),
        ("lr=1e-3", r"found lr=1e-3.*Set it in `learning_rate`"),
    ):
        with pytest.raises(host.ops.LycorisError, match=problem):
            train(preset="attn-only", optimiser_args=bad)
    with pytest.raises(host.ops.LycorisError, match="DoRA"):
        train(preset="attn-only", algorithm="oft", dora=True)


def test_an_interrupt_keeps_what_was_learned_and_a_resumed_training_ends_as_an_unbroken_one(
    host: Host,
    train: Callable[..., Any],
    tmp_path: Path,
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.model_management

    settings: dict[str, Any] = {"preset": "attn-only", "steps": 5, "warmup": 2, "schedule": "cosine"}
    settings |= {"empty_caption": [caption(9)], "caption_dropout": 0.5, "validate_every": 3, **held_out()}
    stop_after(0)
    # Before the first step there is nothing to keep.
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(filename_prefix="loras/none", **settings)
    # Nor is there after the first sample.
    previews = host.module("lycoris_nodes.training.node.previews").Previews
    make = previews.make
    with monkeypatch.context() as patch:
        patch.setattr(
            previews,
            "make",
            lambda *given: (make(*given), comfy.model_management.interrupt_current_processing()),
        )
        stop_after(100)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(filename_prefix="loras/none", sample_every=5, **settings)
    assert not [*(tmp_path / "loras").glob("none*")]
    folder = tmp_path / "loras" / "style_00001_-checkpoints"
    # The second and third time it goes on, with or without `resume`.
    for steps, resume in ((2, False), (3, False), (4, True)):
        stop_after(steps)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(resume=resume, **settings)
        assert host.ops.load_adapter(folder / "last.safetensors").metadata["ss_steps"] == str(steps)
        assert not (tmp_path / "loras" / "style_00001_.safetensors").exists()
    stop_after(100)
    resumed = train(**settings)
    whole = train(**settings)
    assert Path(resumed["path"]).name == "style_00001_.safetensors"
    assert Path(whole["path"]).name == "style_00002_.safetensors"
    assert resumed["steps_done"] == 5
    assert "went on from step 4 of an earlier run: last.state.safetensors" in resumed["report"]
    assert "went on" not in whole["report"]
    assert resumed["loss_map"] == whole["loss_map"]
    assert all(torch.equal(resumed["lora"][key], whole["lora"][key]) for key in whole["lora"])
    # All steps are done but the file is missing, as after a full disk: only writing it is left.
    Path(whole["path"]).unlink()
    again = train(**settings)
    assert again["path"] == whole["path"] and "went on from step 5" in again["report"]
    assert all(torch.equal(again["lora"][key], whole["lora"][key]) for key in whole["lora"])
    # A finished training goes on for more steps. Its name may be given with its number.
    further = train(resume=True, filename_prefix="loras/style_00002_", **{**settings, "steps": 6})
    assert further["steps_done"] == 6 and further["path"] == whole["path"]


def test_a_stopped_training_is_chosen_by_its_data_and_settings(
    host: Host, train: Callable[..., Any], stop_after: Callable[[int], None]
) -> None:
    import comfy.model_management

    settings: dict[str, Any] = {"preset": "attn-only", "steps": 3, "warmup": 0}
    latents, captions = [latent(seed) for seed in range(4)], [caption(seed) for seed in range(4)]
    settings |= {"latents": latents, "positive": captions}
    stop_after(1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(**settings)
    stop_after(100)
    # What was queued behind it under the same name, with other settings, another seed or other data, runs.
    others = {
        "style_00002_": ({"learning_rate": 1e-3, "steps": 4}, "learning_rate was 0.003 and is 0.001"),
        "style_00003_": ({"seed": 9}, "seed was 5 and is 9"),
        "style_00004_": ({"latents": latents[:3], "positive": captions[:3]}, "latents: 1 gone, 3 in all"),
    }
    for name, (inputs, words) in others.items():
        other = train(**{**settings, **inputs})
        report = " ".join(other["report"].split())
        assert name in other["path"] and "went on" not in report
        assert "began anew: style_00001_ stopped at step 1 of 3, with other settings or data" in report
        assert words in report and "turn on `resume`" in report
    # The latest training is style_00004_. With `resume` the one of these data and settings goes on.
    longer = train(**{**settings, **others["style_00002_"][0], "steps": 5}, resume=True)
    assert longer["path"].endswith("style_00002_.safetensors") and longer["steps_done"] == 5
    fewer = train(**{**settings, **others["style_00004_"][0], "learning_rate": 1e-3, "steps": 4}, resume=True)
    assert fewer["path"].endswith("style_00004_.safetensors") and fewer["steps_done"] == 4
    # It is found by Run alone too, in another order of its data. The file's dtype may differ.
    same = {"latents": latents[::-1], "positive": captions[::-1], "dtype": "bfloat16", "checkpointing": "on"}
    made = train(**{**settings, **same})
    assert made["path"].endswith("style_00001_.safetensors") and "went on from step 1" in made["report"]
    assert "changed" not in made["report"] and "other settings" not in made["report"]


def test_a_training_of_another_process_is_left_alone_and_the_next_number_is_taken(
    host: Host, train: Callable[..., Any], tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    import comfy.model_management

    settings: dict[str, Any] = {"preset": "attn-only", "steps": 3, "warmup": 0}
    folder = tmp_path / "loras" / "style_00001_-checkpoints"
    stop_after(1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(**settings)
    stop_after(100)
    state = (folder / "last.state.safetensors").read_bytes()
    with claiming(folder):
        beside = train(**settings)
        with pytest.raises(host.ops.TrainError, match=r"style_00001_.*runs now.*process \d+ on"):
            train(filename_prefix="loras/style_00001_", resume=True, **settings)
    assert beside["path"].endswith("style_00002_.safetensors") and "went on" not in beside["report"]
    assert "began beside style_00001_ (process " in beside["report"]
    assert {path.name for path in folder.iterdir()} >= {"last.state.safetensors", "running.json"}
    assert (folder / "last.state.safetensors").read_bytes() == state
    # The other process was killed: its claim is over.
    assert train(**settings)["path"].endswith("style_00001_.safetensors")
    assert not (folder / "running.json").exists()
    # It begins at the same time, and gets the number a moment earlier.
    runs = host.module("lycoris_nodes.training.node.runs")
    other = tmp_path / "loras" / "style_00003_-checkpoints"
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patched:
        choose = runs.runs_of

        def chosen(*given: Any, **more: Any) -> Any:
            found = choose(*given, **more)
            if not other.exists():
                stack.enter_context(claiming(other))
            return found

        patched.setattr(host.module("lycoris_nodes.training.node.pair"), "runs_of", chosen)
        assert train(**settings)["path"].endswith("style_00004_.safetensors")


def test_the_number_of_a_training_that_was_killed_before_it_wrote_anything_is_used_again(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"preset": "attn-only", "steps": 1, "warmup": 0}
    loras = tmp_path / "loras"
    for number in (1, 2, 3):
        with claiming(loras / f"style_{number:05}_-checkpoints"):
            pass
    # The first one's number is also in the name of another file.
    (loras / "style_00001_.txt").touch()
    for number in (2, 3, 4):
        assert train(**settings)["path"].endswith(f"style_{number:05}_.safetensors")


@contextmanager
def claiming(folder: Path) -> Generator[None]:
    """Another process that has claimed a folder. It is killed at the end."""
    code = (
        "import sys, pathlib, time, lycoris_ops as lyc\n"
        "with lyc.claimed(pathlib.Path(sys.argv[1])):\n print('claimed', flush=True)\n time.sleep(600)"
    )
    words = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "claimed\n"
            yield
        finally:
            other.kill()


@pytest.mark.soak
def test_a_stopped_training_is_found_whatever_ran_after_it(
    host: Host,
    train: Callable[..., Any],
    tmp_path: Path,
    stop_after: Callable[[int], None],
) -> None:
    """Others, of the same name and of other names, are stopped meanwhile. Each goes on from its own state."""
    import comfy.model_management
    import folder_paths

    runs = host.module("lycoris_nodes.training.node.runs")
    given: dict[str, Any] = {"preset": "attn-only", "warmup": 0, "steps": 4}
    other = {"latents": [latent(seed) for seed in range(4, 8)]}

    def stopped(steps: int, **more: Any) -> dict[str, Any]:
        """Train, stop after so many steps, and return the settings in the state that is left."""
        stop_after(steps)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(**{**given, **more})
        stop_after(100)
        return runs.newest_state(max(tmp_path.glob("loras/*/"), key=os.path.getmtime)).settings

    def anew(settings: dict[str, Any], prefix: str = "loras/style") -> None:
        before = folder_paths.get_output_directory()
        folder_paths.set_output_directory(str(tmp_path))
        runs.begin_anew([runs.RunKey(prefix, "comfy", settings)], ())
        folder_paths.set_output_directory(before)

    # With nothing to set aside, beginning anew makes no folder, even where its name has the time in it.
    anew({})
    anew({}, "%year%/%second%/style")
    assert not [*tmp_path.iterdir()]
    first = stopped(2)
    # A running training is neither offered nor set aside, whichever page has queued it.
    with host.ops.claimed(tmp_path / "loras" / "style_00001_-checkpoints"):
        anew(first)
    assert not [*tmp_path.rglob("set-aside.json")]
    stopped(1, filename_prefix="loras/other")
    anew({**first, "seed": 9})
    assert stopped(1, seed=9) == {**first, "seed": 9}
    assert "style_00003_" in train(**given, **other)["path"]
    found = {
        "style_00001_": train(**given),
        "style_00002_": train(**given, seed=9),
        "other_00001_": train(**given, filename_prefix="loras/other"),
    }
    for name, made in found.items():
        assert name in made["path"] and "went on from step" in made["report"]
    # A training that was set aside goes on only if that is asked for.
    anew(stopped(2))
    made = train(**given)
    assert "style_00005_" in made["path"] and "went on" not in made["report"]
    made = train(**given, filename_prefix="loras/style_00004_", resume=True)
    assert "style_00004_" in made["path"] and "went on from step 2" in made["report"]


def test_it_goes_on_from_a_checkpoint_of_choice_with_what_may_change(
    host: Host, train: Callable[..., Any], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"preset": "attn-only", "steps": 6, "warmup": 0, "checkpoint_every": 2}
    first = train(**settings)
    folder = tmp_path / "loras" / "style_00001_-checkpoints"
    assert (folder / "step-000002.state.safetensors").exists()
    for name in ("2", "step-000002.safetensors"):
        # Samples of a later step, which is undone, and of this one.
        (folder / "sample-000006.png").touch()
        (folder / "sample-000002.png").touch()
        again = train(**settings, resume_from=name)
        assert [path.name for path in folder.glob("*.png")] == ["sample-000002.png"]
        # It ends bitwise as the unbroken one.
        assert again["path"] == first["path"] and again["steps_done"] == 6
        assert all(torch.equal(again["lora"][key], first["lora"][key]) for key in first["lora"])
        assert "went on from step 2 of an earlier run" in again["report"]
        assert "other settings" not in again["report"]
    changed = train(
        **{**settings, "learning_rate": 1e-3, "batch_size": 2, "steps": 8}, resume_from="step-000004"
    )
    assert changed["steps_done"] == 8
    assert "went on with other settings" in changed["report"]
    for words in (
        "learning_rate was 0.003 and is 0.001",
        "batch_size was 1 and is 2",
        "steps was 6 and is 8",
    ):
        assert words in changed["report"]
    # The finished file is not replaced by the weights of a checkpoint.
    with pytest.raises(host.ops.TrainError, match=r"steps: the state .*found 3; expected at least 4"):
        train(**{**settings, "steps": 3}, resume_from="step-000004")
    kept = load_file(changed["path"])
    assert all(torch.equal(tensor, changed["lora"][key]) for key, tensor in kept.items())
    for inputs, words in (
        ({"resume_from": "step-000003"}, r"no such checkpoint.*step-000003.*last, step-000004"),
        ({"resume_from": "../style_00001_-checkpoints/step-000004"}, "no such checkpoint"),
        ({"resume_from": "9" * 5000}, "no such checkpoint"),
        ({"resume_from": "4", "seed": 9}, r"cannot go on with.*seed was 5 and is 9"),
        ({"resume": True, "optimiser": "sgd"}, r"cannot go on with.*optimiser was 'adamw' and is 'sgd'"),
        ({"resume": True, "ema": 0.9}, r"cannot go on with.*ema was 0\.0 and is 0\.9"),
        ({"sample_settings": "seed x"}, "line 1.*seed x"),
    ):
        # The error comes before the model is looked at.
        with pytest.raises(host.ops.LycorisError, match=words):
            train(**{**settings, **inputs, "model": object.__new__(Untouched)})


def test_what_is_off_is_no_setting_of_a_training(host: Host) -> None:
    module = host.module("lycoris_nodes.training.node.settings")

    def settings(**given: Any) -> dict[str, Any]:
        return module.settings_of(module.Asked(stack=None, steps=5, **given))

    assert settings(masked_prior=0.0, search="off", search_share=0.4) == settings()
    assert settings(masked_prior=0.5) == {"steps": 5, "masked_prior": 0.5}


def test_settings_that_differ_are_told_as_the_node_shows_them(host: Host) -> None:
    runs, schema, checks = (
        host.module(f"lycoris_nodes.{name}")
        for name in ("training.node.runs", "training.node.schema", "schema.checks")
    )
    told = runs.differences({"rank": 0, "warmup": 0.0}, {"rank": 3, "warmup": 0.05})
    assert told == ["rank was auto and is 3", "warmup was 0.0 and is 0.05"]
    inputs = schema.inputs()
    every = [*inputs, *(each for _, each in checks._grouped(inputs))]
    assert {one.id for one in every if one.get_io_type() == checks.USUAL_NUMBER} == {*runs.USUAL}


class Untouched:
    """Something that passes for a model, and fails when it is used."""

    def model_state_dict(self) -> None:
        raise AssertionError


def guidances_of_samples(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list to which each sample of a training adds its guidance."""
    previews, found = host.module("lycoris_nodes.training.node.previews"), []
    sampled = previews.sampled

    def noted(*given: Any, cfg: float, **more: Any) -> Tensor:
        found.append(cfg)
        return sampled(*given, cfg=cfg, **more)

    monkeypatch.setattr(previews, "sampled", noted)
    return found


CHANNELS_OF: dict[str, dict[str, int]] = {
    "SDXL": {"adm_in_channels": 12 + 6 * 256},
    "Flux 1": {"in_channels": 16, "out_channels": 16},
    "Wan 2.1 t2v": {"in_dim": 16, "out_dim": 16},
    "Qwen-Image": {"in_channels": 64, "out_channels": 16},
}
"""Settings that give tiny models of other architectures as many channels as their latents have."""


@pytest.mark.parametrize("architecture", CHANNELS_OF)
def test_other_models_are_trained_by_their_own_defaults(
    host: Host,
    train: Callable[..., Any],
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guidances = guidances_of_samples(host, monkeypatch)
    trained = patcher(tiny(architecture, **CHANNELS_OF[architecture]))
    draw = torch.Generator().manual_seed(1)
    channels, words = trained.model.latent_format.latent_channels, INPUTS[architecture].text
    assert words is not None
    text = {"pooled_output": torch.randn((1, 12), generator=draw)}
    given: dict[str, Any] = {
        "model": trained,
        "latents": [{"samples": torch.randn((2, channels, 8, 8), generator=draw)}],
        "positive": [[[torch.randn((1, *words), generator=draw), text]] for _ in range(2)],
    }
    given["empty_caption"] = given["positive"][:1]
    expert = architecture.startswith("Wan")
    if expert:
        trained.cached_patcher_init = (None, ("models/wan2.2_t2v_high_noise_14B.safetensors",))
    with unchanged(trained.model):
        made = train(**given, rank=0, learning_rate=0.0, steps=2, batch_size=2, sample_every=2)
    said = "times from 0.875 to 1: the times of the high-noise expert, by the name wan2.2_t2v_high_noise_14B"
    assert (said in made["report"]) is expert and ("style_high_noise_00001_" in made["path"]) is expert
    if expert:
        links = {name: given[name] for name in ("model", "latents", "positive")}
        assert said in run_node(host, "LycorisPlan", tmp_path, **links)["report"]
    family = module(host, "").trained_family(trained.model)
    assert f"model: {family.name}; defaults of {family.source}" in made["report"]
    assert f"rate: {family.lr:g}" in made["report"] and "batches in an epoch: 1" in made["report"]
    # Flux and Qwen-Image train modulation layers by default, beside those of the preset.
    assert any("_mod." in name for name in made["lora"]) is (architecture in ("Flux 1", "Qwen-Image"))
    # Flux takes its guidance as an input, so CFG stays off.
    assert guidances == [1.0 if architecture == "Flux 1" else 5.0] * 2
    layers = made["stack"].entries[0].adapter.layers.values()
    assert max(layer.rank for layer in layers) == family.rank
    assert host.apply(Patched(trained, None), made["stack"]).model is not trained


def test_activations_that_are_computed_again_need_less_memory(host: Host, tiny_unet: Any) -> None:
    memory = host.module("lycoris_nodes.training.node.memory")
    kept, again = (
        memory.memory_for(tiny_unet, [latent(0), latent(1, 2 * SIDE)], 3, checkpointed=checkpointed)
        for checkpointed in (False, True)
    )
    once = tiny_unet.model.memory_required([3, *latent(1, 2 * SIDE)["samples"].shape[1:]])
    assert once <= again < kept


def test_samples_on_the_way_change_nothing(
    host: Host, train: Callable[..., Any], tiny_unet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidances = guidances_of_samples(host, monkeypatch)
    settings: dict[str, Any] = {"preset": "attn-mlp", "steps": 2, "warmup": 0, "learning_rate": 0.1}
    settings["empty_caption"] = [caption(9)]
    plain = train(**settings)
    with unchanged(tiny_unet.model):
        sampled = train(sample_every=1, **settings)
    assert all(torch.equal(sampled["lora"][key], plain["lora"][key]) for key in plain["lora"])
    folder = tmp_path / "loras" / "style_00002_-checkpoints"
    pictures = [np.asarray(Image.open(folder / f"sample-00000{step}.png")) for step in range(3)]
    assert pictures[0].shape == (8, 8, 3)
    assert all((one != other).any() for one, other in itertools.pairwise(pictures))
    # A copy that the user has made of a picture is not shown.
    (folder / "sample-000001 copy.png").touch()
    live = host.module("lycoris_nodes.training.node.live")
    monkeypatch.setattr(live, "output_name", str)
    assert [step for step, _ in live.shown(host.ops.History(), folder)["samples"]] == [0, 1, 2]
    # Several prompts, each with its own seed and size, side by side.
    prompts = [caption(7), caption(8), caption(7)]
    train(
        **{**settings, "steps": 1},
        sample_positive=prompts,
        sample_settings="seed 1\nseed 2, 128 x 96\nseed 1",
    )
    folder = tmp_path / "loras" / "style_00003_-checkpoints"
    assert not [*folder.glob("sample-*")]
    train(
        **{**settings, "steps": 1, "filename_prefix": "loras/several"},
        sample_every=1,
        sample_positive=prompts,
        sample_settings="seed 1\nseed 2, 128 x 96\nseed 1\n\n",
    )
    folder = tmp_path / "loras" / "several_00001_-checkpoints"
    several = np.asarray(Image.open(folder / "sample-000001.png"))
    assert several.shape == (12, 8 + 16 + 8, 3)
    assert (several[:8, :8] == several[:8, -8:]).all()
    for lines, words in (
        ("seed x", "line 1.*seed x"),
        ("\n\n\nseed 1", "4 lines and 3"),
        ("100 x 64", "line 1.*multiples"),
    ):
        with pytest.raises(host.ops.LycorisError, match=words):
            train(**{**settings, "steps": 1}, sample_positive=prompts, sample_settings=lines)
    guidances[3:] = []
    # Samples are guided if there is an empty caption, and not otherwise.
    train(sample_every=1, **{**settings, "steps": 1, "empty_caption": []})
    assert guidances == [5.0, 5.0, 5.0, 1.0, 1.0]


def test_stop_while_the_last_sample_is_drawn_leaves_a_finished_training(
    host: Host, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management
    import comfy.utils

    bars: list[tuple[int, int]] = []
    real = comfy.utils.ProgressBar.update_absolute
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda bar, value, total=None, *more: (bars.append((value, total)), real(bar, value, total, *more)),
    )
    told: list[str] = []
    output = host.module("lycoris_nodes.training.node.output")
    monkeypatch.setattr(output, "tell_page", lambda *given, text="", **more: told.append(text))
    previews = host.module("lycoris_nodes.training.node.previews").Previews
    make = previews.make

    def stopped(self: Any, step: int) -> None:
        if step == self.steps:
            comfy.model_management.interrupt_current_processing()
        make(self, step)

    settings: dict[str, Any] = {"preset": "attn-only", "steps": 2, "warmup": 0, "sample_every": 1}
    with monkeypatch.context() as patch:
        patch.setattr(previews, "make", stopped)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(**settings)
    assert (tmp_path / "loras" / "style_00001_.safetensors").exists()
    assert "All 2 steps are done, and the file is output/loras/style_00001_.safetensors." in told
    # The host's bar is not full while the last sample is drawn.
    assert (2, 3) in bars and all(value < total for value, total in bars)
    # The training is over, so the next one is another.
    assert train(**settings)["path"].endswith("style_00002_.safetensors")


def test_it_goes_on_from_a_stack_and_keeps_its_kinds(host: Host, train: Callable[..., Any]) -> None:
    settings: dict[str, Any] = {"preset": "attn-only", "steps": 2}
    overrides = "# comments are fine\n*attn2*: algorithm lokr, factor 4\n/to_q$/: rank 2"
    first = train(overrides=overrides, dialect="kohya", **settings)
    kinds = {layer.algorithm for layer in first["stack"].entries[0].adapter.layers.values()}
    assert kinds == {"lora", "lokr"} and "style_00001_" in first["path"]
    second = train(stack=first["stack"], filename_prefix="loras/more", steps=1)
    assert len(second["lora"]) == len(first["lora"])
    assert {layer.algorithm for layer in second["stack"].entries[0].adapter.layers.values()} == kinds
    with pytest.raises(host.ops.LycorisError, match=r"a file already says.*Resize or convert"):
        train(stack=first["stack"], overrides="*attn2*: alpha 2")
    with pytest.raises(host.ops.LycorisError, match=r"from one adapter.*a stack of 2"):
        train(stack=first["stack"] + second["stack"])
    with pytest.raises(host.ops.LycorisError, match=r"follows a schedule cannot be trained on"):
        train(stack=host.scheduled(first["stack"], "0:1, 1:0"))
    other = {"diffusion_model.double_blocks.0.img_attn.proj.diff": torch.zeros(8, 8)}
    adapter = host.ops.adapter_of_tensors(other, name="other")
    with pytest.raises(host.ops.MatchError, match=r"other is made for Flux.*this model is"):
        train(stack=host.ops.Stack([host.ops.Entry(adapter)]))


def test_a_plan_is_followed_edited_and_kept_as_text(
    host: Host, train: Callable[..., Any], tiny_unet: Any
) -> None:
    def plan(**inputs: Any) -> dict[str, Any]:
        node = host.nodes.NODE_CLASS_MAPPINGS["LycorisPlan"]
        known = {"model": [tiny_unet], "latents": [latent(0), latent(1)], "positive": [caption(0)]}
        known |= {"size": ["4000"], "algorithms": ["lora"], "batches": [3], "seed": [0]}
        known |= {"preset": ["attn-only"], **{name: [value] for name, value in inputs.items()}}
        with torch.inference_mode():
            made = node.execute(**known)
        return dict(zip([output.id for output in node.GET_SCHEMA().outputs], made.args, strict=True))

    with unchanged(tiny_unet.model):
        made = plan()
    found = made["plan"]
    assert 0 < found.parameters <= 4000 and found.probe is not None
    assert "parameters" in made["report"] and made["picture"].shape[0] == 1
    # Recomputing the blocks gives the same plan.
    again = plan(checkpointing="on")["plan"]
    assert {row.path: row.rank for row in again} == {row.path: row.rank for row in found}
    table = json.loads(made["text"])
    table["rows"] = table["rows"][:3]
    edited = plan(edited=json.dumps(table))["plan"]
    assert len(edited) == 3 and edited.probe is not None
    trained = train(plan=edited, steps=1)
    layers = trained["stack"].entries[0].adapter.layers
    assert {name.removeprefix("diffusion_model.") for name in layers} == {row.path for row in edited}
    assert sorted(layer.rank for layer in layers.values()) == sorted(row.rank for row in edited)
    with pytest.raises(host.ops.LycorisError, match=r"no such algorithm.*banana"):
        plan(algorithms="lora banana")


def broken(value: float) -> dict[str, Tensor]:
    made = latent(2)
    made["samples"][0, 1, 2, 3] = value
    return made


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"latents": []}, r"latents: there are no latents"),
        (
            {"positive": [caption(0), caption(1)]},
            r"not as many captions as latents.*2 captions and 4 latents",
        ),
        (
            {"latents": [latent(0), broken(math.nan)], "positive": [caption(0)]},
            r"latents, number 2 of 2.*finite",
        ),
        (
            {"latents": [{"samples": torch.zeros(1, 4, 8, 8)}], "positive": [caption(0)]},
            r"number 1.*all zeros",
        ),
        (
            {"latents": [{"samples": torch.ones(1, 16, 8, 8)}], "positive": [caption(0)]},
            r"not of this model.*16",
        ),
        ({"latents": ["x"]}, r"`latents, number 1` cannot be used.*'x'"),
        ({"masks": [torch.ones(1, 32, 32)]}, r"masks, number 1 of 4.*size of its picture.*32 x 32.*64 x 64"),
        ({"masks": [torch.ones(3, 64, 64)]}, r"not as many masks as latents.*3 masks"),
        ({"masks": [torch.full((1, 64, 64), math.nan)]}, r"masks, number 1 of 4.*not finite.*nan"),
        ({"masks": [torch.full((1, 64, 64), -1.0)]}, r"masks, number 1 of 4.*not finite.*-1"),
        (
            {"positive": [[[torch.full((1, WORDS, WIDTH), math.nan), {}]]]},
            r"captions, number 1 of 4.*not finite",
        ),
        (
            {"positive": [*[caption(n) for n in range(3)], [[torch.ones(1, WORDS, 2 * WIDTH), {}]]]},
            r"captions, number 4 of 4: .*have the model's width.*48 values for .*to_k.*expected 24.*CLIP",
        ),
        (
            {"latents": [{**latent(0), "noise_mask": torch.ones(1, 1, 32, 32)}], "positive": [caption(0)]},
            r"noise_mask, number 1 of 1.*size of its picture",
        ),
        (
            {"latents": [{**latent(0), "noise_mask": torch.ones(1, 1, 3, 64, 64)}], "positive": [caption(0)]},
            r"latents, number 1 of 1.*`noise_mask`.*not a picture's mask",
        ),
        ({"positive": [caption(0, control=object())]}, r"captions, number 1 of 4.*ControlNet"),
        ({"positive": [caption(0, area=(1, 1, 0, 0))]}, r"captions, number 1 of 4.*an area"),
        ({"positive": [caption(0, hooks=object())]}, r"captions, number 1 of 4.*hooks"),
        ({"positive": [caption(0, strength=0.5)]}, r"captions, number 1 of 4.*a strength.*0.5"),
        ({"positive": [caption(0, start_percent=0.2)]}, r"captions, number 1 of 4.*part of the sampling"),
        ({"empty_caption": [caption(0), caption(1)]}, r"only one empty caption"),
        ({"validation_positive": [caption(0)]}, r"held-out captions without latents"),
        ({"overrides": "*attn2* rank 8"}, r"line 1.*cannot be understood.*attn2"),
        ({"overrides": "*nothing*: rank 8"}, r"nothing"),
        ({"rank": 4.5}, r"impossible value of rank.*4\.5.*whole"),
        ({"steps": 0}, r"steps.*out of its range"),
        ({"optimiser": "lion"}, r"`optimiser`.*lion.*adamw"),
        (
            {"noise_offset": 2.0, "caption_dropout": 3.0, "empty_caption": [caption(0)]},
            r"a share must be from 0 to 1",
        ),
        ({"loss_type": "huber", "huber_c": 0.0}, r"huber_c: .*is 0 for every difference"),
        ({"restarts": 2}, r"restarts: a constant rate has nothing to restart"),
        ({"resume": True}, r"loras/style: there is no training of this name"),
        ({"filename_prefix": "../style"}, r"leaves the output folder"),
        # The folder of checkpoints could still be made, but not the file.
        ({"filename_prefix": f"loras/{'猫' * 75}"}, r"too long.*75 characters of 225 bytes.*at most 213"),
    ],
    # Only messages become ids: the inputs hold objects, whose text differs between processes.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(
    host: Host, train: Callable[..., Any], tmp_path: Path, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(host.ops.LycorisError, match=words):
        train(preset="attn-only", **{"steps": 1, **inputs})
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_noise_mask_of_a_latent_is_its_mask_unless_masks_are_linked(train: Callable[..., Any]) -> None:
    left, top = torch.zeros(1, 1, 64, 64), torch.zeros(1, 64, 64)
    left[..., :32], top[:, :32] = 1, 1
    bare = [latent(seed) for seed in range(2)]
    # One mask for the whole batch, as Set Latent Noise Mask makes it.
    batch = {"samples": torch.cat([one["samples"] for one in bare])}
    settings: dict[str, Any] = {"preset": "attn-only", "steps": 1, "warmup": 0, "positive": [caption(0)]}
    plain, linked, other = (train(latents=bare, masks=masks, **settings) for masks in ([], [left], [top]))
    masked = train(latents=[{**batch, "noise_mask": left}], **settings)
    both = train(latents=[{**batch, "noise_mask": left}], masks=[top], **settings)
    losses = [one["loss_map"]["loss"] for one in (plain, linked, other, masked, both)]
    assert losses[3] == losses[1] != losses[0] and losses[4] == losses[2] != losses[1]
    assert "the noise_mask of latents is their mask" in masked["report"]
    assert "2 with a mask" in masked["report"]
    assert "the noise_mask of latents is not used, because masks are linked" in both["report"]
    assert "noise_mask" not in linked["report"]
    for masks, does in (([], "does nothing, as there are no masks"), ([left], "for what masks leave out")):
        report = train(latents=bare, masks=masks, masked_prior=0.5, **settings)["report"]
        assert f"masked_prior 0.5 {does}" in " ".join(report.split())


def test_what_takes_less_memory_is_named_when_it_runs_out(
    host: Host, train: Callable[..., Any], tiny_unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the host's own error, raised in the second step. The host sees it, and what was learned is kept."""
    import comfy.model_management as manager

    apply_model, passes = type(tiny_unet.model).apply_model, list[int]()

    def full(*args: Any, **given: Any) -> Any:
        passes.append(1)
        if len(passes) > 1:
            raise manager.OOM_EXCEPTION("Allocation on device 0 would exceed allowed memory.\nmore")
        return apply_model(*args, **given)

    monkeypatch.setattr(type(tiny_unet.model), "apply_model", full)
    with pytest.raises(host.ops.TrainError) as caught, unchanged(tiny_unet.model):
        train(steps=4, batch_size=2, latents=[latent(seed) for seed in range(4)])
    assert isinstance(caught.value, manager.OOM_EXCEPTION)
    words = str(caught.value)
    assert "there is not enough memory (found Allocation on device 0 would exceed" in words
    assert "more" not in words.partition("found")[2].partition(")")[0]
    assert words.endswith(
        "In this order: set `checkpointing` to on, lower `batch_size`, lower the `resolution` in LyCORIS "
        "Training Pictures, set `optimiser` to adamw8bit, load the model in fp8"
    )
    checks = host.module("lycoris_nodes.schema.checks")
    assert issubclass(checks.NodeMemoryError, manager.OOM_EXCEPTION)


def test_several_models_are_refused(host: Host, train: Callable[..., Any], tiny_unet: Any) -> None:
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisTrain"]
    with pytest.raises(host.ops.LycorisError, match=r"`model` takes one value.*2 values"):
        node.execute(model=[tiny_unet, tiny_unet], latents=[latent(0)], positive=[caption(0)])


def test_no_room_is_found_before_the_first_step(
    host: Host, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(
        host.ops.WriteError, match=r"no room for what the training would write.*0\.01 MB free"
    ):
        train(preset="attn-only")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_model_that_adds_no_noise_is_refused(host: Host, train: Callable[..., Any], tiny_unet: Any) -> None:
    import comfy.model_sampling

    class Turned(comfy.model_sampling.IMG_TO_IMG, torch.nn.Module):
        pass

    clone = tiny_unet.clone()
    clone.add_object_patch("model_sampling", Turned())
    with pytest.raises(host.ops.TrainError, match=r"not trained by adding noise"):
        train(model=clone)


def test_the_help_page_has_the_defaults_of_every_family(host: Host) -> None:
    page = (ROOT / "lycoris_nodes" / "web" / "docs" / "LycorisTrain.md").read_text(encoding="utf-8")
    families = host.module("lycoris_nodes.host.families")
    named = [families.family_named([kind], kind) for kind in families.KINDS]
    assert len({family.name for family in named}) > 25
    for family in (*named, families.OTHER_FLOW, families.OTHER):
        times, shift = family.times.distribution, family.times.shift
        words = f"shift {shift:g}" if isinstance(shift, int | float) else "shift by size"
        row = (family.name, str(family.rank), f"{family.lr:g}", f"{times}, {words}", family.source)
        assert f"| {' | '.join(row)} |" in page, row
    others = {name: kind.fresh_rate for name, kind in host.ops.ALGORITHMS.items() if kind.fresh_rate != 1}
    assert others == {"lokr": 10, "ia3": 10, "vera": 10, "full": 0.1}
    assert "ten times that for `lokr`, `ia3` and `vera`, and a tenth for `full`" in page


@pytest.mark.soak
def test_a_search_finds_the_rate_and_the_kind_before_the_training(
    host: Host, train: Callable[..., Any], tiny_unet: Any, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    import comfy.model_management

    settings: dict[str, Any] = {"steps": 30, "preset": "full", "search_share": 4.0, **held_out()}
    told: list[dict[str, Any]] = []
    live = host.module("lycoris_nodes.training.node.live").Live
    stage = live.stage
    stop_after(1000)

    def noted(self: Any, name: str, done: int, of: int, **more: Any) -> None:
        if name == "searching":
            told.append({"done": done, "of": of, **more})
        stage(self, name, done, of, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(live, "stage", noted)
        found = train(search="all", **settings)
        assert {step["entrant"] for step in told} == {"planned lora"}
        # Four times 30 steps, less the time that a plan adds to the training.
        assert told[-1]["done"] <= told[-1]["of"] == 118 and told[-1]["heat"] <= told[-1]["heats"]
        assert "searched: " in found["report"] and "before any step" in found["report"]
        race = host.ops.Race.of_json((tmp_path / "loras/style_00001_-race.json").read_text("utf-8"))
        assert race.verdict() in found["report"]
        adapter = host.ops.load_adapter(found["path"])
        assert {layer.algorithm for layer in adapter.layers.values()} == {race.name.split()[1]} or (
            race.name == "lora as asked"
        )
        assert float(adapter.metadata["ss_learning_rate"]) == race.lr
        assert found["curves"].shape[1] > train(steps=2, **held_out())["curves"].shape[1]
        # Another training on the same data takes over the race's outcome, and so does a resumed one.
        told.clear()
        second = train(search="all", **{**settings, "seed": 6})
        assert not told and "not raced again" in second["report"]
        stop_after(20)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(search="all", **{**settings, "seed": 7})
        stop_after(1000)
        resumed = train(search="all", **{**settings, "seed": 7})
        assert not told and "went on from step 20" in resumed["report"]
        # A race for the rate alone, judged by latents that are set apart.
        del settings["validation_latents"], settings["validation_positive"]
        with unchanged(tiny_unet.model):
            rate = train(search="rate", algorithm="oft", **settings | {"search_share": 1.0})
    assert {step["entrant"] for step in told} == {"oft as asked"}
    assert "judged on 1 latent that took no part in it" in rate["report"]


def test_a_search_that_is_stopped_leaves_the_model_as_it_was(
    host: Host, train: Callable[..., Any], tiny_unet: Any, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    import comfy.model_management

    stop_after(1000)
    # This makes the host undo what earlier tests have applied to the model.
    train(steps=1, filename_prefix="first/style")
    stop_after(15)
    with unchanged(tiny_unet.model), pytest.raises(comfy.model_management.InterruptProcessingException):
        train(search="rate", search_share=1.0, steps=60)
    assert not (tmp_path / "loras").exists() or not list((tmp_path / "loras").glob("*race*"))
