"""Both experts of a model, trained in one run of Train LoRA / LyCORIS, into a pair of files."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from torch import Tensor
from trainable import run_node, tiny

from tests.harness.inputs import INPUTS

pytestmark = pytest.mark.host

ARCHITECTURE = "Wan 2.1 t2v"
BOUNDARY = 0.875
EXPERTS = {"high_noise": (BOUNDARY, 1.0), "low_noise": (0.0, BOUNDARY)}
STEPS = 3
Train = Callable[..., dict[str, Any]]


class Pair:
    """Two tiny experts, the times at which each was trained, and the step in which Stop is pressed."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.times: dict[str, list[float]] = {name: [] for name in EXPERTS}
        self.stop = ("", 0)
        """Stop is pressed in this step of this expert, counted in this run. The step is not finished."""
        for seed, name in enumerate(EXPERTS):
            self.models[name] = patcher(tiny(ARCHITECTURE, seed, in_dim=16, out_dim=16))
            self.models[name].cached_patcher_init = (None, (f"models/wan2.2_t2v_{name}_14B.safetensors",))
            self._note(name)

    def _note(self, name: str) -> None:
        import comfy.model_management

        model = self.models[name].model
        real = model.apply_model

        def noted(x: Tensor, sigma: Tensor, **more: Any) -> Tensor:
            # Note the passes of steps only, not those without gradients.
            if torch.is_grad_enabled():
                self.times[name] += sigma.flatten().tolist()
            if self.stop == (name, len(self.times[name])):
                comfy.model_management.interrupt_current_processing()
            return real(x, sigma, **more)

        model.apply_model = noted

    def links(self, stop: tuple[str, int] = ("", 0)) -> dict[str, Any]:
        self.stop, self.times = stop, {name: [] for name in EXPERTS}
        return {"model": self.models["high_noise"], "low_noise_model": self.models["low_noise"]}


@pytest.fixture(scope="module")
def pair(host: Host) -> Pair:
    return Pair()


@pytest.fixture
def train(host: Host, tmp_path: Path) -> Train:
    """Run the node on three small clips; its outputs by name."""
    draw = torch.Generator().manual_seed(1)
    words = INPUTS[ARCHITECTURE].text
    assert words is not None
    given: dict[str, Any] = {
        "latents": [{"samples": torch.randn((1, 16, 2, 4, 4), generator=draw)} for _ in range(3)],
        "positive": [[[torch.randn((1, *words), generator=draw), {}]] for _ in range(3)],
        "filename_prefix": "loras/ink",
        "steps": STEPS,
        "rank": 2,
        "warmup": 0,
        "preset": "attn-only",
    }

    def run(folder: Path = tmp_path, **inputs: Any) -> dict[str, Any]:
        return run_node(host, "LycorisTrain", folder, **{**given, **inputs})

    return run


