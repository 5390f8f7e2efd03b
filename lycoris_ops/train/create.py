"""Make a network for a model."""

from __future__ import annotations

import dataclasses
import inspect
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..algorithms import Layer
from ..algorithms.base import Sharing, once
from ..algorithms.training import Trained
from ..errors import LycorisError, UnsuitedError, located
from ..expressions import of_one_text
from ..messages import either
from ..modules.patterns import check_used
from ..modules.sites import Site, all_sites, select
from ..ranks.plan import Plan
from ..reading.adapter import Adapter
from ..reading.load import load_adapter
from ..rules.patterns import Pattern
from .changed import changed_layers, wish_of
from .member import Member, completed, layer_seed, make_layer
from .naming import layers_for, usual_prefix
from .network import LycorisNetwork
from .settings import LayerOptions, LayerSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Overrides = Mapping[str, Mapping[str, Any]]
"""Options of `LayerSettings` by patterns of modules' paths."""


_ALWAYS = frozenset({"input_dropout", "rank_dropout", "module_dropout", "lr", "form"})
LEFT = {"file": _ALWAYS, "plan": _ALWAYS | {"dora", "bias"}}
"""The settings that a file's layers, or a plan's rows, leave open."""
CHANGING = frozenset({"algorithm", "rank", "factor"})
"""Settings that a pattern may change in a file's layers, which are then converted before the training."""


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
    **options: Unpack[LayerOptions],
) -> LycorisNetwork:
    """A network for the modules of a model; `apply_to` lets it act.

    Which modules: `preset`, `include` and `exclude`, see `modules.select`. How each is trained: `algorithm`,
    `rank`, `alpha` (None: the rank, for a scale of 1) and any field of `LayerSettings` as `options`.
    `overrides` has other settings for the modules that a pattern matches; the first matching pattern counts.
    So algorithms and ranks can be mixed. On norms the algorithm is always norm.

    With `weights`, an adapter file or an adapter in memory, modules, algorithms, ranks and alphas come from
    its layers, and training goes on from them. `options` and `overrides` may set the dropouts, `lr` and
    `form`. Where `overrides` name an algorithm or a rank, the matching layers are first converted to it (see
    `resize_adapter`), or get further components for a higher rank. The scale of their factors stays, and the
    report says how much of their change is kept.

    Without `weights` every layer starts at a change of zero, from `seed`; without a seed a random one is
    drawn and kept in `network.seed`.

    With `plan`, modules, algorithms, ranks, alphas and learning rates come from its rows, and the layers
    start from the gradient if the plan has its probe. `options` and `overrides` add settings that a plan does
    not have, such as dropouts and DoRA.

    `prefix` comes before the model's paths in files, such as `diffusion_model.` where the model is part of a
    larger one. None means `unet.` or `transformer.` for a model of diffusers, and no prefix for any other.

    Raises LycorisError where nothing is chosen, a pattern matches nothing, or a rank of `overrides` is above
    what its module can use. It also refuses an option that is unknown, has no meaning for its algorithm, or
    is already decided by the file or plan.
    """
    settings = {"algorithm": algorithm, "rank": rank, "alpha": alpha, **options}
    own = inspect.signature(create_lycoris).parameters
    base = _base_of(settings)
    if plan is not None and weights is not None:
        raise LycorisError("E-layers-planned-and-from-file")
    if plan is not None or weights is not None:
        source = "plan" if weights is None else "file"
        beside = {**settings, "preset": preset, "include": include, "exclude": exclude}
        # An empty list of patterns counts as not given.
        beside = [name for name in beside if name in own and beside[name] not in (own[name].default, [])]
        if beside:
            raise LycorisError("E-modules-already-chosen", source=source, beside=beside)
        _check_left(source, options, overrides or {})
    if base.tokens and not include and plan is None and weights is None:
        raise LycorisError("E-tokens-without-module", key="create_lycoris")
    drawn = random.getrandbits(31) if seed is None else seed
    start = usual_prefix(module) if prefix is None else prefix
    if plan is not None:
        members, notes = _planned(module, plan, base, overrides or {}, drawn), []
    elif weights is None:
        sites = select(module, preset=preset, include=include, exclude=exclude)
        members, notes = _fresh(_overridden(sites, base, overrides or {}), drawn, named=bool(include))
    else:
        members, notes = _from_file(module, weights, start, base, overrides or {}, drawn)
    network = LycorisNetwork(module, members, seed=drawn, prefix=start, notes=notes)
    network.origin = "fresh" if plan is None and weights is None else "file" if plan is None else "plan"
    network.set_multiplier(multiplier)
    return network


