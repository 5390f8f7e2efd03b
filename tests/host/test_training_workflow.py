"""The template of training over the host's HTTP interface: from a folder of pictures to a sampled picture."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory
from tests.harness.workflow import to_prompt

pytestmark = pytest.mark.host

WORKFLOW = ROOT / "workflows" / "train_a_style.json"
FOLDER = "my_style"


def draw_pictures(folder: Path) -> None:
    """Two small pictures of different shapes, with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour, size in (("red", "crimson", (96, 96)), ("blue", "navy", (128, 96))):
        picture = Image.new("RGB", size, "beige")
        ImageDraw.Draw(picture).ellipse([16, 16, size[0] - 16, size[1] - 16], fill=colour)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"mystyle, a {name} disc", encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    base = install(base_directory(ROOT / ".cache" / facts().host / "training", ROOT))
    shutil.rmtree(base / "output" / "loras", ignore_errors=True)
    draw_pictures(base / "input" / FOLDER)
    with Server(facts().comfyui, base) as running:
        yield running


def prompt_of(server: Server, **training: Any) -> dict[str, Any]:
    """The template as a prompt that runs in seconds, with other settings of the training as given."""
    prompt = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.object_info())
    small: dict[str, dict[str, Any]] = {
        "ImageScaleToTotalPixels": {"megapixels": 0.01},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "KSampler": {"steps": 1},
        "LycorisTrain": {"steps": 4, "learning_rate": 2e-3, "rank": 2, "preset": "attn-only"}
        | {"validate_every": 4, **training},
    }
    for node in prompt.values():
        node["inputs"].update(small.get(node["class_type"], {}))
    data = next(number for number, node in prompt.items() if node["class_type"] == "MakeTrainingDataset")
    train = prompt[of_type(prompt, "LycorisTrain")]["inputs"]
    train.update(validation_latents=[data, 0], validation_positive=[data, 1])
    return prompt


def of_type(prompt: dict[str, Any], kind: str) -> str:
    """The number of the node of a type."""
    (number,) = (number for number, node in prompt.items() if node["class_type"] == kind)
    return number


def test_the_template_learns_and_samples(server: Server) -> None:
    prompt = prompt_of(server)
    run = server.queue(prompt)
    assert run.error is None, run.error
    shown = run.outputs[of_type(prompt, "LycorisTrain")]
    (report,) = shown["text"]
    assert len(shown["images"]) == 1
    assert "held-out loss" in report and "2 latents (" in report and "10% of the captions dropped" in report
    (line,) = [line for line in report.splitlines() if line.startswith("held-out loss")]
    # "held-out loss 1.2 in step 0, best 1.1 in step 4"
    words = line.split()
    assert float(words[7]) < 0.98 * float(words[2]), line
    (applied,) = run.outputs[of_type(prompt, "LycorisApplyStack")]["text"]
    assert "applied 56 of 56 layers" in applied
    assert run.outputs[of_type(prompt, "SaveImage")]["images"]
    file = server.base / "output" / "loras" / "my_style_00001_.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    # The workflow can be read out of the file, as out of any that the host saves.
    assert json.loads(metadata["prompt"]).keys() == prompt.keys()
    assert metadata["ss_steps"] == "4" and metadata["ss_network_module"] == "networks.lora"


def test_stop_keeps_a_file_that_the_next_run_goes_on_from(server: Server) -> None:
    prompt = prompt_of(server, steps=200, filename_prefix="loras/stopped")
    train = of_type(prompt, "LycorisTrain")
    del prompt[train]["inputs"]["validation_latents"], prompt[train]["inputs"]["validation_positive"]
    begun = threading.Event()

    def on_progress(node: str, value: int, maximum: int) -> None:
        if node == train and not begun.is_set():
            begun.set()
            server.interrupt()

    run = server.queue(prompt, on_progress)
    assert begun.is_set() and run.interrupted and run.error is None
    folder = server.base / "output" / "loras" / "stopped_00001_-checkpoints"
    assert {file.name for file in folder.iterdir()} == {"last.safetensors", "last.state.safetensors"}
    # It is in the loaders' list, because the host looks for models in its output folder too.
    files = server.object_info()["LycorisLoadAdapter"]["input"]["required"]["file"][1]["options"]
    assert "stopped_00001_-checkpoints/last.safetensors" in files

    prompt[train]["inputs"].update(resume=True, steps=3)
    run = server.queue(prompt)
    assert run.error is None, run.error
    (report,) = run.outputs[train]["text"]
    assert int(report.split()[0]) >= 3 and "stopped_00001_.safetensors" in report
