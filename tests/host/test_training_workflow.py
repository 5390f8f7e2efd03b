"""Over the host's HTTP interface: every template, and trainings that are stopped, resumed and applied."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from trainable import SAMPLED

from tests.harness.assets import install, parts
from tests.harness.diffusion import write_model, write_tiny_vae
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Run, Server, base_directory
from tests.harness.packages import DATA
from tests.harness.prompts import node, own
from tests.harness.templates import (
    EXTRACT,
    FOLDER,
    SLOW,
    SMALL,
    TEMPLATES,
    TRAIN,
    WRITING,
    draw_pictures,
    ready,
    template,
)
from tests.harness.workflow import ACTIVE, to_prompt
from tests.soak.trainings import JUDGED

pytestmark = pytest.mark.host

PHOTOGRAPHS = {"chelsea": "a cat", "coffee": "a cup of coffee", "astronaut": "a woman in orange"}
"""Pictures that come with scikit-image, and what they show."""
HELD_OUT = {"rocket": "a rocket"}

QUICK = f"""import os
from comfy import sample
NODE_CLASS_MAPPINGS = {{}}
os.fsync = lambda handle: None
whole = sample.sample
sample.sample = lambda model, noise, steps, *more, **named: whole(
    model, noise, min(steps, {SAMPLED}), *more, **named
)
"""
"""A custom node pack. With it, all sampling takes few steps, and no file waits for the disk."""

Nodes = dict[str, dict[str, Any]]


def cut_photographs(folder: Path, captions: dict[str, str]) -> None:
    """Write the middles of photographs, scaled down, with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in captions.items():
        (found,) = (path for path in DATA.files if Path(path).stem == name)
        picture = Image.open(DATA.file(found)).convert("RGB")
        side = min(picture.size)
        left, top = ((size - side) // 2 for size in picture.size)
        picture.resize((64, 64), box=(left, top, left + side, top + side)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(words, encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    base = install(base_directory(ROOT / ".cache" / facts().host / "training", ROOT), parts())
    shutil.rmtree(base / "output" / "loras", ignore_errors=True)
    shutil.rmtree(base / "user" / "__lycoris", ignore_errors=True)
    draw_pictures(base / "input")
    cut_photographs(base / "input" / "photographs", PHOTOGRAPHS)
    cut_photographs(base / "input" / "held_out", HELD_OUT)
    models = base / "models"
    write_model(models / "diffusion_models" / "flux.safetensors", "Flux")
    (base / "custom_nodes" / "quick.py").write_text(QUICK, encoding="utf-8")
    (models / "vae_approx").mkdir(exist_ok=True)
    write_tiny_vae(models / "vae_approx")
    # Otherwise the encoder's weights are cast again for each of the many captions.
    with Server(facts().comfyui, base, "--fp32-text-enc") as running:
        yield running


def prompt_of(server: Server, **training: Any) -> dict[str, Any]:
    """The template as a prompt that runs in seconds, with these inputs of the training replaced."""
    info = server.object_info()
    prompt = to_prompt(ready(TRAIN, info, SMALL), info)
    # These settings are in groups that the template leaves at their usual values.
    prompt[of_type(prompt, "LycorisTrain")]["inputs"] |= {
        **own("layers", preset="attn-only"),
        **own("output", validate_every=4),
        **training,
    }
    return prompt


def of_type(prompt: dict[str, Any], kind: str) -> str:
    """The number of the node of a type."""
    (number,) = (number for number, node in prompt.items() if node["class_type"] == kind)
    return number


def test_templates_are_named_where_users_read() -> None:
    """The README lists them all. So do the help pages together, and they name no others."""
    pages = [ROOT / "README.md", *(ROOT / "lycoris_nodes" / "web" / "docs").glob("*.md")]
    listed, *named = (set(re.findall(r"`(\d\d [^`]+)`", page.read_text("utf-8"))) for page in pages)
    assert listed == set().union(*named) == set(TEMPLATES)
    assert all((FOLDER / f"{name}.jpg").is_file() for name in TEMPLATES)


def missing_files(prompt: Nodes, info: dict[str, Any]) -> Iterator[str]:
    """The files that a prompt names and the host does not have, each as often as it is named."""
    for one in prompt.values():
        for name, value in one["inputs"].items():
            if str(value).endswith(".safetensors"):
                known = json.dumps(info[one["class_type"]]["input"]["required"][name])
                if json.dumps(value) not in known:
                    yield value


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.soak] if name in SLOW else [])
        for name in TEMPLATES
        if name != TRAIN
    ],
)
def test_a_template_asks_for_a_model_and_runs(server: Server, name: str) -> None:
    """Besides adapters, a template asks for the files of a model only.

    With these files it runs, and so do the nodes that it leaves muted.
    """
    info = server.object_info()
    opened = template(name)
    active = [node for node in opened["nodes"] if node["mode"] == ACTIVE]
    offered = [model["name"] for node in active for model in node["properties"].get("models", ())]
    # The first part of EXTRACT needs no model, and the second is muted.
    assert bool(offered) == (name != EXTRACT)
    assert sorted(missing_files(to_prompt(opened, info), info)) == sorted(offered)
    saving = [one for one in opened["nodes"] if one["type"] in WRITING.values()]
    writing = {one["type"] for one in saving if one["mode"] == ACTIVE}
    assert writing == ({WRITING[name]} if name in WRITING else set())

    graph = ready(name, info, SMALL)
    for one in graph["nodes"]:
        one["mode"] = ACTIVE
    prompt = to_prompt(graph, info)
    run = server.queue(prompt)
    assert run.error is None, run.error
    assert run.outputs.keys() >= {
        number for number, node in prompt.items() if info[node["class_type"]]["output_node"]
    }
    # A merged model is as large as the checkpoint, and the run goes on. The host keeps a list of the folder.
    for merged in (server.base / "output" / "checkpoints").glob("*.safetensors"):
        merged.unlink()


