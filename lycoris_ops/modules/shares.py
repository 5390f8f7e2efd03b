"""Describe which share of a model's weights is left out when some of its modules are adapted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping

from torch import nn

from .named import named_modules
from .presets import ModuleClasses
from .sites import Site, all_sites, by_weight

TOLD = 0.005
"""The smallest share that is shown as a number."""
KINDS = {
    "linear": "other linear layers",
    "conv": "convolutions",
    "norm": "norms",
    "embedding": "embeddings",
    "expert": "experts",
    "router": "routers",
}
"""The reasons in words for layers that no rule sets aside, by kind."""


def left_out(module: nn.Module, chosen: Container[str], sites: Mapping[str, Site] | None = None) -> str:
    """One line: which share of the weights in blocks, and of the whole model, is left out.

    `chosen` are the paths of the adapted modules; `sites` are the model's sites, if known already. A weight
    that several modules share counts once. Biases of modules that can be adapted do not count.
    """
    model = ModuleClasses(module)
    total = missing = in_blocks = 0
    reasons: Counter[str] = Counter()
    for path, size, why in _weights(module, model, all_sites(module) if sites is None else sites, chosen):
        total += size
        missing += size if why else 0
        if model.block_of(path) is not None:
            in_blocks += size
            reasons[why] += size
    del reasons[""]
    of_model = f"{_share(missing, total)} of the model"
    if not in_blocks:
        return of_model
    large = [(why, size) for why, size in reasons.most_common() if size >= TOLD * in_blocks]
    shares = [f"{why} {_share(size, in_blocks)}" for why, size in large]
    words = f" ({', '.join(shares)})" if shares else ""
    return f"{_share(reasons.total(), in_blocks)} of the weights in blocks{words}, {of_model}"


def _weights(
    module: nn.Module, model: ModuleClasses, sites: Mapping[str, Site], chosen: Container[str]
) -> Iterator[tuple[str, int, str]]:
    """The path and size of each weight, and why it is not adapted; "" where it is."""
    for group in by_weight(sites.values()):
        first = next((site for site in group if site.path in chosen), group[0])
        aside = model.aside(first.path) if first.kind == "linear" else None
        why = "" if first.path in chosen else aside or KINDS[first.kind]
        yield first.path, math.prod(first.shape), why
    held = {site.module for site in sites.values()}
    for path, inner in named_modules(module):
        if inner not in held:
            for name, value in inner.named_parameters(recurse=False):
                if not isinstance(value, nn.UninitializedParameter):
                    yield f"{path}.{name}", value.numel(), "what cannot be adapted"


def _share(some: int, total: int) -> str:
    if 0 < some < TOLD * total:
        return "under 1%"
    return f"{some / (total or 1):.0%}"
