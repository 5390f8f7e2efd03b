"""Samples of the campaigns with mutated files and with kills, and a handmade file for each known fault.

`make soak` runs the whole campaigns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the limits of a process are set as on Linux", allow_module_level=True)

from tests.soak.campaign import SEED, grouped, line, run
from tests.soak.crafted import CRAFTED
from tests.soak.faults import Campaign

FILES = 10


def test_files_made_by_hand_and_mutated_ones_give_a_right_result_or_an_error(tmp_path: Path) -> None:
    jobs = [{"crafted": name} for name in CRAFTED]
    jobs += [{"seed": SEED, "number": number} for number in range(FILES)]
    # Starting a second process would take as long as half of the files.
    results = run(jobs, tmp_path, workers=1)
    assert len(results) == len(CRAFTED) + FILES
    assert sum(result.compared for result in results if "number" in result.job) > FILES
    assert not any(result.findings for result in results), "\n".join(
        line(*found) for found in grouped(results)
    )


def test_kills_at_random_moments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sample of the campaign in `tests/soak/faults.py`. Its processes print into their own files."""
    with capfd.disabled():
        campaign = Campaign(tmp_path, seed=7)
        for _ in range(3):
            campaign.kill()
    assert campaign.counted.total() == 3 and not campaign.violations, campaign.violations
