"""The modules of a model that can be adapted: linear layers, convolutions, norms and embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from ..bypass import Geometry, geometry_of
from ..errors import LycorisError
from ..maths.shapes import Shape
from .patterns import Pattern, patterns
from .presets import PRESETS, Model

Kind = Literal["linear", "conv", "norm", "embedding"]


@dataclass(frozen=True, eq=False)
class Site:
    """A module that can be adapted, and its path in the model.

    `geometry` says how a linear layer or a convolution multiplies; it is None for norms and embeddings.
    """

    path: str
    module: nn.Module
    kind: Kind
    shape: Shape
    """The shape of the weight: (O, I, *kernel), (C,) for a norm, (words, features) for an embedding."""
    geometry: Geometry | None = None

    @property
    def has_bias(self) -> bool:
        return getattr(self.module, "bias", None) is not None


def site_of(path: str, module: nn.Module) -> Site | str | None:
    """The site of a module, or why it is none although it has values; None where it has none itself."""
    weight = getattr(module, "weight", None)
    if weight is None and next(module.parameters(recurse=False), None) is None:
        return None
    found = geometry_of(module)
    if weight is None:
        return found if isinstance(found, str) else None
    if isinstance(found, Geometry):
        return Site(path, module, "conv" if found.kernel else "linear", found.shape, found)
    shape = tuple(weight.shape)
    if isinstance(module, nn.Embedding):
        return Site(path, module, "embedding", shape)
    if len(shape) == 1 and "norm" in type(module).__name__.lower():
        return Site(path, module, "norm", shape)
    return found


def select(
    module: nn.Module,
    *,
    preset: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
) -> dict[str, Site]:
    """The sites of a model that a preset or patterns choose, by path and in the model's order.

    `include` and `exclude` are patterns, see `Pattern`. Chosen are the sites of the preset and those that
    `include` matches, without those that `exclude` matches. Without a preset, only what `include` matches is
    chosen, or all of preset "full" where that is empty too. Norms and embeddings are in no preset: `include`
    chooses them.

    Raises LycorisError for an unknown preset, for a pattern that matches no site, where nothing is chosen,
    and where one weight is chosen under two names: changing it twice is never meant.
    """
    wanted, unwanted = patterns(include), patterns(exclude)
    found, others = _sites(module)
    for pattern in (*wanted, *unwanted):
        pattern.check_used(found, "modules that can be adapted")
    name = preset or (None if wanted else "full")
    if name is not None and name not in PRESETS:
        raise LycorisError("an unknown preset", got=name, expected=", ".join(PRESETS))
    by_preset: Iterable[str] = ()
    if name is not None:
        model = Model(module)
        by_preset = {path for path, site in found.items() if PRESETS[name](model, path, site.kind)}
    chosen = {
        path: site
        for path, site in found.items()
        if (path in by_preset or _any(wanted, path)) and not _any(unwanted, path)
    }
    if not chosen:
        raise LycorisError(
            f"nothing to adapt in {type(module).__name__}",
            got=_counted(found, others),
            expected=_sought(name, wanted, unwanted),
        )
    _check_distinct(chosen)
    return chosen


def left_alone(module: nn.Module) -> dict[str, str]:
    """The modules with trained values that cannot be adapted, by path, with the reasons."""
    return _sites(module)[1]


def _sites(module: nn.Module) -> tuple[dict[str, Site], dict[str, str]]:
    found: dict[str, Site] = {}
    others: dict[str, str] = {}
    # With duplicates: a module under two names may be meant by either.
    named: Iterable[tuple[str, nn.Module]] = cast("Any", module).named_modules(remove_duplicate=False)
    for path, inner in named:
        site = site_of(path, inner)
        if isinstance(site, Site):
            found[path] = site
        elif site is not None:
            others[path] = site
    return found, others


def _any(chosen: Iterable[Pattern], path: str) -> bool:
    return any(pattern.matches(path) for pattern in chosen)


def _check_distinct(chosen: Mapping[str, Site]) -> None:
    seen: dict[int, str] = {}
    for path, site in chosen.items():
        first = seen.setdefault(id(site.module.weight), path)
        if first != path:
            raise LycorisError(
                "one weight is chosen under two names",
                key=path,
                got=f"the weight of {first}",
                expected="each weight once",
                hint=f"Leave one of them out: exclude={path!r}",
            )


def _counted(found: Mapping[str, Site], others: Mapping[str, str]) -> str:
    kinds = Counter(site.kind for site in found.values())
    text = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no module that can be adapted"
    if others:
        path, reason = next(iter(others.items()))
        text += f"; {len(others)} that cannot be adapted, such as {path or 'the model itself'}: {reason}"
    return text


def _sought(preset: str | None, wanted: Iterable[Pattern], unwanted: Iterable[Pattern]) -> str:
    parts = [
        f"preset {preset}" if preset else "",
        *(f"include {pattern.text}" for pattern in wanted),
        *(f"exclude {pattern.text}" for pattern in unwanted),
    ]
    return ", ".join(filter(None, parts))
