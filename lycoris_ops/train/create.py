"""Making a network for a model."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..adapters.adapter import Adapter
from ..adapters.load import load_adapter
from ..errors import LycorisError
from ..modules import Pattern, Site, all_sites, select
from ..ranks.plan import Plan
from .member import Member, completed, layer_seed, make_layer
from .naming import layers_for, usual_prefix
from .network import LycorisNetwork
from .settings import Settings

Overrides = Mapping[str, Mapping[str, Any]]
"""Options of `Settings` by patterns of modules' paths."""


def create_lycoris(
    module: nn.Module,
    *,
    algorithm: str = "lora",
    rank: int = 16,
    alpha: float | None = None,
    multiplier: float = 1.0,
    preset: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    overrides: Overrides | None = None,
    plan: Plan | None = None,
    weights: str | os.PathLike[str] | Adapter | None = None,
    prefix: str | None = None,
    seed: int | None = None,
    **options: Any,
) -> LycorisNetwork:
    """A network for the modules of a model; `apply_to` lets it act.

    Which modules: `preset`, `include` and `exclude`, see `modules.select`. How each is trained: `algorithm`,
    `rank`, `alpha` (None: the rank, which is a scale of 1) and any other field of `Settings` as `options`.
    `overrides` has other settings for the modules that a pattern matches; the first one that matches counts.
    So algorithms and ranks can be mixed. On norms the algorithm is always norm.

    With `weights`, an adapter file or an adapter in memory, the modules, algorithms, ranks and alphas are
    those of its layers, and training goes on from them. Else every layer starts at a change of zero, from
    `seed`; without a seed a random one is drawn, which is `network.seed`.

    With `plan` the modules, algorithms, ranks, alphas and learning rates are those of its rows, and the
    layers start from the gradient where the plan has its probe. `options` and `overrides` add what a plan
    does not say, such as dropouts and DoRA.

    `prefix` is what stands before the model's paths in files, for a model that is a part of a larger one:
    `diffusion_model.`. None is `unet.` or `transformer.` for a model of diffusers, and nothing for any other.

    Raises LycorisError where nothing is chosen, a pattern matches nothing, an option is unknown or has no
    meaning for its algorithm, or a rank of `overrides` is above what its module can use.
    """
    given = {"algorithm": algorithm, "rank": rank, "alpha": alpha, **options}
    base = Settings().with_options(given, "create_lycoris")
    drawn = random.getrandbits(31) if seed is None else seed
    start = usual_prefix(module) if prefix is None else prefix
    if (plan is not None or weights is not None) and (preset or include or exclude):
        raise LycorisError(
            "a file or a plan says itself which modules are adapted",
            got="preset, include or exclude beside it",
            expected="weights or plan alone",
        )
    if plan is not None and weights is not None:
        raise LycorisError("layers are either planned or from a file", got="plan and weights")
    if plan is not None:
        members, notes = _planned(module, plan, base, overrides or {}, drawn), []
    elif weights is None:
        sites = select(module, preset=preset, include=include, exclude=exclude)
        members, notes = _fresh(_overridden(sites, base, overrides or {}), drawn)
    else:
        members, notes = _from_file(module, weights, start, base, overrides or {}), []
    network = LycorisNetwork(module, members, seed=drawn, prefix=start, notes=notes)
    network.set_multiplier(multiplier)
    return network


@dataclass(frozen=True)
class _Planned:
    """A site, how it is trained, and whether its settings were given for it and not for all."""

    site: Site
    settings: Settings
    own: bool


def _overridden(sites: Mapping[str, Site], base: Settings, overrides: Overrides) -> list[_Planned]:
    found: list[tuple[Pattern, Settings]] = []
    for text, options in overrides.items():
        pattern = Pattern.of(text)
        pattern.check_used(sites, "chosen modules")
        found.append((pattern, base.with_options(options, f"overrides[{text!r}]")))
    planned: list[_Planned] = []
    for path, site in sites.items():
        own = next((settings for pattern, settings in found if pattern.matches(path)), None)
        planned.append(_Planned(site, own or base, own is not None))
    return planned


def _fresh(planned: Iterable[_Planned], seed: int) -> tuple[dict[str, Member], list[str]]:
    members: dict[str, Member] = {}
    notes: list[str] = []
    for one in planned:
        layer, note = make_layer(one.site, one.settings, seed)
        if note and one.own:
            raise LycorisError(
                "a rank is above what its module can use",
                key=one.site.path,
                got=str(one.settings.size(kernel=len(one.site.shape) > 2)[0]),
                expected=f"at most {layer.rank} for {list(one.site.shape)}",
            )
        notes += [note] if note else []
        members[one.site.path] = Member(one.site, layer, one.settings)
    return members, notes


def _from_file(
    module: nn.Module,
    weights: str | os.PathLike[str] | Adapter,
    prefix: str,
    base: Settings,
    overrides: Overrides,
) -> dict[str, Member]:
    adapter = weights if isinstance(weights, Adapter) else load_adapter(weights)
    layers = layers_for(adapter, module, prefix)
    sites = all_sites(module)
    chosen = {path: sites[path] for path in layers}
    return {
        one.site.path: Member(one.site, layers[one.site.path], one.settings)
        for one in _overridden(chosen, base, overrides)
    }


def _planned(
    module: nn.Module, plan: Plan, base: Settings, overrides: Overrides, seed: int
) -> dict[str, Member]:
    sites = all_sites(module)
    plan.check_model(sites)
    members: dict[str, Member] = {}
    for one in _overridden({row.path: sites[row.path] for row in plan}, base, overrides):
        row, path = plan[one.site.path], one.site.path
        settings = replace(
            one.settings,
            algorithm=row.algorithm,
            rank=row.rank or one.settings.rank,
            alpha=row.alpha,
            factor=row.factor,
            lr=row.lr * one.settings.lr,
        )
        layer = row.start(plan.probe, seed=layer_seed(seed, path))
        members[path] = Member(one.site, completed(layer, one.site, settings), settings)
    return members
