"""The code of docs/ranks.md runs, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

GUIDE = Path(__file__).parents[2] / "docs" / "ranks.md"


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"probe.safetensors", "plan.png"}
    assert names["trials"].best.loss <= min(trial.loss for trial in names["trials"].trials[:2])
    assert all(torch.isfinite(parameter).all() for parameter in names["network"].parameters())
