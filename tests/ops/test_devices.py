"""Networks and trainings beside models that are not on the CPU, or not on one device."""

from __future__ import annotations

from pathlib import Path

import pretended_device
import pytest
import torch
from children import python

PYTHON_DEVICES = hasattr(torch._C, "_acc")
"""Whether this torch can have a device that is written in Python."""


@pytest.mark.skipif(not PYTHON_DEVICES, reason="this torch has no devices that are written in Python")
def test_a_training_is_where_the_model_is_and_waits_for_it_once_a_step(tmp_path: Path) -> None:
    """With the values of the CPU, nothing but numbers going over, and autocast and scaler of the device.

    A plan of patches and the first pass of a bypass wait for it once; nothing is in float64 there.
    """
    python(str(pretended_device.__file__), str(tmp_path))
