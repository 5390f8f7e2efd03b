"""The weights of a model that can be adapted: linear layers, convolutions, norms, embeddings and experts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..bypass.geometry import Geometry, definer, geometry_of
from ..bypass.stacked import Stacked
from ..errors import LycorisError
from ..maths.divided import is_divided
from ..maths.shapes import Shape
from ..maths.tensors import is_plain, norm
from ..peft.parameters import of_expert
from ..rules.patterns import Pattern
from .experts import expert_weights
from .named import named_modules
from .patterns import check_used, patterns
from .presets import PRESETS, ModuleClasses

Kind = Literal["linear", "conv", "norm", "embedding", "expert", "router"]
What = Literal["weight", "bias"]
ROUTER = re.compile(r"Router|TopK|MoE?Gate")
"""Matches the names of classes that choose experts by a weight (E, I)."""

READ_BY_OTHERS: Mapping[str, tuple[str, ...]] = {
    "ShiftedWindowAttention": ("qkv", "proj"),
    "ShiftedWindowAttentionV2": ("qkv", "proj"),
    **dict.fromkeys(("MambaMixer", "FalconMambaMixer", "JambaMambaMixer"), ("conv1d", "dt_proj")),
    **dict.fromkeys(("Mamba2Mixer", "BambaMixer", "Zamba2MambaMixer"), ("conv1d",)),
}
"""Classes of torchvision and transformers that use weights of some submodules without calling them (always,
or on some devices), with the names of these submodules."""

FUSED: Mapping[str, tuple[str, ...]] = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""The layers that `fuse_qkv_projections` of diffusers makes in an attention, each with those that it is made
of. The attention keeps both, and computes with one."""

KNOWN = frozenset({"torch", "comfy", "bitsandbytes", "torchao", "transformers", "diffusers"})
"""Packages whose classes multiply like torch's linear layers and convolutions of the same name."""
CLOSE = 0.05
"""The largest relative difference between the outputs of a module and of torch's class of the same name.
Rounding in narrow dtypes stays below it."""


@dataclass(frozen=True, eq=False)
class Site:
    """A weight of a model that can be adapted, and its path in the model.

    `geometry` says how a linear layer or a convolution multiplies; it is None where only the weight can be
    changed: for norms, embeddings, classes that multiply in a way of their own, and weights that another
    module uses, as `nn.MultiheadAttention` does.
    """

    path: str
    module: nn.Module
    """The module that holds the weight."""
    kind: Kind
    shape: Shape
    """The shape of the weight: (O, I, *kernel), (C,) for a norm, (words, features) for an embedding."""
    geometry: Geometry | None = None
    weight: str = "weight"
    """The name of the weight in its module."""
    bias: str = "bias"
    expert: int | None = None
    """The number of the expert whose part of the parameter this is; None for a whole parameter."""
    stacked: Stacked | None = None
    """Puts the changed parameter of all experts into the passes of the module."""
    turned: bool = False
    """Whether the expert's weight is stored as (I, O)."""
    caller: nn.Module | None = None
    """The module in whose pass the weight is used, where that is not `module` itself."""

    @property
    def used_by(self) -> nn.Module:
        """The module in whose pass the weight is used."""
        return self.caller or self.module

    @property
    def has_bias(self) -> bool:
        computed = parametrize.is_parametrized(self.module, self.bias)
        return not computed and getattr(self.module, self.bias, None) is not None

    @property
    def may_add_bias(self) -> bool:
        """Whether the module has a bias, or has None for it, as torch's classes do without one."""
        lacks = self.geometry is not None and getattr(self.module, self.bias, self) is None
        return lacks or self.has_bias

    @property
    def transposed(self) -> bool:
        """Whether the module stores the weight as (I, O)."""
        return self.turned or (self.geometry is not None and self.geometry.transposed)

    def oriented(self, values: Tensor) -> Tensor:
        """A view in `shape` of values that are laid out as the module stores its weight.

        For an expert, `values` are those of all experts.
        """
        own = values if self.expert is None else values[self.expert]
        return own.T if self.transposed else own

    @property
    def key(self) -> str:
        """The key of the weight in the model's state dict; for an expert, a key made of its path."""
        return f"{self.path}.weight" if self.kind == "expert" else f"{self._start}{self.weight}"

    @property
    def parameter(self) -> str:
        """The key in the model's state dict: of the weight, or of the parameter that holds all experts."""
        return self.key if self.expert is None else self.path.removesuffix(of_expert("", self.expert))

    @property
    def on_parameter(self) -> bool:
        """Whether PEFT needs its layer on the parameter, not on a module, see `peft.parameters`.

        Beside a linear layer that multiplies in its own way, PEFT would add to whatever the layer returns.
        """
        own_way = self.kind == "linear" and self.geometry is None and self.used_by is self.module
        return self.kind in ("expert", "router") or (own_way and self.weight == "weight")

    @property
    def bias_key(self) -> str:
        """The key of the bias in the model's state dict."""
        return f"{self._start}{self.bias}"

    @property
    def _start(self) -> str:
        holder = self.path.rpartition(".")[0] if self.weight != "weight" else self.path
        return f"{holder}." if holder else ""


