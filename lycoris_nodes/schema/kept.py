"""The reports of nodes that have run, for pages that are opened or looked at later."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..host.page import running_node

MOST = 256
"""The most reports that are kept. Beyond this the oldest is dropped."""

Prompt = Mapping[str, Mapping[str, Any]]
SHOWN = ("text", "lycoris", "training")
"""The parts of a node's output that are its report."""


@dataclass(frozen=True)
class KeptReport:
    """What a node has shown."""

    node: str
    """The host's key of the node."""
    prompt: Prompt
    """The part of the prompt that the node depends on."""
    output: Mapping[str, Any]


_kept: dict[str, KeptReport] = {}


def keep(hidden: Any, shown: Mapping[str, Any] | None) -> None:
    """Keep what the running node shows, with the part of the prompt that it depends on.

    Only prompts with a workflow are kept: these come from a page, which may ask for them later. A node that
    shows no report loses what it showed before.
    """
    node, prompt = running_node(), getattr(hidden, "prompt", None) or {}
    if node is None or node not in prompt or "workflow" not in (getattr(hidden, "extra_pnginfo", None) or {}):
        return
    needed = dict(_before(prompt, node, set()))
    signature = json.dumps(needed, sort_keys=True)
    # The latest comes last.
    _kept.pop(signature, None)
    if shown and "text" in shown:
        output = {name: shown[name] for name in SHOWN if name in shown}
        _kept[signature] = KeptReport(node, needed, output)
    while len(_kept) > MOST:
        del _kept[next(iter(_kept))]


def kept(nodes: Collection[str]) -> list[KeptReport]:
    """The reports of nodes by the host's keys, the latest first."""
    return [report for report in reversed(list(_kept.values())) if report.node in nodes]


def _before(prompt: Prompt, node: str, done: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A node of a prompt and all before it, by their keys."""
    done.add(node)
    yield node, prompt[node]
    for value in prompt[node]["inputs"].values():
        if isinstance(value, list) and value and str(value[0]) in prompt.keys() - done:
            yield from _before(prompt, str(value[0]), done)
