"""What people type as a strength, and what is read; `tests/web` reads the same table."""

from __future__ import annotations

import json
from pathlib import Path

TYPED: dict[str, float | None] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""None for what is no number."""
