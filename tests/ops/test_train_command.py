"""`python -m lycoris_ops train`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import train_task

import lycoris_ops as lyc
from lycoris_ops.commands import main

ROOT = Path(__file__).parents[2]
TASK = Path(train_task.__file__)


def settings(folder: Path, text: str = "", train: str = "") -> str:
    """A file of settings whose training is short, with lines before the tables and lines in [train]."""
    file = folder / "settings.toml"
    file.write_text(
        f"entry = 'task.py:task'\n{text}\n[network]\nalgorithm = 'loha'\nrank = 2\nseed = 1\n[train]\n"
        f"steps = 4\nlr = 0.01\nbar = false\npicture = false\n"
        f"output = '{folder.as_posix()}/out.safetensors'\n"
        f"{train}\n",
        encoding="utf-8",
    )
    (folder / "task.py").write_text(TASK.read_text(encoding="utf-8"), encoding="utf-8")
    return str(file)


def test_it_trains_as_the_function_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path, "arguments = {count = 3}", "dtype = 'bf16'\nvalidate_every = 2")
    assert main(["train", file, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    module, data, loss, held_out = train_task.task(3)
    net = lyc.create_lycoris(module, algorithm="loha", rank=2, seed=1)
    result = lyc.train_network(
        net, data, loss, lyc.TrainOptions(steps=4, lr=0.01, bar=False, validate_every=2), validation=held_out
    )
    assert shown["history"]["losses"] == [list(entry) for entry in result.history.losses]
    assert shown["history"]["validation"] == [list(entry) for entry in result.history.validation]
    assert shown["steps"] == 4 and shown["best"]["step"] == 4
    assert {info.rank for info in lyc.load_adapter(shown["output"]).info.values()} == {2}


@pytest.mark.parametrize(
    ("text", "train", "message"),
    [
        (
            "networks = 1",
            "",
            r"toml: an unknown key \(found networks; expected entry, arguments, network",
        ),
        ("", "learning_rate = 1", r"\[train\]: an unknown key \(found learning_rate"),
        ("", "warm_up = 3", "Is it warmup"),
        ("", "warmup = -1", "warmup: a setting is out of its range"),
        ("", "warmup = 'long'", "warmup: a setting is out of its range"),
        ("", "epochs = 1", "steps or of epochs"),
        ("", "dtype = 'int8'", "an unknown dtype"),
        ("", "lr = ", "the file is not TOML"),
        ("plan = {size = 'ranks 3'}", "", "the size cannot be understood"),
        ("plan = {size = {rank = 3}}", "", "the size cannot be understood"),
        ("plan = {rmax = 3}", "", "Is it r_max"),
        ("plan = {preset = 'everything'}", "", "everything"),
        ("arguments = {number = 3}", "", "arguments"),
        ("arguments = 3", "", "this must be a table"),
    ],
)
def test_bad_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, train: str, message: str
) -> None:
    file = settings(tmp_path, text, train)
    assert main(["train", file]) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown) and shown.startswith(f"error: {file}: ") and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("task.py:task", "task.py:tusk", "no such function"),
        ("task.py:task", "tusk.py:task", "no such file"),
        ("task.py:task", "nowhere:task", "cannot be imported"),
        ("task.py:task", "queue.py:task", "has the name of another module"),
        ("task.py:task", "torch.py:task", "has the name of another module"),
        ("task.py:task", "task.py:model", "returns something else"),
        ("entry = 'task.py:task'", "", "names no task"),
        ("task.py:task", "task.py", "names no task (found 'task.py'; expected module:function or file.py:"),
        ("rank = 2", "dim = 2", "called rank"),
        ("rank = 2", "plan = 2", "no such key"),
        ("'loha'", "'loha2'", "an unknown algorithm"),
        ("rank = 2", "rank = 2\nalpha = 0", "an impossible value of alpha (found 0;"),
        ("[train]", "[train]\ndevice = 'gpu'", "nothing can be computed on this device (found gpu: "),
    ],
)
def test_bad_tasks_and_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, message: str
) -> None:
    file = Path(settings(tmp_path))
    file.write_text(file.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    for name in ("queue.py", "torch.py"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert main(["train", str(file)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("rank = 2", "dim = 2", "called rank"),
        ("rank = 2", "rank = 0", "whole number above 0"),
        ("[train]", "[plan]\nrmax = 3\n[train]", "Is it r_max"),
        ("task.py:task", "task.py:tusk", "no such function"),
        ("[train]", "[arguments]\nnumber = 3\n[train]", "does not take these arguments"),
    ],
)
def test_the_whole_file_is_checked_before_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, message: str
) -> None:
    file = Path(settings(tmp_path))
    (tmp_path / "out.safetensors").touch()
    file.write_text(file.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    assert main(["train", str(file)]) == 2
    assert message in capsys.readouterr().err
    file.write_text(file.read_text(encoding="utf-8").replace(after, before), encoding="utf-8")
    assert main(["train", str(file)]) == 2
    assert "out.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("there", ["a link", "a folder", "a file"])
def test_what_is_beside_a_task_and_not_installed_may_have_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    home, path = tmp_path / "home", tmp_path / "path"
    home.mkdir()
    file = Path(settings(home))
    file.write_text(file.read_text(encoding="utf-8").replace("py:task", "py:model"), encoding="utf-8")
    if there == "a link":
        path.symlink_to(home, target_is_directory=True)
    elif there == "a file":
        path.mkdir()
        (path / "task.py").write_text("", encoding="utf-8")
    else:
        # Python would import it as a package, as it would any folder.
        (path / "task").mkdir(parents=True)
    monkeypatch.syspath_prepend(path)
    assert main(["train", str(file)]) == 2
    assert "returns something else" in capsys.readouterr().err


def test_a_plan_is_made_and_kept_for_a_resumed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(settings(tmp_path, "plan = {size = 60, batches = 2, algorithms = 'lora'}"))
    text = file.read_text(encoding="utf-8").replace("algorithm = 'loha'\nrank = 2\n", "")
    file.write_text(text, encoding="utf-8")
    assert main(["train", str(file)]) == 0
    plan = lyc.Plan.of_json((tmp_path / "out-checkpoints/plan.json").read_text(encoding="utf-8"))
    adapter = lyc.load_adapter(tmp_path / "out.safetensors")
    assert plan.parameters <= 60 and f"{plan.parameters} parameters" in capsys.readouterr().err
    ranks = [layer.rank for layer in adapter.layers.values()]
    assert ranks == [row.rank for row in plan]
    # Another plan would come of these batches.
    file.write_text(file.read_text(encoding="utf-8").replace("batches = 2", "batches = 1"), encoding="utf-8")
    # A state that is not there is no reason to plan anew over the plan that is.
    plan = next(tmp_path.rglob("plan.json"))
    kept = plan.read_bytes()
    assert main(["train", str(file), "--resume", str(tmp_path / "gone.safetensors")]) == 2
    assert plan.read_bytes() == kept
    assert main(["train", str(file), "--resume"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no Ctrl-C to one process alone")
@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="terminated", marks=pytest.mark.soak),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed", marks=pytest.mark.soak),
    ],
)
def test_a_run_that_was_broken_off_goes_on_from_its_newest_whole_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    """A signal leaves the state after the last step, and a kill the checkpoints that were written before."""
    killed = number == signal.SIGKILL
    file = settings(tmp_path, "arguments = {wait = true}", "checkpoint_every = 2" if killed else "")
    running = subprocess.Popen(
        [sys.executable, "-m", "lycoris_ops", "train", file],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs these tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one thread
    )
    assert running.stdout is not None
    # The checkpoint of the second step is written before the third one begins.
    for _ in range(3 if killed else 2):
        assert running.stdout.readline() == "a step\n"
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    folder = tmp_path / "out-checkpoints"
    last = folder / "last.state.safetensors"
    assert running.returncode == status
    if killed:
        assert not last.exists()
        whole = (folder / "step-000002.state.safetensors").read_bytes()
        last.write_bytes(whole[:-1])
        expected = (
            r"went on from step 2 of an earlier run: step-000002\.state\.safetensors, the only state; "
            r"passed over: last\.state\.safetensors \(.+\)\n"
        )
    else:
        assert errors.splitlines()[-1].endswith(f"go on with --resume {last}")
        expected = r"went on from step \d of an earlier run: last\.state\.safetensors, the only state\n"
    assert not (tmp_path / "out.safetensors").exists()
    # The same command again says what is there, before the model is loaded.
    assert main(["train", file]) == 2
    shown = capsys.readouterr().err
    assert re.search(
        r"state\.safetensors: this training is not finished \(found step \d of 4\). Add --resume", shown
    )
    assert main(["train", file, "--resume"]) == 0
    assert re.search(expected, capsys.readouterr().out)
    (tmp_path / "whole").mkdir()
    assert main(["train", settings(tmp_path / "whole")]) == 0
    ours, wanted = ((tmp_path / name / "out.safetensors").read_bytes() for name in (".", "whole"))
    assert ours == wanted


def test_an_interrupt_before_the_first_step_names_no_state_of_an_earlier_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings(tmp_path)
    assert main(["train", file]) == 0
    task = tmp_path / "task.py"
    text = task.read_text(encoding="utf-8")
    task.write_text(f"{text}\n\ndef loss(*_):\n    raise KeyboardInterrupt\n", encoding="utf-8")
    assert main(["train", file, "--overwrite"]) == 130
    assert capsys.readouterr().err.endswith("error: interrupted, nothing was written\n")


def test_a_race_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings(tmp_path, train="search = 'all'\nwarmup = 0.1")
    text = (
        Path(file).read_text(encoding="utf-8").replace("steps = 4", "steps = 60").replace("false", "true", 1)
    )
    Path(file).write_text(text, encoding="utf-8")
    assert main(["train", file, "--search", "rate", "--search-share", "0.9", "--json"]) == 0
    shown, errors = capsys.readouterr()
    race = json.loads(shown)["searched"]
    assert {heat["name"] for heat in race["heats"]} == {race["name"]} == {"loha as asked"}
    assert race["spent"] <= race["budget"] == 54
    assert "searching: at most 54 steps, 90% of the training" in errors
    assert re.search(r"heat 2 of at most \d, loha as asked at [\d.]+\n", errors)
    assert re.search(r"that takes about [\d.e-]+ minutes at most", errors)
    kept = json.loads((tmp_path / "out-race.json").read_text(encoding="utf-8"))
    assert kept["lr"] == race["lr"] and kept["heats"] == race["heats"]
    made = lyc.load_adapter(tmp_path / "out.safetensors").metadata
    assert float(made["ss_learning_rate"]) == race["lr"]
    assert main(["train", file, "--search", "rate", "--search-share", "0.9", "--overwrite"]) == 0
    assert "(from out-race.json, not raced again)" in capsys.readouterr().out
