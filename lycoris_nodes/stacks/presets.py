"""Presets of block rules for the nodes: the library's and the user's own."""

from __future__ import annotations

from collections.abc import Mapping

from ...lycoris_ops import BLOCK_PRESETS, LycorisError, PresetFile, RuleError, Rules, read_presets
from ..host.files import shown_text, user_text

FILE = "lycoris_presets.txt"
"""The user's own presets, in the host's user folder."""


def own_presets() -> PresetFile:
    """The user's own presets. Problems with the file are listed in `faults`."""
    try:
        text = user_text(FILE)
    except LycorisError as error:
        # The list of presets shows the problem. An error here would remove the whole node.
        return PresetFile({}, (shown_text(str(error)),))
    return PresetFile({}) if text is None else read_presets(text, FILE)


def known_presets(own: PresetFile) -> Mapping[str, str]:
    """All readable presets, by name. A user's preset replaces the library's of the same name."""
    known = {**BLOCK_PRESETS, **own.presets}
    return {name: rules for name, rules in known.items() if name not in own.broken}


def parsed(text: str, own: PresetFile, *, seed: int = 0) -> Rules:
    """Parse rules, which may name any preset. Raises RuleError as `Rules.parse` does; its hint says if the
    user's presets cannot be read.
    """
    try:
        return Rules.parse(text, known_presets(own), broken=own.broken, seed=seed)
    except RuleError as error:
        if own.faults and not own.broken and not own.presets:
            error.values["hint"] = f"Your own presets cannot be read: {own.faults[0]}"
        raise
