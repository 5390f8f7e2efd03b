"""The real host in this process, with the pack loaded the way it loads any pack."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, patcher
from safetensors.torch import save_file
from trainable import PIXELS, TWO_LEVELS, WORD_WIDTH, Counted, caption, latent, tiny
from trainable import train as train_by_the_node

from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process


@pytest.fixture(scope="session")
def host() -> Host:
    # Each process has a folder of its own, since tests write models and outputs there.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    base = base_directory(ROOT / ".cache" / facts().host / f"host-tests-{worker}", ROOT)
    # Before the assets: in a fresh checkout another process makes them meanwhile.
    booted = Host(base, boot_in_process(facts().comfyui, base))
    install(base)
    _find_noise_levels_once()
    # The host's imports are another half million objects, which stay: see `tests/conftest.py`.
    gc.freeze()
    return booted


def _find_noise_levels_once() -> None:
    """Keep the ten thousand noise levels that each Stable Cascade finds one by one when it is made."""
    from comfy.model_sampling import StableCascadeSampling

    found, levels = StableCascadeSampling.sigma, {}

    def sigma(self: Any, time: Any) -> torch.Tensor:
        # In passes the time is a tensor.
        if not isinstance(time, float):
            return found(self, time)
        if (self.shift, time) not in levels:
            levels[self.shift, time] = found(self, time)
        return levels[self.shift, time]

    StableCascadeSampling.sigma = sigma


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Keep what a file leaves out of Python's search for circles too.

    The host searches whenever it frees a model. Over all that the files before have left, such as every
    tiny model, a search takes a second.
    """
    yield
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def plain(host: Host) -> Patched:
    """The base checkpoint, unpatched. The host never changes it in place for good."""
    return host.checkpoint()


@pytest.fixture(scope="session")
def unpatched(host: Host, plain: Patched) -> torch.Tensor:
    """The latent that the base checkpoint gives."""
    return host.latent(plain)


@pytest.fixture(scope="session")
def distance(unpatched: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """How far two latents are apart, as a share of how far the second is from the unpatched one."""

    def measure(latent: torch.Tensor, reference: torch.Tensor) -> float:
        effect = (reference - unpatched).norm()
        assert torch.isfinite(latent).all() and torch.isfinite(reference).all()
        assert effect > 0.02 * unpatched.norm(), "the adapters do nothing, so nothing is compared"
        return ((latent - reference).norm() / effect).item()

    return measure


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the files that a test leaves in the host's folders of models and of outputs."""
    if "host" not in request.fixturenames:
        yield
        return
    base = request.getfixturevalue("host").base

    def files() -> set[Path]:
        return {path for part in ("models", "output") for path in (base / part).rglob("*")}

    before = files()
    yield
    for path in sorted(files() - before, reverse=True):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        # The host keeps a list of the folders directly in these two.
        elif len(path.relative_to(base).parts) > 2:
            path.rmdir()


@pytest.fixture
def model_file(host: Host) -> Callable[..., Path]:
    """Write a file into a folder of the host's models for one test.

    Its content are bytes, tensors with metadata, or what a function writes.
    """

    def write(name: str, content: Any, metadata: dict[str, str] | None = None) -> Path:
        path = host.base / "models" / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, dict):
            save_file(content, path, metadata)
        else:
            content(path)
        return path

    return write


@pytest.fixture
def lora_file(model_file: Callable[..., Path]) -> Callable[[str, Any], str]:
    """Write a file into the host's loras folder for one test, and return its name in the loader's list."""
    return lambda name, content: model_file(f"loras/{name}", content).name


@pytest.fixture
def stack_of(host: Host, lora_file: Callable[[str, Any], str]) -> Callable[..., Any]:
    """Write a file with these layers, named without `diffusion_model.`, and return a stack with it."""
    numbers = itertools.count()

    def write(layers: dict[str, dict[str, torch.Tensor]], strength: float = 1.0) -> Any:
        tensors = {f"diffusion_model.{n}.{key}": t for n, layer in layers.items() for key, t in layer.items()}
        return host.stack((lora_file(f"stack_{next(numbers)}.safetensors", tensors), strength, 0.0))

    return write


