"""Networks and trainings beside models that are not on the CPU, or not on one device."""

from __future__ import annotations

from pathlib import Path

import pretended_device
import pretended_waits
import pytest
import torch
from children import python

PYTHON_DEVICES = hasattr(torch._C, "_acc")
"""Whether this torch can have a device that is written in Python."""


needs_devices = pytest.mark.skipif(
    not PYTHON_DEVICES, reason="this torch has no devices that are written in Python"
)


@needs_devices
def test_a_training_is_where_the_model_is(tmp_path: Path) -> None:
    """With the values of the CPU, nothing but numbers going over, and autocast and scaler of the device."""
    python(str(pretended_device.__file__), str(tmp_path))


@needs_devices
def test_nothing_waits_for_a_device_but_once_a_step() -> None:
    """And once for a plan of patches, or for the first pass of a bypass; nothing is in float64 there."""
    python(str(pretended_waits.__file__))