def test_the_template_learns_and_samples(server: Server) -> None:
    prompt = prompt_of(server)
    run = server.queue(prompt)
    assert run.error is None, run.error
    made = run.outputs[of_type(prompt, "LycorisDataset")]
    (data,) = made["text"]
    assert len(made["images"]) == 1
    assert "2 pictures in my_style" in data and "encoded: 2 pictures and 3 captions of 5" in data
    shown = run.outputs[of_type(prompt, "LycorisTrain")]
    (report,) = shown["text"]
    (drawn,) = shown["training"]
    # With a VAE there are samples by default, and the host serves them.
    assert [step for step, _ in drawn["samples"]] == [0, 4]
    assert len(drawn["losses"]) == 4 and drawn["folder"] == "loras/my_style_00001_-checkpoints"
    assert "Held-out loss" in report and "1 latent (" in report and "10% of the captions dropped" in report
    before, after = held_out_losses(run, of_type(prompt, "LycorisTrain"))
    assert after < 0.98 * before
    (applied,) = run.outputs[of_type(prompt, "LycorisApplyStack")]["text"]
    assert "applied 56 of 56 layers" in applied
    assert run.outputs[of_type(prompt, "SaveImage")]["images"]
    file = server.base / "output" / "loras" / "my_style_00001_.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    # The workflow can be read out of the file, as out of any that the host saves.
    assert json.loads(metadata["prompt"]).keys() == prompt.keys()
    assert metadata["ss_steps"] == "4" and metadata["ss_network_module"] == "networks.lora"
    # The list of files finds it by its trigger.
    assert metadata["modelspec.trigger_phrase"] == "mystyle"
    assert json.loads(metadata["ss_tag_frequency"])["pictures"]["mystyle"] == 1
    files = server.object_info()["LycorisLoadAdapter"]["input"]["required"]["file"][1]["options"]
    assert file.name in files and any(file.parent.glob("*/*.state.safetensors"))
    assert not [name for name in files if name.endswith(".state.safetensors")]


