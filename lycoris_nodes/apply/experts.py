"""Which of a model's two experts a MODEL is, and which file of each pair in a stack it gets.

Each expert is a model of its own, with the same layers: only the name of its file tells which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...lycoris_ops import Stack, phrase
from ..files.pairs import ENDING, HIGH, LOW, Expert, expert_of
from ..host.weights import loaded_from

Choice = Literal["auto", "high noise", "low noise"]
CHOICES = ("auto", HIGH, LOW)


def of_expert(stack: Stack, choice: Choice, model: Any, hidden: Any) -> tuple[Stack, str, bool]:
    """The stack with one file for each pair, what to report, and whether the model's expert is known.

    `hidden` has the prompt of the run and the id of the node in it, or is None. If the expert is not known,
    the files for high noise are taken.
    """
    pairs = sum(entry.low_noise is not None for entry in stack)
    if not pairs:
        return stack, "", True
    expert, why = (choice, phrase("R-chosen")) if choice != "auto" else told_expert(model, hidden)
    chosen = expert or HIGH
    gave = phrase("R-gave-file", pairs=pairs)
    said = phrase("R-nothing-tells-two-experts-model", gave=gave)
    if expert:
        said = phrase("R-model-expert", replace=expert.replace(" ", "-"), why=why, gave=gave)
    return stack.of_expert(low_noise=chosen == LOW), said, expert is not None


def told_expert(model: Any, hidden: Any, link: str = "model") -> tuple[Expert | None, str]:
    """The expert that the name of the model's file says, and why, in words; None and "" if no name says it.

    `hidden` is as in `of_expert`, and `link` is the node's input that the model is linked to.
    """
    path = loaded_from(model) or ""
    # Only the file's name and its folder's: folders further up say where this machine keeps its models.
    names = ["/".join(path.replace("\\", "/").split("/")[-2:]), *_names_before(hidden, link)]
    for name in names:
        if expert := expert_of(name):
            return expert, phrase("R-name", rpartition=name.rpartition("/")[2])
    return None, ""


def _names_before(hidden: Any, link: str) -> list[str]:
    """The files that the loader of the model names in the prompt.

    The prompt is needed because loaders of other packs do not tell the host their file. Only the loader
    counts, because the nodes after it name files of other kinds.
    """
    prompt: Mapping[str, Any] = getattr(hidden, "prompt", None) or {}
    node: Any = getattr(hidden, "unique_id", None)
    seen = set[str]()
    while node in prompt and node not in seen:
        seen.add(node)
        inputs: Mapping[str, Any] = prompt[node].get("inputs", {})
        source = inputs.get(link)
        if not (isinstance(source, list) and source):
            return [value for value in inputs.values() if isinstance(value, str) and ENDING.search(value)]
        node, link = source[0], "model"
    return []
