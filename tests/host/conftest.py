"""The real host in this process, with the pack loaded the way it loads any pack."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched

from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process


@pytest.fixture(scope="session")
def host() -> Host:
    # Each process has a folder of its own, since tests write models and outputs there.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    base = install(base_directory(ROOT / ".cache" / facts().host / f"host-tests-{worker}", ROOT))
    booted = Host(base, boot_in_process(facts().comfyui, base))
    # The host's imports are another half million objects, which stay: see `tests/conftest.py`.
    gc.freeze()
    return booted


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


@pytest.fixture
def lora_file(host: Host) -> Iterator[Callable[[str, Any], str]]:
    """Write a file into the host's loras folder for one test, and return its name in the loader's list."""
    written: list[Path] = []

    def write(name: str, content: Any) -> str:
        path = host.base / "models" / "loras" / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        written.append(path)
        return name

    yield write
    for path in written:
        path.unlink(missing_ok=True)