# Six runs, and a restart of the host.
@pytest.mark.soak
def test_what_lies_on_the_disk_decides_what_run_does(server: Server) -> None:
    """A training is stopped twice, with another one in between, and then the host is restarted.

    With nothing changed each Run continues it, and it ends as an unbroken training does. Then it is cached.
    """
    prompt = prompt_of(
        server,
        steps=16,
        filename_prefix="loras/stopped",
        **own("output", validate_every=4, checkpoint_every=2),
    )
    train, data = of_type(prompt, "LycorisTrain"), of_type(prompt, "LycorisDataset")
    folder = server.base / "output" / "loras" / "stopped_00001_-checkpoints"
    file = folder.with_name("stopped_00001_.safetensors")

    def broken_off() -> Run:
        """Run the prompt, and interrupt it once this run has written a checkpoint."""
        before, ended = set(folder.glob("step-*.state.safetensors")), threading.Event()

        def on_progress(number: str, value: int, maximum: int) -> None:
            if number == train and not ended.is_set() and set(folder.glob("step-*.state.*")) - before:
                ended.set()
                server.interrupt()

        run = server.queue(prompt, on_progress)
        assert ended.is_set() and run.interrupted and run.error is None
        return run

    stopped = broken_off()
    # The prompt ends at the training, so the host has no outputs of these nodes.
    assert not {train, of_type(prompt, "LycorisApplyStack")} & stopped.outputs.keys()
    steps = saved_steps(folder / "last.safetensors")
    # It is in the loaders' list, because the host looks for models in its output folder too.
    files = server.object_info()["LycorisLoadAdapter"]["input"]["required"]["file"][1]["options"]
    assert "stopped_00001_-checkpoints/last.safetensors" in files

    whole = json.loads(json.dumps(prompt))
    whole[train]["inputs"]["filename_prefix"] = "loras/unbroken"
    assert server.queue(whole).error is None
    again = broken_off()
    assert train not in again.cached
    assert steps < saved_steps(folder / "last.safetensors") < 16
    assert not file.exists()
    server.__exit__()
    server.__enter__()

    # Before Run the model is not loaded: the name of its file tells what is usual for it.
    found = told(server, prompt[train]["inputs"])
    assert found["usual"]["family"] == "Stable Diffusion" and found["usual"]["rank"] == "16"
    assert found["stopped"]["name"] == "stopped_00001_" and found["stopped"]["differences"] == []
    steps = found["stopped"]["step"]
    assert 0 < steps < 16 and [step for step, _ in found["stopped"]["losses"]] == list(range(1, steps + 1))
    found = told(server, {**prompt[train]["inputs"], "rank": 3, "layers.exclude": "mid*"})
    assert found["stopped"]["differences"] == ["rank was 2 and is 3", "exclude was '' and is 'mid*'"]
    assert found["stopped"]["others"] == {"rank": 2, "layers.exclude": ""}
    # A number that another node gives is not known yet, so it makes no difference.
    assert not told(server, {**prompt[train]["inputs"], "rank": 3}, linked=["rank"])["stopped"]["differences"]

    run = server.queue(prompt)
    (encoded,) = run.outputs[data]["text"]
    assert "encoded: 0 pictures and 0 captions of " in encoded
    (report,) = run.outputs[train]["text"]
    assert re.search(
        r"^went on from step \d+ of an earlier run: step-\d+\.state\.safetensors, the newest of \d states$",
        report,
        re.MULTILINE,
    )
    made, wanted = load_file(file), load_file(file.with_name("unbroken_00001_.safetensors"))
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)

    run = server.queue(prompt)
    assert run.error is None and train in run.cached
    prompt[train]["inputs"].update(resume=True, steps=17)
    run = server.queue(prompt)
    assert run.error is None, run.error
    assert saved_steps(file) == 17


# A second host, and six trainings.
@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="no process can be halted there")
def test_two_servers_with_one_output_folder_train_beside_each_other(server: Server, tmp_path: Path) -> None:
    """Of two trainings of one name each gets a number and a whole file, and one that is killed goes on."""
    base = install(base_directory(tmp_path, ROOT), parts())
    folders = {"--input-directory": "input", "--output-directory": "output"}
    shared = [word for option, name in folders.items() for word in (option, str(server.base / name))]
    loras = server.base / "output" / "loras"

    def asked(steps: int, prefix: str = "loras/beside") -> Nodes:
        """A training without samples, which take longer than all the rest."""
        changed = {"steps": steps, "filename_prefix": prefix, **own("output", checkpoint_every=2)}
        whole = json.loads(json.dumps(prompt))
        whole[train]["inputs"] = {**prompt[train]["inputs"], **changed}
        del whole[train]["inputs"]["vae"], whole[train]["inputs"]["output.sample_every"]
        return whole

    def report(one: Server, prompt_id: str) -> str:
        run = one.wait(prompt_id)
        assert run.error is None, run.error
        return run.outputs[train]["text"][0]

    def waited(seen: Callable[[], bool]) -> None:
        limit = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < limit
            time.sleep(0.01)

    def claim(number: int) -> Path:
        return loras / f"beside_{number:05}_-checkpoints" / "running.json"

    with Server(facts().comfyui, base, *shared) as other:
        prompt, train = JUDGED.prompt(server.object_info())
        # With the pictures encoded, both begin when they are asked to.
        for one, prompt_id in [(one, one.submit(asked(1, "loras/warm"))) for one in (server, other)]:
            report(one, prompt_id)

        both = [(one, one.submit(asked(16))) for one in (server, other)]
        waited(lambda: claim(1).exists() and claim(2).exists())
        told = [report(*each) for each in both]
        assert sum("began beside beside_00001_ (process " in each for each in told) == 1
        made = [load_file(loras / f"beside_{number:05}_.safetensors") for number in (1, 2)]
        assert all(torch.equal(made[0][name], tensor) for name, tensor in made[1].items())
        assert not claim(1).exists() and not claim(2).exists()

        other.submit(asked(17))
        waited(lambda: any(claim(3).parent.glob("step-*.state.safetensors")))
        os.kill(other.pid, signal.SIGSTOP)
        later = report(server, server.submit(asked(4)))
        assert f"began beside beside_00003_ (process {other.pid} on " in later
        assert "beside_00004_.safetensors" in later and saved_steps(loras / "beside_00004_.safetensors") == 4
        os.kill(other.pid, signal.SIGKILL)
        waited(lambda: not other.running())
        assert claim(3).exists()
        again = report(server, server.submit(asked(17)))
        assert "went on from step" in again and "began beside" not in again
        assert saved_steps(loras / "beside_00003_.safetensors") == 17 and not claim(3).exists()


