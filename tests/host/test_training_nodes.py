"""Train LoRA / LyCORIS and Plan LyCORIS Ranks in the real host, in this process, on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched
from safetensors.torch import load_file
from torch import Tensor
from trainable import module, patcher, tiny, unchanged

pytestmark = pytest.mark.host

CHANNELS, SIDE, WORDS, WIDTH = 4, 8, 5, 24


def latent(seed: int, side: int = SIDE) -> dict[str, Tensor]:
    """A latent with something to learn: a gradient and a disc, a little different for each seed."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (SIDE, side)], indexing="ij")
    draw = torch.Generator().manual_seed(seed)
    planes = [x, y, (x**2 + y**2 < 0.5).float(), x * y]
    noise = 0.1 * torch.randn((CHANNELS, SIDE, side), generator=draw)
    return {"samples": (4 * torch.stack(planes) + noise)[None]}


def caption(seed: int, words: int = WORDS, **more: Any) -> list[Any]:
    draw = torch.Generator().manual_seed(100 + seed)
    return [[torch.randn((1, words, WIDTH), generator=draw), dict(more)]]


@pytest.fixture(scope="module")
def model(host: Host) -> Any:
    return patcher(tiny("SD1.5"))


@pytest.fixture
def train(host: Host, model: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Run the node on four small latents, with other inputs as given; its outputs by name."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))

    def run(**inputs: Any) -> dict[str, Any]:
        known: dict[str, Any] = {
            "model": model,
            "latents": [latent(seed) for seed in range(4)],
            "positive": [caption(seed) for seed in range(4)],
            "steps": 8,
            "learning_rate": 3e-3,
            "algorithm": "lora",
            "rank": 4,
            "filename_prefix": "loras/style",
            "resume": False,
            "seed": 5,
        }
        many = ("latents", "positive", "masks", "empty_caption", "validation_latents", "validation_positive")
        given = {**known, **inputs}
        # As the host calls a node that takes lists.
        lists = {name: value if name in many else [value] for name, value in given.items()}
        node = host.nodes.NODE_CLASS_MAPPINGS["LycorisTrain"]
        with torch.inference_mode():
            made = node.execute(**lists)
        names = [output.id for output in node.GET_SCHEMA().outputs]
        return dict(zip(names, made.args, strict=True)) | {"ui": made.ui}

    yield run
    folder_paths.set_output_directory(before)


def held_out() -> dict[str, Any]:
    return {
        "validation_latents": [latent(10), latent(11)],
        "validation_positive": [caption(0), caption(1)],
    }


def test_it_learns_and_the_file_gives_the_loss_that_training_had(
    host: Host, train: Callable[..., Any], model: Any
) -> None:
    with unchanged(model.model):
        made = train(steps=40, validate_every=20, batch_size=2, **held_out())
    report = made["report"]
    history = [line for line in report.splitlines() if line.startswith("held-out loss")]
    assert made["steps_done"] == 40 and len(made["loss_map"]["loss"]) == 40
    first, best = (float(history[0].split()[at].rstrip(",")) for at in (2, 7))
    assert best < 0.9 * first, report
    assert "model: Stable Diffusion" in report and "4 latents (8 x 8 x4), 2 batches" in report
    path = Path(made["path"])
    assert path.name == "style_00001_.safetensors" and path.is_file()
    assert made["curves"].shape[0] == 1 and made["curves"].shape[-1] == 3
    assert set(made["lora"]) == set(load_file(path))

    # The loss of the held-out latents with the file applied, by the same noise and times.
    found = validation_loss(host, host.apply(Patched(model, None), made["stack"], mode="merge").model)
    before = validation_loss(host, model)
    assert before == pytest.approx(first, rel=1e-3)
    assert found == pytest.approx(float(history_last(report, made)), rel=2e-3)


def history_last(report: str, made: dict[str, Any]) -> float:
    """The held-out loss in the last step, out of the state."""
    folder = Path(made["path"]).with_name("style_00001_-checkpoints")
    state = load_file(folder / "last.state.safetensors")
    key = next(key for key in state if key.endswith("validation"))
    return float(state[key][-1, 1])


def validation_loss(host: Host, patched: Any) -> float:
    """The mean loss of the held-out latents as the node validates, of a model as it is."""
    import importlib

    import comfy.model_management

    pack = host.pack.__name__
    training, samples = module(host, ""), importlib.import_module(f"{pack}.lycoris_nodes.samples")
    chance = importlib.import_module(f"{pack}.lycoris_ops.train.chance").Chance
    comfy.model_management.load_models_gpu([patched])
    given = held_out()
    with training.opened(patched) as session, torch.no_grad():
        held = samples.samples_of(session, given["validation_latents"], given["validation_positive"])
        loss = training.DiffusionLoss(session=session, times=training.family_of(patched.model).times)
        losses = []
        for number, batch in enumerate(samples.batches_in_order(held, 2) * 4):
            with chance(5, "validation", number).drawn():
                losses.append(float(loss(session.network, batch)))
    return sum(losses) / len(losses)
