"""Check which devices can compute."""

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
        raise LycorisError("E-device-unusable", key="device", device=str(device), why=why) from error
