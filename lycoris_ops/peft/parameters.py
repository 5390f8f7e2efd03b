"""PEFT's LoRA of single parameters (`target_parameters`): routers, and the experts of a mixture.

A parameter of E experts (E, O, I) has one pair of factors: lora_A (E r, I), whose rows e r to (e + 1) r are
expert e's, and lora_B (O, r E), whose columns e, e + E, e + 2 E, ... are expert e's. Where several
parameters of one module are adapted, PEFT nests their layers in the order in which the module declares them.
The first is the innermost, with the most `base_layer` in its keys.

Here each expert has a layer of its own, `<parameter>.expert3`, and a router's layer has the path of its
module. A module may be called `expert3` too: only a model, or a configuration with `target_parameters`, tells
whether a layer is on a module or on a parameter. Source: `ParamWrapper` of peft 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import LayerError

DECLARED = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""The order in which the classes of transformers declare the parameters of their experts."""
DOWN, UP = "lora_A.weight", "lora_B.weight"
"""PEFT's names for the two factors."""
REPLACED = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names of linear layers that PEFT replaces by those of experts' parameters, where a model has these.

It replaces them for all layers, also in DeepSeek's dense blocks and shared experts, which it then leaves
out."""
WEIGHT = ".weight"
"""The end of the path of a router's parameter."""
EXPERT = re.compile(r"\.expert(\d+)$")
"""The end of the path of a layer on an expert of a parameter."""


def parameter_of(path: str) -> str:
    """The path of the parameter that a layer is on, given the path of this layer."""
    return EXPERT.sub("", path) if EXPERT.search(path) else f"{path}{WEIGHT}"


def of_expert(parameter: str, number: int) -> str:
    """The path of the layer on an expert of a parameter."""
    return f"{parameter}.expert{number}"


def expert_of(path: str) -> int | None:
    """The number of the expert that a layer on a parameter changes; None for the whole parameter."""
    number = EXPERT.search(path)
    return int(number[1]) if number else None


def declared(names: Sequence[str]) -> list[str]:
    """The adapted parameters of one module in the order of their declaration, the innermost first.

    Raises LayerError where several are given and their order is not known.
    """
    if len(names) > 1 and not set(names) <= set(DECLARED):
        raise LayerError("E-peft-nested-parameters", declared=DECLARED, got=", ".join(sorted(names)))
    return sorted(names, key=lambda name: DECLARED.index(name) if name in DECLARED else 0)