def check_layer_options(options: Mapping[str, Any]) -> None:
    """Raise LycorisError for arguments of `create_lycoris` that are unknown or out of their range.

    What depends on the model, such as whether a pattern matches, is checked when a network is made.
    """
    fields = {field.name for field in dataclasses.fields(LayerSettings)}
    beside = inspect.signature(create_lycoris).parameters.keys() - fields
    _base_of({name: value for name, value in options.items() if name not in beside})


def _base_of(options: Mapping[str, Any]) -> LayerSettings:
    """The settings of the layers that no pattern of `overrides` matches."""
    own = inspect.signature(create_lycoris).parameters
    return LayerSettings().with_options(options, "create_lycoris", own.keys() - {"module", "options"})


def _check_left(what: str, options: Mapping[str, Any], overrides: Overrides) -> None:
    """Raise LycorisError for an option that a file's layers or a plan's rows decide."""
    tables = {"create_lycoris": options, **{f"overrides[{text!r}]": own for text, own in overrides.items()}}
    known = {field.name for field in dataclasses.fields(LayerSettings)}
    for where, names in tables.items():
        for name in names:
            changes = what == "file" and where != "create_lycoris" and name in CHANGING
            if name in known and name not in LEFT[what] and not changes:
                raise LycorisError(
                    "E-kind-chosen-by-plan" if what == "plan" else "E-kind-chosen-by-file",
                    key=where,
                    what=what,
                    got=name,
                    expected=either(sorted(LEFT[what])),
                )


@dataclass(frozen=True)
class _Planned:
    """A site, how it is trained, and whether its rank was given for it alone."""

    site: Site
    settings: LayerSettings
    own: bool
    given: Mapping[str, Any]
    """The options of the pattern that matches it."""