def sites_of(path: str, module: nn.Module) -> list[Site] | str:
    """The sites of a module itself, not of those inside; or why it has none although it has parameters."""
    if isinstance(module, nn.MultiheadAttention):
        return _projections(path, module)
    if parametrize.is_parametrized(module, "weight") or _by_norm(module):
        return "its weight is computed from other values, as by weight_norm"
    if experts := expert_weights(path, module):
        return experts if isinstance(experts, str) else _experts(path, module, experts)
    held = getattr(module, "weight", None)
    # A model may call anything by this name: a number, or a module inside.
    weight = held if isinstance(held, Tensor) else None
    if weight is None and next(module.parameters(recurse=False), None) is None:
        return []
    if isinstance(module, parametrize.ParametrizationList):
        # It holds the values from which the weight of a module above is computed.
        return []
    if isinstance(weight, nn.UninitializedParameter):
        return "its shape is not known before its first pass"
    if weight is not None and weight.is_complex():
        return "its weight is complex"
    if weight is not None and not weight.numel():
        return "its weight has no values"
    geometry = geometry_of(module)
    if weight is None:
        return geometry if isinstance(geometry, str) else []
    shape = tuple(weight.shape)
    if isinstance(geometry, Geometry):
        kind: Kind = "conv" if geometry.kernel else "linear"
        by_package = definer(module).__module__.partition(".")[0] in KNOWN
        known = by_package or not is_plain(weight) or _multiplies(module, geometry, weight)
        return [Site(path, module, kind, geometry.shape, geometry if known else None)]
    if is_plain(weight) and (own := _own_way(module, shape)):
        return [Site(path, module, own, shape)]
    values = is_plain(weight) or is_divided(weight)
    if len(shape) == 2 and values and ROUTER.search(type(module).__name__):
        return [Site(path, module, "router", shape)]
    if isinstance(module, nn.Embedding):
        if module.sparse:
            return "its gradients are sparse, which layers on its weight do not support"
        return [Site(path, module, "embedding", shape)]
    if len(shape) == 1 and "norm" in type(module).__name__.lower():
        return [Site(path, module, "norm", shape)]
    return geometry


def _experts(path: str, module: nn.Module, stacks: Iterable[tuple[str, Tensor, Stacked]]) -> list[Site]:
    """A site for each expert of each parameter."""
    # The attribute that transformers and PEFT use.
    turned = bool(getattr(module, "is_transposed", False))
    return [
        Site(
            of_expert(f"{path}.{name}", number),
            module,
            "expert",
            (value.shape[2], value.shape[1]) if turned else (value.shape[1], value.shape[2]),
            weight=name,
            bias="",
            expert=number,
            stacked=stacked,
            turned=turned,
        )
        for name, value, stacked in stacks
        for number in range(len(value))
    ]


def _own_way(module: nn.Module, shape: Shape) -> Kind | None:
    """The kind of a subclass of torch's linear layer or convolution that multiplies in its own way."""
    if type(module) is nn.modules.linear.NonDynamicallyQuantizableLinear:
        # It is a site of the attention that it is a part of.
        return None
    layer: Any = module
    if isinstance(module, nn.Linear):
        return "linear" if shape == (layer.out_features, layer.in_features) else None
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv" if shape[:2] == (layer.out_channels, layer.in_channels // layer.groups) else None
    return None