@pytest.fixture
def exported(host: Host) -> Callable[..., Path]:
    """Run Save Merged Model, and return the file that it wrote."""

    def save(base: str, stack: object, dtype: str = "as in the file") -> Path:
        folder = base.partition("/")[0]
        (report,) = host.run("LycorisSaveCheckpoint", base, stack, f"{folder}/exported", dtype, strict=False)
        written = host.written(report)
        assert written.is_relative_to(host.base / "output" / folder)
        return written

    return save


@pytest.fixture(scope="session")
def tiny_unet(host: Host) -> Any:
    return patcher(tiny("SD1.5", **TWO_LEVELS))


@pytest.fixture(scope="module")
def unet(host: Host) -> Patched:
    """A tiny UNet of a file's own, without a text encoder."""
    return Patched(patcher(tiny("SD1.5")), None)


@pytest.fixture
def train(host: Host, tiny_unet: Any, tmp_path: Path) -> Callable[..., Any]:
    """Run the node on four small latents, with other inputs as given; its outputs by name."""

    def run(**inputs: Any) -> dict[str, Any]:
        known: dict[str, Any] = {"model": tiny_unet, "latents": [latent(seed) for seed in range(4)]}
        known |= {"positive": [caption(seed) for seed in range(4)], "steps": 8, "learning_rate": 3e-3}
        known |= {"algorithm": "lora", "rank": 4, "resume": False}
        return train_by_the_node(host, tmp_path, **{**known, **inputs})

    return run


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Press Stop when so many steps are done, also where the host tells no page of a step: it was quick."""
    import comfy.model_management
    import comfy.utils

    steps: list[int] = []
    real = comfy.utils.ProgressBar.update_absolute

    def update(bar: Any, value: int, *rest: Any, **options: Any) -> None:
        real(bar, value, *rest, **options)
        if value >= steps[-1]:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    yield steps.append
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def folder(host: Host, tmp_path: Path) -> Iterator[Path]:
    """The folder `set` in the host's input folder. The host's other folders are in a new place too."""
    import folder_paths

    kinds = ("input", "user", "output")
    before = [getattr(folder_paths, f"get_{kind}_directory")() for kind in kinds]
    for kind in kinds:
        (tmp_path / kind).mkdir()
        getattr(folder_paths, f"set_{kind}_directory")(str(tmp_path / kind))
    (tmp_path / "input" / "set").mkdir()
    yield tmp_path / "input" / "set"
    for kind, path in zip(kinds, before, strict=True):
        getattr(folder_paths, f"set_{kind}_directory")(path)


@pytest.fixture(scope="module")
def vae(host: Host) -> Counted:
    return Counted(4)


@pytest.fixture(scope="module")
def model(host: Host) -> Any:
    return patcher(tiny("SD1.5", context_dim=WORD_WIDTH))


@pytest.fixture
def prepare(host: Host, plain: Patched, folder: Path, model: Any, vae: Counted) -> Callable[..., Any]:
    """Run the node on the folder `set` for a tiny Stable Diffusion, or with other inputs; outputs by name."""

    def run(**inputs: Any) -> dict[str, Any]:
        known: dict[str, Any] = {"folder": "set", "model": model, "clip": plain.clip, "vae": vae.vae}
        known |= {"trigger": "", "resolution": PIXELS, "held_out": 0, "mirror": False}
        node = host.nodes.NODE_CLASS_MAPPINGS["LycorisDataset"]
        with torch.inference_mode():
            made = node.execute(**{**known, **inputs})
        names = [output.id for output in node.GET_SCHEMA().outputs]
        return dict(zip(names, made.args, strict=True))

    return run