def told(server: Server, inputs: dict[str, Any], linked: Sequence[str] = ()) -> dict[str, Any]:
    """What the page is told of a training with these inputs."""
    values = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    asked = {"node": "1", "page": "", "model": ["base.safetensors"], "clip": [], "linked": list(linked)}
    return server.post("/lycoris/training", {**asked, "values": values})


def saved_steps(file: Path) -> int:
    """The number of steps that an adapter was trained, from its metadata."""
    with safe_open(file, "pt") as opened:
        return int(opened.metadata()["ss_steps"])


def held_out_losses(run: Run, name: str = "train") -> tuple[float, float]:
    """The first and the best held-out loss in a node's report."""
    assert run.error is None, run.error
    (report,) = run.outputs[name]["text"]
    first, best = re.findall(r"^Held-out loss (\S+) before, \S+ at the end, (\S+) at best", report)[0]
    return float(first), float(best)


def test_a_model_is_trained_on_data_of_the_hosts_own_nodes(server: Server) -> None:
    """A Flux in a file of its own. The written adapter, loaded by the host's own node, gives the final loss.

    Samples are saved on the way.
    """
    specs = server.object_info()["LycorisTrain"]["input"]
    every = {name: spec for group in ("required", "optional") for name, spec in specs[group].items()}
    usual = {name: spec[1]["default"] for name, spec in every.items() if "default" in spec[1]}
    usual |= {
        "rank": 4,
        "learning_rate": 1e-2,
        **own("layers", preset="attn-mlp"),
        **own("optimisation", warmup=0.0, batch_size=3),
        "seed": 3,
    }
    usual |= {"latents": ["data", 0], "positive": ["data", 1]}
    usual |= {"validation_latents": ["held", 0], "validation_positive": ["held", 1]}
    nodes = {
        "base": node("CheckpointLoaderSimple", ckpt_name="base.safetensors"),
        "model": node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="taef1"),
    }
    for folder, name in (("photographs", "data"), ("held_out", "held")):
        nodes[f"{name} files"] = node("LoadImageTextDataSetFromFolder", folder=folder)
        given = {"images": [f"{name} files", 0], "texts": [f"{name} files", 1], "clip": ["base", 1]}
        nodes[name] = node("MakeTrainingDataset", vae=["vae", 0], **given)

    def training(model: str, prefix: str, steps: int, **more: Any) -> dict[str, Any]:
        settings = {"model": [model, 0], "filename_prefix": f"loras/{prefix}", "steps": steps}
        shown = own("output", validate_every=steps, **more)
        return node("LycorisTrain", **{**usual, **settings, **shown})

    train = training("model", "whole", 40, sample_every=20)
    run = server.queue({**nodes, "train": train})
    before, after = held_out_losses(run)
    assert after < 0.98 * before
    folder = server.base / "output" / "loras"
    samples = sorted((folder / "whole_00001_-checkpoints").glob("sample-*.png"))
    assert [sample.stem for sample in samples] == ["sample-000000", "sample-000020", "sample-000040"]
    assert len({sample.read_bytes() for sample in samples}) == 3
    file = {"lora_name": "whole_00001_.safetensors", "strength_model": 1.0}
    lora = node("LoraLoaderModelOnly", model=["model", 0], **file)
    run = server.queue({**nodes, "lora": lora, "check": training("lora", "check", 1)})
    assert held_out_losses(run, "check")[0] == pytest.approx(after, rel=1e-3)
