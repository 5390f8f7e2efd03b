"""Numbers as people type them. `web/rows/typed.js` reads the same in the page."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# The typographic minus sign, and the full-width characters of Chinese, Japanese and Korean keyboards.
_PLAIN = {0x2212: "-", **{wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}}


def read_number(text: str) -> float | None:
    """The number that a text states, with either decimal separator; None for a text that states none.

    A text with two separators states none: nobody can tell which of them is the decimal one.
    """
    plain = text.strip().translate(_PLAIN)
    return float(plain.replace(",", ".")) if _NUMBER.fullmatch(plain) else None