def _multiplies(module: nn.Module, geometry: Geometry, weight: Tensor) -> bool:
    """Whether a module multiplies like torch's class of the same name. Tried on one random input.

    A class that refuses this input counts as multiplying like it: only its model knows the right input.
    """
    if next(module.children(), None) is not None:
        return False
    bias: Any = getattr(module, "bias", None)
    if weight.is_meta or not (bias is None or is_plain(bias)):
        return True
    drawn = torch.Generator().manual_seed(0)
    sizes = [d * (k - 1) + 2 + k for d, k in zip(geometry.dilation, geometry.kernel, strict=True)]
    x = torch.randn(1, geometry.inputs, *sizes, generator=drawn)
    values = (weight.T if geometry.transposed else weight).detach().float()
    wanted = geometry.product(geometry.padded(x.to(values)), values)
    if bias is not None:
        wanted = wanted + geometry.per_channel(bias.detach().float())
    for dtype in (weight.dtype, torch.float32, torch.bfloat16):
        try:
            with torch.no_grad():
                y = module.forward(x.to(weight.device, dtype)).float()
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            continue
        return y.shape == wanted.shape and bool(norm(y - wanted) <= CLOSE * norm(wanted))
    return True


def _by_norm(module: nn.Module) -> bool:
    """Whether hooks of the older weight_norm or spectral_norm form the weight before each pass."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return "weight" not in own and not own.isdisjoint(("weight_g", "weight_orig"))


def _projections(path: str, module: nn.MultiheadAttention) -> list[Site] | str:
    """The projections of torch's attention, which hands its weights to a function.

    The path of the input projection is its key, which is also its name in adapter files.
    """
    if getattr(module, "in_proj_weight", None) is None:
        return "its queries, keys and values are of different sizes"
    start = f"{path}." if path else ""
    out, size = module.out_proj, module.embed_dim
    name, bias = "in_proj_weight", "in_proj_bias"
    return [
        Site(f"{start}{name}", module, "linear", (3 * size, size), weight=name, bias=bias),
        Site(f"{start}out_proj", out, "linear", (size, size), caller=module),
    ]


def select(
    module: nn.Module,
    *,
    preset: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
) -> dict[str, Site]:
    """The sites of a model that a preset or patterns choose, by path and in the model's order.

    `include` and `exclude` are patterns, see `Pattern`. The preset's sites and those that `include` matches
    are chosen, without those that `exclude` matches. Without a preset, only the sites that `include` matches
    are chosen, or, if it is empty too, those of the preset "full". Norms, embeddings, experts and routers are
    in no preset: only `include` chooses them; "*" chooses every site. A preset leaves out a module that
    shares its weight with a module that is not chosen: when merged, the change of one would change the other
    too. An example is the output layer of a language model that is tied to its embedding. A module that the
    model holds under two names is chosen under the first of those that match.

    Raises LycorisError for an unknown preset, for a pattern that matches no site, where nothing is chosen,
    and where two modules that share one weight are chosen: changing it twice is never intended.
    """
    wanted, unwanted = patterns(include), patterns(exclude)
    sites, others = _sites(module)
    for pattern in (*wanted, *unwanted):
        check_used(pattern, sites, "modules that can be adapted", others)
    name = preset or (None if wanted else "full")
    if name is not None and name not in PRESETS:
        raise LycorisError("E-modules-preset-unknown", got=name, expected=", ".join(PRESETS))
    by_preset: set[str] = set()
    if name is not None:
        model = ModuleClasses(module)
        by_preset = {path for path, site in sites.items() if PRESETS[name](model, path, site.kind)}
    kept = {path: site for path, site in sites.items() if not _any(unwanted, path)}
    named = {path for path in kept if _any(wanted, path)}
    asked = named | (by_preset & kept.keys())
    # `lent` share their weight with a module that is neither chosen nor excluded by name.
    shared = shared_weights(sites.values())
    lent = {path for path, others in shared.items() if not asked.issuperset(kept.keys() & set(others))}
    chosen = {path: site for path, site in kept.items() if path in named or path in asked - lent}
    if not chosen:
        raise LycorisError(
            "E-nothing-to-adapt",
            model=type(module).__name__,
            filters=_sought(name, wanted, unwanted),
            got=_counted(sites, others),
        )
    chosen = {site.path: site for site in _once(chosen.values())}
    _check_distinct(chosen.values())
    return chosen


def left_alone(module: nn.Module) -> dict[str, str]:
    """The modules with trained values that cannot be adapted, by path, with the reasons."""
    return _sites(module)[1]


def shared_weights(sites: Iterable[Site], what: What = "weight") -> dict[str, tuple[str, ...]]:
    """The sites that share their weight, or their bias, with other modules, by path, with the paths of these
    modules."""
    shared = {
        site.path: tuple(other.path for other in group if other.module is not site.module)
        for group in by_weight(sites, what)
        for site in group
    }
    return {path: others for path, others in shared.items() if others}


def all_sites(module: nn.Module) -> dict[str, Site]:
    """Every weight of a model that can be adapted, by path. A weight under two names is listed twice."""
    return _sites(module)[0]


def _sites(module: nn.Module) -> tuple[dict[str, Site], dict[str, str]]:
    sites_found: dict[str, Site] = {}
    others: dict[str, str] = {}
    callers: dict[nn.Module, nn.Module] = {}
    unused: dict[nn.Module, str] = {}
    # With duplicates: a module under two names may be meant by either.
    for path, inner in named_modules(module):
        names = READ_BY_OTHERS.get(type(inner).__name__, ())
        callers.update((held, inner) for name, held in inner.named_children() if name in names)
        unused.update(_unused(inner))
        sites = sites_of(path, inner) if inner not in unused else unused[inner]
        if isinstance(sites, str):
            others[path] = sites
            continue
        if inner in callers:
            sites = [replace(site, geometry=None, caller=callers[inner]) for site in sites]
        sites_found.update((site.path, site) for site in sites)
    # The output layer of torch's attention has no site of its own, but one of the attention.
    return sites_found, {path: why for path, why in others.items() if path not in sites_found}


def _unused(module: nn.Module) -> dict[nn.Module, str]:
    """The projections of an attention of diffusers that its passes do not use, each with the reason."""
    held = dict(module.named_children())
    fused_names = [name for name in FUSED if name in held]
    if not fused_names or not hasattr(module, "fused_projections"):
        return {}
    fused = bool(module.fused_projections)
    if type(module).__name__ == "Attention":
        # In this class the processor decides, and the fused layers stay when its fusion is undone.
        fused = "Fused" in type(getattr(module, "processor", None)).__name__
    replaced: dict[nn.Module, str] = {}
    for name in fused_names:
        names = [projection for projection in FUSED[name] if projection in held]
        for left, used in (
            ((projection, name) for projection in names) if fused else [(name, ", ".join(names))]
        ):
            replaced[held[left]] = f"its attention computes with {used} in its place (fuse_qkv_projections)"
    return replaced


def by_weight(sites: Iterable[Site], what: What = "weight") -> list[list[Site]]:
    """The sites grouped by weight, or by their expert's part of it, in the order of their first sites.

    With `what` "bias" they are grouped by bias, without those that have none.
    """
    # Hold the weights: the `id` of one that is freed could be given to another.
    held = [(site, getattr(site.module, getattr(site, what), None)) for site in sites]
    groups: dict[tuple[object, int | None], list[Site]] = {}
    for site, value in held:
        if value is not None:
            # `load_state_dict` with `assign` makes two parameters of one memory. One of another's first rows
            # begins there too, and is a weight of its own.
            memory = value.data_ptr() if is_plain(value) else 0
            same = (memory, value.shape, value.stride()) if memory else id(value)
            groups.setdefault((same, site.expert), []).append(site)
    return list(groups.values())


def _any(chosen: Iterable[Pattern], path: str) -> bool:
    return any(pattern.matches_path(path) for pattern in chosen)


def _once(chosen: Iterable[Site]) -> list[Site]:
    """Each weight once, under the first name of its module: a layer on the module acts under all names."""
    first: dict[tuple[nn.Module, str, int | None], Site] = {}
    for site in chosen:
        first.setdefault((site.module, site.weight, site.expert), site)
    return list(first.values())


def _check_distinct(chosen: Iterable[Site]) -> None:
    groups = [group for group in by_weight(chosen) if group[1:]]
    if groups:
        again = [site.path for _, *others in groups for site in others]
        raise LycorisError(
            "E-weight-chosen-twice",
            key=again[0],
            path=groups[0][0].path,
            again=f"{(again if again[1:] else again[0])!r}",
        )


def _counted(sites: Mapping[str, Site], others: Mapping[str, str]) -> str:
    kinds = Counter(site.kind for site in sites.values())
    text = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no module that can be adapted"
    if others:
        path, reason = next(iter(others.items()))
        text += f"; {len(others)} that cannot be adapted, such as {path or 'the model itself'}: {reason}"
    return text


def _sought(preset: str | None, wanted: Iterable[Pattern], unwanted: Iterable[Pattern]) -> str:
    words = [
        f"preset {preset}" if preset else "",
        *(f"include {pattern.text}" for pattern in wanted),
        *(f"exclude {pattern.text}" for pattern in unwanted),
    ]
    return ", ".join(filter(None, words))
