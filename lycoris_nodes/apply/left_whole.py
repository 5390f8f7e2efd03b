"""Masked layers that act everywhere in a sampling, because their tokens do not fit picture and text."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...lycoris_ops import LycorisError, Phrase, few, paragraph, phrase
from ..host.page import is_in_prompt, running_node
from .places import Unlike

HINT = Phrase("R-other-node-changes-passes")


class LeftWhole:
    """The masked layers of one Apply node that acted everywhere in its samplings, for its report.

    `paths` are all masked layers of the node. `tell` gets the text for the report whenever it changes, or ""
    where there is nothing to report. With `strict` such a layer is an error: `add` raises LycorisError.
    """

    def __init__(self, paths: Collection[str], tell: Callable[[str], None], *, strict: bool) -> None:
        self.paths = frozenset(paths)
        self._tell = tell
        self._strict = strict
        self._sampler: str | None = None
        self._found: dict[str | None, dict[str, Unlike]] = {}
        """For each node that has sampled, the layers by path."""
        self._changed = False

    def begin(self) -> None:
        """Forget the findings of nodes that are gone, and earlier findings of the node that samples now."""
        self._sampler = running_node()
        for node in [
            node for node in self._found if node == self._sampler or not (node and is_in_prompt(node))
        ]:
            self._changed = bool(self._found.pop(node)) or self._changed

    def add(self, path: str, unlike: Unlike) -> None:
        """Note a layer on which the mask has no effect."""
        if self._strict:
            raise LycorisError(
                "E-mask-tokens-misfit-strict", key=path, advice=HINT, got=unlike.got, expected=unlike.expected
            )
        layers = self._found.setdefault(self._sampler, {})
        self._changed = self._changed or layers.get(path) != unlike
        layers[path] = unlike

    def tell(self) -> None:
        """Tell what is known now, unless it has been told."""
        if self._changed:
            self._changed = False
            self._tell(self._said())

    def _said(self) -> str:
        every = {path: unlike for layers in self._found.values() for path, unlike in layers.items()}
        if not every:
            return ""
        alike: dict[Unlike, list[str]] = {}
        for path, unlike in every.items():
            alike.setdefault(unlike, []).append(path)
        lines = [phrase("R-sampling-mask-has-no-effect", count=len(every))]
        for (got, expected), paths in sorted(alike.items(), key=lambda item: -len(item[1])):
            words = phrase(
                "R-unmasked-expected", count=len(paths), got=got, expected=expected, paths=few(paths)
            )
            lines.append(f"  {words}")
        return paragraph([*lines, f"  {HINT}."])