@of_one_text()
def _overridden(sites: Mapping[str, Site], base: LayerSettings, overrides: Overrides) -> list[_Planned]:
    settings_by_pattern: list[tuple[Pattern, LayerSettings, Mapping[str, Any]]] = []
    for text, options in overrides.items():
        if not isinstance(options, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LycorisError("E-options-not-a-mapping", key=f"overrides[{text!r}]", got=repr(options))
        pattern = Pattern.of_modules(text)
        check_used(pattern, sites, "chosen modules")
        settings_by_pattern.append((pattern, base.with_options(options, f"overrides[{text!r}]"), options))
    planned: list[_Planned] = []
    nothing: Mapping[str, Any] = {}
    for path, site in sites.items():
        matching = (
            (settings, options)
            for pattern, settings, options in settings_by_pattern
            if pattern.matches_path(path)
        )
        settings, own_options = next(matching, (base, nothing))
        asked = (settings.rank, settings.conv_rank) != (base.rank, base.conv_rank)
        planned.append(_Planned(site, settings, asked, own_options))
    return planned


def _fresh(planned: Sequence[_Planned], seed: int, *, named: bool) -> tuple[dict[str, Member], list[str]]:
    """The members, and a note for each deviation from the settings.

    A module that the algorithm does not suit is left out, or refused if patterns chose it (`named`) or have
    options for it.
    """
    layers: dict[str, Layer] = {}
    notes = _undivided(planned)
    unsuited: list[UnsuitedError] = []
    for each in planned:
        try:
            layer, note = make_layer(each.site, each.settings, seed, drawn=False)
        except UnsuitedError as error:
            if named or each.given:
                raise
            unsuited.append(error)
            notes.append(f"{each.site.path}: left out, {error.problem} ({error.got})")
            continue
        if note and each.own:
            raise LycorisError(
                "E-rank-above-module",
                key=each.site.path,
                rank=layer.rank,
                shape=list(each.site.shape),
                got=str(each.settings.size(kernel=len(each.site.shape) > 2)[0]),
            )
        notes += [note] if note else []
        layers[each.site.path] = layer
    if unsuited and not layers:
        raise unsuited[0]
    sites = {one.site.path: one.site for one in planned}
    return _members(planned, _shared(layers, sites, seed)), notes


def _shared(layers: Mapping[str, Layer], sites: Mapping[str, Site], seed: int) -> dict[str, Layer]:
    """Fresh layers, of which those of one kind and rank that share tensors have the ones of the largest."""
    alike: defaultdict[tuple[type[Trained], int], list[str]] = defaultdict(list)
    for path, layer in layers.items():
        if isinstance(layer, Sharing) and isinstance(layer, Trained):
            alike[type(layer), layer.rank or 1].append(path)
    made = dict(layers)
    for (kind, rank), paths in alike.items():
        largest = tuple(map(max, *(sites[path].shape for path in [*paths, paths[0]])))
        drawn = kind.init(largest, rank, float(rank), seed=seed)
        assert isinstance(drawn, Sharing)
        made |= {path: made[path].with_tensors(drawn.shared) for path in paths}
    return made


def _members(planned: Iterable[_Planned], layers: Mapping[str, Layer]) -> dict[str, Member]:
    """The members that have a layer. What layers share is moved to each device once."""
    move = once(Tensor.to)
    made = ((each.site, layers.get(each.site.path), each.settings) for each in planned)
    return {site.path: Member(site, layer, settings, move) for site, layer, settings in made if layer}


def _undivided(planned: Sequence[_Planned]) -> list[str]:
    """A text for each weight whose factor divides neither side, so that LoKr splits it by a smaller one.

    Raises LycorisError where a factor divides none of its weights.
    """
    split = [each for each in planned if (each.settings.factor or 0) > 0 and len(each.site.shape) > 1]
    left = [each for each in split if all(size % (each.settings.factor or 1) for size in each.site.shape[:2])]
    undivided = {each.site.path for each in left}
    # By identity: settings given separately are judged separately.
    of_use = {id(each.settings) for each in split if each.site.path not in undivided}
    for item in left:
        if id(item.settings) not in of_use:
            raise LycorisError(
                "E-plan-factor-indivisible",
                key=item.site.path,
                factor=item.settings.factor,
                shape=list(item.site.shape),
            )
    return [
        f"{each.site.path}: a smaller factor than {each.settings.factor}, which divides neither side of "
        f"{list(each.site.shape)}"
        for each in left
    ]


def _from_file(
    module: nn.Module,
    weights: str | os.PathLike[str] | Adapter,
    prefix: str,
    base: LayerSettings,
    overrides: Overrides,
    seed: int,
) -> tuple[dict[str, Member], list[str]]:
    adapter = weights if isinstance(weights, Adapter) else load_adapter(weights)
    layers, left = layers_for(adapter, module, prefix)
    sites = all_sites(module)
    planned = _overridden({path: sites[path] for path in layers}, base, overrides)
    wishes = [
        wish_of(each.site, layers[each.site.path], each.settings, each.given)
        for each in planned
        if each.given.keys() & CHANGING
    ]
    changed, notes = changed_layers(wishes, adapter.name, seed)
    layers |= changed
    with located(file=adapter.path):
        return _members(planned, layers), [*notes, *left]


def _planned(
    module: nn.Module, plan: Plan, base: LayerSettings, overrides: Overrides, seed: int
) -> dict[str, Member]:
    sites = all_sites(module)
    plan.check_model(sites)
    planned: list[_Planned] = []
    layers: dict[str, Layer] = {}
    for each in _overridden({row.path: sites[row.path] for row in plan}, base, overrides):
        row, path = plan[each.site.path], each.site.path
        settings = replace(
            each.settings,
            algorithm=row.algorithm,
            rank=row.rank or each.settings.rank,
            alpha=row.alpha,
            factor=row.factor,
            lr=row.lr * each.settings.lr,
        )
        layer = row.start(plan.origin, seed=layer_seed(seed, path))
        layers[path] = completed(layer, each.site, settings)
        planned.append(replace(each, settings=settings))
    return _members(planned, _shared(layers, sites, seed))
