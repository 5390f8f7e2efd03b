"""What people type as a strength, and what is read."""

from __future__ import annotations

TYPED: dict[str, float | None] = {
    "0.5": 0.5,
    "0,5": 0.5,
    "-0,5": -0.5,
    "+0.5": 0.5,
    ".5": 0.5,
    ",5": 0.5,
    "5.": 5.0,
    " 07 ": 7.0,
    "1e-1": 0.1,
    "2,5E+1": 25.0,
    "\u22120.5": -0.5,
    "\uff10\uff0c\uff15": 0.5,
    "\uff0d\uff11": -1.0,
    "1,000.5": None,
    "1.000,5": None,
    "1/3": None,
    "abc": None,
    "0.5 ": 0.5,
    "0 5": None,
    "- 5": None,
    "5\u00b2": None,
    "0x1": None,
    "1_0": None,
    "50%": None,
    "e1": None,
    ".": None,
    "nan": None,
    "Infinity": None,
    "": None,
}
"""None for what is no number."""
