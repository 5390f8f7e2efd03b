"""Joins the layers of single experts as PEFT writes them: one pair of factors for each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..names.dialects import Encoded
from ..peft import ConfiguredLayer, ConflictError
from ..peft.config import PREFIX
from ..peft.parameters import DOWN, UP, declared, expert_of, parameter_of


def joined(made: Sequence[Encoded]) -> list[Encoded]:
    """Layers as in PEFT's files: layers on parameters get their modules' names, and a parameter's experts are
    joined.

    Every expert of a parameter, from 0 on, must have a layer, and all of them the same rank. Raises
    LayerError where the order of a module's parameters is not known, ConflictError where an expert is
    missing.
    """
    plain: list[Encoded] = []
    groups: dict[str, dict[int, Encoded]] = {}
    for one in made:
        if one.on_parameter:
            parameter = parameter_of(one.name.removeprefix(PREFIX))
            groups.setdefault(parameter, {})[expert_of(one.name) or 0] = one
        else:
            plain.append(one)
    modules: dict[str, list[str]] = {}
    for parameter in groups:
        module, _, name = parameter.rpartition(".")
        modules.setdefault(module, []).append(name)
    for module, names in modules.items():
        for depth, name in enumerate(reversed(declared(names))):
            experts = groups[f"{module}.{name}"]
            written = f"{PREFIX}{module}{'.base_layer' * depth}"
            plain.append(replace(experts[min(experts)], name=written, tensors=_factors(experts)))
    return plain


def _factors(experts: dict[int, Encoded]) -> dict[str, Tensor]:
    missing = next((number for number in range(len(experts)) if number not in experts), None)
    first = experts[min(experts)]
    if missing is not None:
        assert first.configured is not None
        member = ConfiguredLayer(first.name, first.name.removeprefix(PREFIX), *first.configured)
        raise ConflictError("needs a layer for every expert of a parameter", member, f"none for {missing}")
    ordered = [experts[number].tensors for number in range(len(experts))]
    down = torch.cat([one[DOWN] for one in ordered])
    # With E experts, the columns of one expert are E apart.
    up = torch.stack([one[UP] for one in ordered], dim=-1).flatten(1)
    return {DOWN: down, UP: up.contiguous()}
