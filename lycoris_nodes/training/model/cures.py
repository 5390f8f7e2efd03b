"""Fixes that make a model of the host trainable, by the class of its network, see `Family.networks`."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...host.families import NETWORKS
from ...host.families.family import Network
from .kernels import Differentiable, NormsCopied
from .mutation import mutation_allowed

ENCODER = "SDClipModel"
"""The host's class for one text encoder. Its `transformer` is the network."""


def kinds_of(network: nn.Module) -> frozenset[str]:
    """The classes that decide the cures of a network: its own, or those of its text encoders."""
    encoders: list[Any] = [
        module
        for module in network.modules()
        if any(kind.__name__ == ENCODER for kind in type(module).__mro__)
    ]
    return frozenset(type(encoder.transformer).__name__ for encoder in encoders) or frozenset(
        {type(network).__name__}
    )


@contextmanager
def cured(kinds: Collection[str]) -> Generator[None]:
    """A context in which a network of these classes gets correct gradients.

    Networks that overwrite inputs of norms or attentions need the context `reads_copied` too.
    """
    known = [NETWORKS[kind] for kind in kinds if kind in NETWORKS]
    unknown = len(known) < len(kinds)
    with ExitStack() as stack:
        if unknown:
            stack.enter_context(mutation_allowed())
        if unknown or any(network.fused for network in known):
            stack.enter_context(Differentiable())
        if any(network.attentions for network in known):
            stack.enter_context(NormsCopied())
        yield


@contextmanager
def reads_copied(network: nn.Module) -> Generator[None]:
    """A context in which norms, and some attentions, read copies of inputs that are overwritten
    afterwards."""

    def copied(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        return (arguments[0].clone(), *arguments[1:]) if torch.is_grad_enabled() else None

    parts = {known.norms for known in NETWORKS.values() if known.norms}
    own = NETWORKS.get(type(network).__name__, Network()).attentions
    norms = [
        norm
        for module in network.modules()
        if type(module).__name__ in parts
        for norm in module.modules()
        if type(norm).__name__.endswith("LayerNorm")
    ]
    attentions = [module for module in network.modules() if type(module).__name__ == own]
    handles = [module.register_forward_pre_hook(copied) for module in (*norms, *attentions)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
