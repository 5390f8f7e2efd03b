"""Which device can be computed on."""

from __future__ import annotations

import torch

from .errors import LycorisError


def check_device(device: str | torch.device) -> None:
    """Raise LycorisError for a device on which this torch, on this machine, cannot compute."""
    try:
        torch.zeros(1, device=device)
    # A torch that is built without CUDA raises AssertionError.
    except (AssertionError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise LycorisError(
            "nothing can be computed on this device",
            key="device",
            got=f"{device}: {why}",
            expected="cpu, or the name of an accelerator of this machine, such as cuda:0",
            hint="For an accelerator, install the torch that is built for it",
        ) from error
