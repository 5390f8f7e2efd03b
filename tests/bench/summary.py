"""The table of patching in `tests/bench/README.md`, from a CSV that `tests.bench.patch` wrote.

`python -m tests.bench.summary [NAME]` reads `.cache/bench/patch-<NAME>.csv`; NAME is `cpu-sdxl` unless given.
Times and ratios are medians of mode "in place", with the default malloc / with the tuned malloc.
"""

from __future__ import annotations

import csv
import sys

from tests.bench.patch import OUT, SETTINGS

Found = dict[str, dict[str, dict[str, str]]]
"""The rows of the CSV for one case and dtype, by peer and malloc."""

COLUMNS = "stack", "dtype", "path", "ours ms", "ComfyUI", "lycoris-lora", "PEFT", "torch path"


def both(found: Found, peer: str, field: str, digits: int) -> str:
    """A field of a peer's row with the default malloc / with the tuned one; "-" where it was not measured."""
    by_malloc = found.get(peer)
    if by_malloc is None:
        return "-"
    return " / ".join(f"{float(by_malloc[malloc][field]):.{digits}f}" for malloc in SETTINGS)


def line(case: str, dtype: str, found: Found) -> str:
    """A row of the table. Error and memory are the larger of the two mallocs."""
    ours = found["ours"]
    ratios = [both(found, peer, "ratio", 1) for peer in ("ComfyUI", "lycoris-lora", "PEFT", "ours: torch")]
    worst = [
        f"{max(float(row[field]) for row in ours.values()):.{digits}f}"
        for field, digits in (("error_over_floor", 2), ("extra_mb", 0))
    ]
    times = both(found, "ours", "p50_ms", 0)
    return "| " + " | ".join([case, dtype, ours["default"]["path"], times, *ratios, *worst]) + " |"


def main() -> None:
    cases: dict[tuple[str, str], Found] = {}
    name = sys.argv[1] if len(sys.argv) > 1 else "cpu-sdxl"
    with (OUT / f"patch-{name}.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["mode"] == "in place":
                peers = cases.setdefault((row["case"], row["dtype"]), {})
                peers.setdefault(row["peer"], {})[row["malloc"]] = row
    names = [*COLUMNS, "error / floor", "extra MB"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for (case, dtype), found in cases.items():
        print(line(case, dtype, found))


if __name__ == "__main__":
    main()
