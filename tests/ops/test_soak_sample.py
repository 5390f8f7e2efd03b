"""A sample of the campaign of mutated files, and a file made by hand for everything that was found.

`make soak` runs the whole campaign.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import pytest

if sys.platform != "linux":
    pytest.skip("the limits of a process are read as Linux has them", allow_module_level=True)

from tests.soak.campaign import SEED, Result, grouped, line, run
from tests.soak.crafted import CRAFTED

# All in one process, since they share what is made once.
pytestmark = pytest.mark.xdist_group("soak")

FILES = 300


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """What became of all files, in processes that start once for all tests."""
    jobs = [{"crafted": name} for name in CRAFTED]
    jobs += [{"seed": SEED, "number": number} for number in range(FILES)]
    return run(jobs, tmp_path_factory.mktemp("soak"), workers=min(2, os.cpu_count() or 1))


@pytest.fixture(scope="module")
def crafted(results: list[Result]) -> Mapping[str, Result]:
    return {result.job["crafted"]: result for result in results if "crafted" in result.job}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_file_made_by_hand_gives_a_right_result_or_an_error(
    crafted: Mapping[str, Result], name: str
) -> None:
    result = crafted[name]
    assert not result.findings, "\n".join(line(*found) for found in grouped([result]))


def test_mutated_files_give_a_right_result_or_an_error(results: list[Result]) -> None:
    mutated = [result for result in results if "number" in result.job]
    assert len(mutated) == FILES
    assert sum(result.compared for result in mutated) > FILES
    assert not any(result.findings for result in mutated), "\n".join(
        line(*found) for found in grouped(mutated)
    )
