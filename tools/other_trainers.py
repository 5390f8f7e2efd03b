"""The page `docs/other-trainers.md`: the settings of other trainers, and those of Train LoRA / LyCORIS.

    python3 tests/harness/environment.py -- python -m tools.other_trainers --write

writes it from the code that reads their configs: each setting that is read is a row.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack

PAGE = ROOT / "docs" / "other-trainers.md"
HEAD = """# Settings of other trainers

**Paste settings of another trainer…** in the menu of Train LoRA / LyCORIS takes over a config of sd-scripts,
musubi-tuner, kohya_ss, ai-toolkit or OneTrainer: it sets the inputs, and lists what has no counterpart. The
tables say what becomes of each setting. `python -m tools.other_trainers --write` makes them from the
code that reads the configs.

Where a config leaves out what decides the training, the default of its trainer is used: the tables name it.
AdamW has a weight decay of 0.01 there. On the node itself the usual weight decay is 0. Other settings that a
config leaves out stay as they are on the node.
"""
CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"network_module": "lycoris.kohya"},
    {"task": "t2v-A14B"},
    *({"peft_type": kind} for kind in ("LOKR", "OFT_2")),
)
"""The configs that readers are given: an empty one, and one that makes some of them read other settings."""


def page(pack: str) -> str:
    """The page, given the name under which the host has loaded the pack."""
    configs = importlib.import_module(f"{pack}.lycoris_nodes.training.configs.config")
    schema = importlib.import_module(f"{pack}.lycoris_nodes.training.node.schema")
    named = configs.places(schema.inputs())
    parts = [HEAD]
    shown: dict[Any, str] = {}
    for trainer in configs.discover(configs.trainers.__name__):
        parts.append(f"## {trainer.NAME}: {trainer.FORM}\n")
        if trainer.read in shown:
            parts += [f"What it passes on is read as a config of {shown[trainer.read]}.", ""]
            continue
        shown[trainer.read] = trainer.NAME
        rows: dict[str, list[str]] = {}
        for table in CONFIGS:
            trainer.read(_recorder(configs.Config, rows, named)(table))
        parts.append("| there | here |\n|---|---|")
        parts += [f"| `{key}` | {'; '.join(dict.fromkeys(words))} |" for key, words in rows.items() if words]
        unused = ", ".join(f"`{key}`" for key, words in rows.items() if not words)
        parts += [f"\nThese make no difference to what is learned here: {unused}.", ""]
    return "\n".join(parts).rstrip() + "\n"


def _recorder(kind: Any, rows: dict[str, list[str]], named: Mapping[str, str]) -> Any:
    """A config that notes what is asked of it, in these rows."""

    class Recorder(kind):
        def _note(self, key: str, words: str) -> None:
            if key:
                rows.setdefault(f"{self.within}{key}", []).append(words)

        def put(
            self,
            key: str,
            name: str,
            read: Callable[[Any], Any] = str,
            usual: Any = None,
            zero: bool = False,
        ) -> None:
            silent = f", {usual} where it is not there" if isinstance(usual, int | float) else ""
            self._note(key, f"`{named[name]}`{silent}")
            super().put(key, name, read, usual, zero)

        def choose(self, key: str, name: str, choices: Mapping[str, Any], usual: Any = None) -> None:
            others = ", ".join(f"{theirs}: {ours}" for theirs, ours in choices.items() if theirs != ours)
            self._note(key, f"`{named[name]}`" + (f" ({others})" if others else ""))
            kind.put(self, key, name, lambda value: choices.get(str(value).lower()), usual)

        def times(self, key: str, choices: Mapping[str, Any], *, shift: str = "", **usual: Any) -> None:
            how = (f"{theirs}: {ours}, {_shift(other, shift)}" for theirs, (ours, other) in choices.items())
            self._note(key, f"`{named['times']}` and `{named['shift']}` ({'; '.join(how)})")
            self._note(shift, f"`{named['shift']}`")

        def without_effect(self, settings: Mapping[str, Any]) -> None:
            for key, value in settings.items():
                rows.setdefault(f"{self.within}{key}: {value}", [])
            super().without_effect(settings)

        def schedule(self, key: str, cycles_key: str = "", usual: str = "") -> None:
            self._note(key, f"`{named['schedule']}`")
            self._note(cycles_key, f"`{named['restarts']}`, which are one fewer")
            super().schedule(key, cycles_key, usual)

        def min_snr(self, key: str) -> None:
            self._note(key, f"`{named['weighting']}` min-snr, with a gamma of 5")
            super().min_snr(key)

        def optimiser(self, key: str, arguments: Mapping[str, Any]) -> None:
            super().optimiser(key, arguments)
            self._note(f"{key}, its arguments", f"`{named['weight_decay']}` and `{named['optimiser_args']}`")

        def everywhere(self, algorithm: str, options: Mapping[str, str]) -> None:
            for theirs, ours in options.items():
                self._note(theirs, f"`{ours}` of all layers, in `{named['overrides']}`")
            super().everywhere(algorithm, options)

        def whole(self, algorithm: str, key: str) -> None:
            self._note(key, f"a `{named['rank']}` larger than any layer")
            super().whole(algorithm, key)

        def elsewhere(self, where: str, *keys: str) -> None:
            for key in keys:
                self._note(key, where)
            super().elsewhere(where, *keys)

        def resolution(self, key: str, sides: Callable[[Any], Any]) -> None:
            self._note(key, "`resolution` of LyCORIS Training Pictures, one or several")
            super().resolution(key, sides)

        def unused(self, *keys: str) -> None:
            for key in keys:
                rows.setdefault(f"{self.within}{key}", [])
            super().unused(*keys)

    return Recorder


def _shift(shift: float | None, setting: str) -> str:
    return f"`{setting}`" if shift is None else f"{shift:g}" if shift else "auto"


def main(arguments: list[str]) -> None:
    base = base_directory(ROOT / ".cache" / facts().host / "other-trainers", ROOT)
    boot_in_process(facts().comfyui, base)
    text = page(loaded_pack(base).__name__)
    if arguments == ["--write"]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
