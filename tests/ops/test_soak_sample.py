"""Samples of the campaigns of mutated files and of kills, and a file made by hand for all that was found.

`make soak` runs the whole campaigns.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from children import python

if sys.platform != "linux":
    pytest.skip("the limits of a process are read as Linux has them", allow_module_level=True)

from tests.soak.campaign import SEED, grouped, line, run
from tests.soak.crafted import CRAFTED

FILES = 10


def test_files_made_by_hand_and_mutated_ones_give_a_right_result_or_an_error(tmp_path: Path) -> None:
    jobs = [{"crafted": name} for name in CRAFTED]
    jobs += [{"seed": SEED, "number": number} for number in range(FILES)]
    # In processes that start once for all files.
    results = run(jobs, tmp_path, workers=min(2, os.cpu_count() or 1))
    assert len(results) == len(CRAFTED) + FILES
    assert sum(result.compared for result in results if "number" in result.job) > FILES
    assert not any(result.findings for result in results), "\n".join(
        line(*found) for found in grouped(results)
    )


def test_kills_at_random_moments() -> None:
    """A sample of the campaign in `tests/soak/faults.py`."""
    told = python("-m", "tests.soak.faults", "--seed", "7", "--kills", "3", "--races", "0")
    assert "3 as they must be, 0 violations" in told, told