def files(folder: Path) -> dict[str, bytes]:
    """The adapters in a folder, by their names in the list of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("loras/*.safetensors")
    }


HIGH, LOW = (f"loras/ink_{name}_00001_.safetensors" for name in EXPERTS)


def test_one_run_gives_the_files_that_each_expert_gives_by_itself(
    host: Host, train: Train, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, alive = host.module("lycoris_nodes.training.node.run"), list[int]()
    opened = run.opened_both

    def counted(*given: Any, **more: Any) -> Any:
        gc.collect()
        alive.append(sum(isinstance(one, host.ops.LycorisNetwork) for one in gc.get_objects()))
        return opened(*given, **more)

    monkeypatch.setattr(run, "opened_both", counted)
    made = train(**pair.links())
    # No network of the first is held while the second is trained.
    assert alive[0] == alive[1]
    for name, (least, most) in EXPERTS.items():
        times = pair.times[name]
        assert len(times) == STEPS and all(least <= time <= most for time in times)
    assert files(tmp_path).keys() == {HIGH, LOW}
    found = host.module("lycoris_nodes.files.pairs").partner_of(HIGH, [HIGH, LOW])
    assert (found.file, found.expert, found.sure) == (LOW, "low noise", True)
    alone = [train(tmp_path / "alone", model=model) for model in pair.models.values()]
    assert files(tmp_path / "alone") == files(tmp_path)

    (entry,) = made["stack"]
    assert [Path(adapter.path).name for adapter in entry.adapters] == [Path(HIGH).name, Path(LOW).name]
    assert made["loss_map"]["loss"] == [loss for one in alone for loss in one["loss_map"]["loss"]]
    assert made["steps_done"] == 2 * STEPS and made["curves"].shape[0] == 2
    assert made["path"] == str(tmp_path / HIGH)
    told, _, folded = made["report"].partition("\n\n")
    for part in (told, folded):
        assert part.index("High-noise expert:") < part.index("Low-noise expert:")
    for words in (
        HIGH,
        LOW,
        "from 0.875 to 1: the times of the high-noise",
        "from 0 to 0.875: the times of the low-noise",
    ):
        assert words in told


def test_a_slider_is_trained_for_both_experts(host: Host, pair: Pair, tmp_path: Path) -> None:
    words = INPUTS[ARCHITECTURE].text
    assert words is not None
    ends = {name: [[[torch.randn(1, *words), {}]]] for name in ("positive", "less", "more")}
    latents = [{"samples": torch.randn(1, 16, 2, 4, 4)}]
    how = {"filename_prefix": "loras/ink", "steps": STEPS, "rank": 2, "preset": "attn-only"}
    run_node(host, "LycorisSlider", tmp_path, latents=latents, **ends, **how, **pair.links())
    assert files(tmp_path).keys() == {HIGH, LOW}
    for name, (least, most) in EXPERTS.items():
        # Both strengths of a step are at one time.
        assert len(pair.times[name]) == 2 * STEPS
        assert all(least <= time <= most for time in pair.times[name])


Stopped = Callable[[str, int], list[int]]
Asked = Callable[..., Any]


@pytest.fixture
def stopped(train: Train, pair: Pair) -> Stopped:
    """Train both until Stop is pressed in a step of an expert. Returns how many steps each began then."""
    import comfy.model_management

    def run(expert: str, step: int) -> list[int]:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(**pair.links((expert, step)))
        return [len(times) for times in pair.times.values()]

    return run


@pytest.fixture
def asked(host: Host, tmp_path: Path) -> Asked:
    """What the page is told of a stopped training of both: expert, step, name, and changed settings."""
    import folder_paths

    page = host.module("lycoris_nodes.training.node.told")
    inputs = host.module("lycoris_nodes.training.node.schema").inputs()
    values = {"filename_prefix": "loras/ink", "steps": STEPS, "rank": "2", "seed": 5}
    values |= {"layers.preset": "attn-only", "optimisation.warmup": 0.0}
    question = page.TrainingQuestion([], [], "1", "", linked=["low_noise_model"])

    def ask(*, anew: bool = False, **changed: Any) -> Any:
        before = folder_paths.get_output_directory()
        folder_paths.set_output_directory(str(tmp_path))
        try:
            found = page.told(replace(question, values={**values, **changed}, anew=anew), inputs).stopped
        finally:
            folder_paths.set_output_directory(before)
        return found and tuple(getattr(found, name) for name in ("expert", "step", "name", "differences"))

    return ask


def test_a_pair_goes_on_where_it_stopped(
    host: Host,
    train: Train,
    pair: Pair,
    stopped: Stopped,
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    output = host.module("lycoris_nodes.training.node.output")
    monkeypatch.setattr(output, "tell_page", lambda *_, **told: said.append(str(told)))
    whole = tmp_path / "whole"
    train(whole, **pair.links())
    (between,) = (one for one in said if "trains the low-noise expert" in one)
    assert "High-noise expert: finished" in between and "Low-noise" not in between
    # Another training takes the number that one file of the pair would have had.
    train(model=pair.models["low_noise"], seed=9, steps=1)
    assert asked() is None
    assert stopped("high_noise", 2) == [2, 0]
    assert asked() == ("high noise", 1, "ink_high_noise_00002_", [])
    high, low = (tmp_path / file.replace("00001", "00002") for file in (HIGH, LOW))
    # A file has its own name in its metadata.
    wanted = {name: data.replace(b"_00001_", b"_00002_") for name, data in files(whole).items()}
    assert stopped("low_noise", 3) == [STEPS - 1, 3]
    assert asked() == ("low noise", 2, "ink_low_noise_00002_", [])
    assert asked(seed=6) == ("low noise", 2, "ink_low_noise_00002_", ["seed was 5 and is 6"])
    assert high.read_bytes() == wanted[HIGH] and not low.exists()
    # What a kill leaves between the two files of the first checkpoint.
    folder = low.with_name(f"{low.stem}-checkpoints")
    state = folder / "last.state.safetensors"
    kept = state.read_bytes()
    state.unlink()
    assert stopped("low_noise", 1) == [0, 1]
    state.write_bytes(kept)
    made = train(**pair.links())
    assert [len(times) for times in pair.times.values()] == [0, STEPS - 2]
    assert (high.read_bytes(), low.read_bytes()) == (wanted[HIGH], wanted[LOW])
    assert made["steps_done"] == 2 * STEPS and made["path"] == str(high)
    # With more steps both go on.
    made = train(**pair.links(), steps=STEPS + 1, resume=True)
    assert made["path"] == str(high) and [len(times) for times in pair.times.values()] == [1, 1]


@pytest.mark.soak
def test_what_counts_as_half_of_a_pair(
    host: Host, train: Train, pair: Pair, stopped: Stopped, asked: Asked, tmp_path: Path
) -> None:
    # An expert that was trained by itself, either of them.
    for number, name in enumerate(reversed(EXPERTS), 1):
        train(model=pair.models[name])
        expert = name.replace("_", " ")
        assert asked() == (expert, STEPS, f"ink_{name}_0000{number}_", [])
        made = train(**pair.links())
        assert f"_0000{number}_" in made["path"] and not pair.times[name]
        assert [len(times) for times in pair.times.values() if times] == [STEPS]
        assert asked() is None
    # Both are finished, so a new pair begins. Its second expert only goes on with the same settings.
    assert stopped("low_noise", 2) == [STEPS, 2]
    with pytest.raises(host.ops.TrainError, match=r"interrupted after 1 step, with other settings: seed"):
        train(**pair.links(), seed=6)
    assert "_00003_" in train(**pair.links(), seed=5)["path"]
    # What is set aside is left as it is, whichever of the two was stopped.
    for number, expert in ((4, "high_noise"), (5, "low_noise")):
        stopped(expert, 2)
        assert asked()[2] == f"ink_{expert}_0000{number}_"
        assert asked(anew=True) is None
    # If a pair was set aside, its first expert does not become half of a new pair.
    assert "_00006_" in train(**pair.links())["path"]
    # Resume for more steps, at another rate.
    with pytest.raises(host.ops.TrainError, match="no training of this name"):
        train(**pair.links(), filename_prefix="loras/other", resume=True)
    made = train(**pair.links(), steps=STEPS + 2, learning_rate=1e-3, resume=True)
    assert "_00006_" in made["path"] and made["report"].count("went on with other settings") == 2
    # An expert that was trained by itself, on another model.
    train(model=pair.models["high_noise"], seed=7)
    other = Pair()
    with torch.no_grad():
        next(other.models["high_noise"].model.diffusion_model.parameters()).add_(1)
    with pytest.raises(host.ops.MatchError, match="another model"):
        train(**other.links(), seed=7)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"low_noise_model": "high_noise"}, "not the two experts of one model.*the same model twice"),
        ({"low_noise_model": "SD1.5"}, "not the two experts of one model.*SD15|without experts"),
        (
            {"model": "low_noise", "low_noise_model": "high_noise"},
            "the other one of the two experts.*by the name",
        ),
        ({"expert": "all"}, "expert.*each model is trained at its own part"),
        ({"resume_from": "best"}, "a checkpoint belongs to one expert"),
        ({"filename_prefix": "wan_low/ink"}, "names that end in high_noise and low_noise"),
    ],
)
def test_what_is_no_pair_is_told_before_a_model_is_loaded(
    host: Host, train: Train, pair: Pair, changed: dict[str, str], problem: str
) -> None:
    given = {name: pair.models.get(value, value) for name, value in changed.items()}
    if "SD1.5" in given.values():
        given["low_noise_model"] = patcher(tiny("SD1.5"))
    with pytest.raises(host.ops.TrainError) as caught:
        train(**{**pair.links(), **given})
    assert re.search(problem, caught.value.told().replace("\n", " "))
    assert not any(pair.times.values())
