"""The presets of block rules that nodes know: the library's, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping

from ...lycoris_ops import BLOCK_PRESETS, LycorisError, PresetFile, RuleError, Rules, read_presets
from ..host.files import user_text

FILE = "lycoris_presets.txt"
"""The user's own presets, in the host's user folder."""


def own_presets() -> PresetFile:
    """The user's own presets. What is wrong with their file is among its faults."""
    try:
        text = user_text(FILE)
    except LycorisError as error:
        # It shows in the list of presets: an error here would take the whole node away.
        return PresetFile({}, (str(error),))
    return PresetFile({}) if text is None else read_presets(text, FILE)


def known_presets(own: PresetFile) -> Mapping[str, str]:
    """All presets that can be read, by name. Of two with one name the user's own is meant."""
    known = {**BLOCK_PRESETS, **own.presets}
    return {name: rules for name, rules in known.items() if name not in own.broken}


def parsed(text: str, own: PresetFile, *, seed: int = 0) -> Rules:
    """The rules of a text, which may name any preset.

    Raises RuleError as `Rules.parse` does, and says so where no preset of the user's file can be read.
    """
    try:
        return Rules.parse(text, known_presets(own), broken=own.broken, seed=seed)
    except RuleError as error:
        if own.faults and not own.broken and not own.presets:
            error.hint = f"None of your own presets is known: {own.faults[0]}"
        raise
