"""What the set-up found: the interpreter, the host and the browser of this test run."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "LYCORIS_ENVIRONMENT"
NODES = (
    "LycorisAdapterRows",
    "LycorisApplyStack",
    "LycorisBlockInfo",
    "LycorisCombineStacks",
    "LycorisFromLoraStack",
    "LycorisDataset",
    "LycorisExtractAdapter",
    "LycorisInspect",
    "LycorisJudge",
    "LycorisLabelGrid",
    "LycorisLoadAdapter",
    "LycorisMask",
    "LycorisMergeAdapters",
    "LycorisPlan",
    "LycorisResizeAdapter",
    "LycorisSaveAdapter",
    "LycorisSaveCheckpoint",
    "LycorisSchedule",
    "LycorisSlider",
    "LycorisStrengthGrid",
    "LycorisToLoraStack",
    "LycorisTrain",
    "LycorisWeightBlocks",
)
"""The nodes that the pack is to register, these and no others."""


@dataclass(frozen=True)
class Facts:
    """What the set-up found. `chromium` is None where there is none, and `no_chromium` then says why."""

    python: Path
    comfyui: Path
    host: str
    chromium: Path | None
    no_chromium: str | None


def facts() -> Facts:
    """Read the file named by LYCORIS_ENVIRONMENT, which `make` sets.

    Raises:
        RuntimeError: the variable is not set, or the file it names is not there.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        raise RuntimeError(f"{VARIABLE} is not set, so no host is known: run `make test`")
    if not Path(name).is_file():
        raise RuntimeError(f"{VARIABLE} names {name}, which does not exist: run `make test` again")
    found = json.loads(Path(name).read_text(encoding="utf-8"))
    return Facts(
        python=Path(found["python"]),
        comfyui=Path(found["comfyui"]),
        host=found["host"],
        chromium=Path(found["chromium"]) if found["chromium"] else None,
        no_chromium=found["no_chromium"],
    )


def browser_verdict(required: bool) -> int:
    """Print, as the last line of a test run, whether browser tests could run; returns the exit status."""
    found = facts()
    if found.chromium:
        print(f"Browser tests used {found.chromium}.")
        return 0
    print(f"THE BROWSER TESTS DID NOT RUN: no Chromium was found or installed ({found.no_chromium}).")
    return 1 if required else 0


if __name__ == "__main__":
    sys.exit(browser_verdict("--required" in sys.argv[1:] or os.environ.get("CI") == "true"))
