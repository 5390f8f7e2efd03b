"""Judge LyCORIS in the real host, in this process, on a tiny model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, patcher
from safetensors.torch import save_file
from trainable import (
    Counted,
    caption,
    clip_with_words,
    encoded,
    held_out_loss,
    latent,
    run_node,
    tiny,
    train,
    unchanged,
    vision_model,
)

pytestmark = pytest.mark.host

HELD: dict[str, Any] = {"latents": [latent(10), latent(11)], "positive": [caption(0), caption(1)]}


@pytest.fixture
def judgements(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the node came to in each run, with all digits."""
    node, found = host.module("lycoris_nodes.nodes.judge"), list[Any]()
    real = node.run_judge

    def run(*given: Any) -> Any:
        made = real(*given)
        found.append(made.judgement)
        return made

    monkeypatch.setattr(node, "run_judge", run)
    return found


@pytest.fixture
def judge(host: Host, tiny_unet: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the node on held-out latents of the training `loras/style`; its outputs by name."""
    return lambda **inputs: run_node(
        host, "LycorisJudge", tmp_path, **{"model": tiny_unet, "samples": 0, **HELD, **inputs}
    )


@pytest.fixture
def checkpoints(train: Callable[..., Any]) -> dict[str, Any]:
    """A training with a checkpoint after every second of six steps, all of them kept."""
    held = {f"validation_{name}": value for name, value in HELD.items()}
    return train(
        preset="full", steps=6, learning_rate=5e-2, checkpoint_every=2, keep=9, validate_every=2, **held
    )


def test_losses_are_those_that_the_training_validated_and_that_the_stack_gives(
    host: Host, checkpoints: dict[str, Any], judge: Callable[..., Any], tiny_unet: Any, judgements: list[Any]
) -> None:
    validated = dict(checkpoints["loss_map"]["validation"])
    given = {"strengths": "1, -1, 0", "share": 1.0, "times": 4}
    with unchanged(tiny_unet.model):
        made = judge(training="loras/style", **given)
    (found,) = judgements
    # `best`, `last` and the file are checkpoints of these steps too.
    assert found.names == ("step 2", "step 4", "step 6") and found.strengths == (1.0, -1.0)
    for row, step in enumerate((2, 4, 6)):
        assert found.loss((row, 0)) == pytest.approx(validated[step], rel=1e-5)
        assert found.loss((row, 1)) > found.loss((row, 0))
    assert found.loss(host.ops.ALONE) == pytest.approx(validated[0], rel=1e-5)
    (entry,) = made["stack"]
    step = min((2, 4, 6), key=lambda step: validated[step])
    assert entry.strength == 1.0 and entry.name == f"step {step}"
    applied = host.apply(Patched(tiny_unet, None), made["stack"]).model
    assert held_out_loss(host, applied, *HELD.values()) == pytest.approx(validated[step], rel=1e-5)
    assert made["report"].startswith(f"Best is step {step} at 1: held-out loss {validated[step]:.4g}, ")
    # The same files as a stack, and the path of the training's file.
    files = sorted(
        Path(checkpoints["path"].replace(".safetensors", "-checkpoints")).glob("step-00000?.safet*")
    )
    stack = host.ops.Stack([host.ops.Entry(host.ops.load_adapter(path), strength=0.1) for path in files])
    again = judge(stack=stack, training=checkpoints["path"], **given)
    both = (one["report"].splitlines()[0].partition(":")[2].partition(";")[0] for one in (again, made))
    assert next(both) == next(both)
    assert "12 pairs and the model alone, each on up to 8 draws: 100% of all passes" in again["report"]
    assert made["picture"].shape[-1] == 3 and "<svg" in made["ui"]["lycoris"][0]["drawing"]


def test_the_host_queues_it_and_refuses_strengths_that_are_none(host: Host) -> None:
    import execution

    widgets = {
        one.id: one.default
        for one in host.nodes.NODE_CLASS_MAPPINGS["LycorisJudge"].GET_SCHEMA().inputs
        if getattr(one, "default", None) is not None
    }
    links = {"model": ["1", 0], "latents": ["3", 0], "positive": ["2", 0]}

    def errors(**inputs: Any) -> str:
        prompt: dict[str, Any] = {
            "1": ("CheckpointLoaderSimple", {"ckpt_name": "base.safetensors"}),
            "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
            "3": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
            "4": ("LycorisJudge", {**widgets, **links}),
            "5": ("LycorisJudge", {**widgets, **links, **inputs}),
        }
        nodes = {key: {"class_type": kind, "inputs": given} for key, (kind, given) in prompt.items()}
        _, _, outputs, found = asyncio.run(execution.validate_prompt("judge", nodes, None))
        assert ("5" in outputs) is (not found)
        return str(found)

    assert errors() == "{}"
    # A text that another node gives is not known yet.
    assert errors(strengths=["4", 3]) == "{}"
    assert "many" in errors(strengths="many")


def test_it_runs_again_when_a_training_has_another_checkpoint(host: Host, tmp_path: Path) -> None:
    import folder_paths

    node, before = host.nodes.NODE_CLASS_MAPPINGS["LycorisJudge"], folder_paths.get_output_directory()
    folder = tmp_path / "loras" / "style_00001_-checkpoints"
    folder.mkdir(parents=True)

    def stamp() -> str:
        return node.fingerprint_inputs(training=["loras/style"], model=(None,), strengths=["1"])

    folder_paths.set_output_directory(str(tmp_path))
    try:
        (folder / "step-000002.safetensors").touch()
        first = stamp()
        # None of these is an adapter.
        (folder / "step-000002.state.safetensors").touch()
        (folder / ".step-000004.safetensors").touch()
        (folder / "notes").mkdir()
        assert stamp() == first
        (folder / "step-000004").mkdir()
        (folder / "step-000004" / "adapter_model.safetensors").touch()
        assert stamp() != first
        assert node.fingerprint_inputs(training=(None,)) == ""
        assert "no training of this name" in node.fingerprint_inputs(training=["loras/other"])
    finally:
        folder_paths.set_output_directory(before)


@pytest.mark.soak
def test_halving_takes_a_fifth_and_pictures_decide_among_equals(
    host: Host, train: Callable[..., Any], judge: Callable[..., Any], tmp_path: Path
) -> None:
    vision = vision_model(tmp_path, 3)
    vae = host.nodes.CheckpointLoaderSimple().load_checkpoint("base.safetensors")[2]
    pictures = {"vae": vae, "clip_vision": vision, "samples": 2, "other_positive": [caption(7)]}
    train(preset="attn-only", steps=3, checkpoint_every=1, keep=9)
    # Nearly no strength: the loss cannot tell these apart.
    made = judge(training="loras/style", strengths="1e-6, 2e-6, 3e-6", times=16, **pictures)
    assert ": 20% of all passes" in made["report"] or ": 19% of all passes" in made["report"]
    assert made["samples"].shape[0] == 2 and made["samples"].shape[-1] == 3
    lines = [line for line in made["report"].splitlines() if "nearness" in line]
    assert 2 <= len(lines) <= 4 and all("drift -0.000" in one or "drift 0.000" in one for one in lines)
    scores = {line.partition(":")[0]: float(re.findall(r"[\d.]+", line)[-2]) for line in lines}
    (entry,) = made["stack"]
    assert scores[f"{entry.name} at {entry.strength:g}"] == max(scores.values())
    likeness = module_of(host, "likeness")
    draw = torch.Generator().manual_seed(0)
    ones, others = (torch.randn(3, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    cosines = torch.nn.functional.cosine_similarity(ones[:, None], others[None], dim=2)
    assert likeness.nearness(ones, others) == pytest.approx(cosines.mean().item())
    assert likeness.drift(ones, others) == pytest.approx(1 - cosines.diagonal().mean().item())


def module_of(host: Host, name: str) -> Any:
    return host.module(f"lycoris_nodes.training.judge.{name}")


def test_the_first_batches_are_spread_over_times_and_samples(host: Host) -> None:
    order = module_of(host, "run").spread(8, 3)
    assert sorted(order) == list(range(24))
    for start in range(0, 24, 8):
        assert sorted(number // 3 for number in order[start : start + 8]) == list(range(8))
    # Halves and quarters of the range are met early.
    assert {number // 3 // 4 for number in order[:2]} == {0, 1}
    assert {number // 3 // 2 for number in order[:5]} == {0, 1, 2, 3}
    assert {number % 3 for number in order[:3]} == {0, 1, 2}


def test_text_encoders_are_judged_with_their_texts(host: Host, tmp_path: Path, judgements: list[Any]) -> None:
    model, clip = patcher(tiny("SD1.5", context_dim=32)), clip_with_words("SD1.5")
    texts = ["mystyle, a red disc on a mat", "mystyle, a blue square"]
    positive = [encoded(host, clip, text) for text in texts]
    data = {"latents": HELD["latents"], "positive": positive, "captions": texts}
    held = {f"validation_{name}": value for name, value in data.items()}
    given = {"model": model, "clip": clip, **data}
    trained = train(
        host, tmp_path, **given, **held, steps=2, learning_rate=0.05, text_learning_rate=2.0, rank=2
    )
    more = {"training": "loras/style", "strengths": "1", "share": 1.0, "times": 4}
    made = run_node(host, "LycorisJudge", tmp_path, **given, **more, samples=1)
    validated = dict(trained["loss_map"]["validation"])
    assert judgements[0].loss((0, 0)) == pytest.approx(validated[2], rel=1e-6)
    assert made["samples"].shape[0] == 1
    with unchanged(model.model):
        alone = run_node(
            host,
            "LycorisJudge",
            tmp_path,
            **{name: value for name, value in given.items() if name not in ("clip", "captions")},
            **more,
            samples=0,
        )
    assert "layers for text encoders not judged, because no clip is linked" in alone["report"]
    assert judgements[1].loss((0, 0)) != pytest.approx(validated[2], rel=1e-6)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "nothing to judge"),
        ({"training": "loras/none"}, "no training of this name"),
        ({"training": "../away"}, "leaves the output folder"),
        ({"training": "loras/style", "clip_vision": "linked"}, "no use without `vae`"),
        ({"training": "loras/style", "other_positive": [caption(1)]}, "no use without `clip_vision`"),
        ({"training": "loras/style", "strengths": "0"}, "nothing to judge"),
        ({"training": "loras/style", "vae": "of another model", "samples": 1}, "VAE is not the model's"),
        ({"training": "loras/style", "stack": "of another model"}, r"other\.safetensors.*does not fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_judged_says_why(
    host: Host,
    judge: Callable[..., Any],
    tmp_path: Path,
    tiny_unet: Any,
    given: dict[str, Any],
    problem: str,
) -> None:
    if given.get("training") == "loras/style":
        train(host, tmp_path, model=tiny_unet, **HELD, preset="attn-only", steps=1, rank=2)
    if "stack" in given:
        layer = {"lora_up.weight": torch.zeros(9, 2), "lora_down.weight": torch.zeros(2, 9)}
        key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
        save_file({f"{key}.{name}": value for name, value in layer.items()}, tmp_path / "other.safetensors")
        other = host.ops.load_adapter(tmp_path / "other.safetensors")
        given = {**given, "stack": host.ops.Stack([host.ops.Entry(other)])}
    if "vae" in given:
        given = {**given, "vae": Counted(16).vae}
    if "clip_vision" in given:
        given = {**given, "clip_vision": vision_model(tmp_path, 1)}
    with pytest.raises(host.ops.LycorisError, match=problem):
        judge(**given)
