"""The names of a network's layers in adapter files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..algorithms import Layer
from ..algorithms.full import Full
from ..errors import MatchError
from ..maths.shapes import Shape
from ..maths.tensors import is_plain
from ..messages import number_of, phrase
from ..modules.named import named_modules
from ..modules.sites import all_sites
from ..names.layer_name import LayerName
from ..peft import CONFIG_NAME
from ..reading.adapter import Adapter
from ..report.applied import odd_alphas
from ..stack.resolve import COMPONENT_NAMES, EntryResolution, resolve
from ..stack.stack import Entry, Stack

PLAIN = "base_model.model."
"""PEFT's prefix, for models without another one."""
DIFFUSERS = "diffusers"
"""The dialect whose prefixes are the names of a pipeline's components."""


def usual_prefix(module: nn.Module) -> str:
    """The prefix of a model's paths in files: diffusers' own for its models, else none."""
    _, base = next(named_modules(module))
    kind = type(base)
    if not kind.__module__.startswith("diffusers."):
        return ""
    return "unet." if "UNet" in kind.__name__ else "transformer." if "Transformer" in kind.__name__ else ""


def named(prefix: str, path: str) -> str:
    """A module's name in a file, with the model's prefix, or PEFT's where it has none.

    A path that begins with a component of a model as ComfyUI names it (`diffusion_model.`, `text_encoders.`)
    stays as it is.
    """
    if not prefix and LayerName.of(path).dialect == "comfy":
        return path
    return f"{prefix or PLAIN}{path}"


def model_shapes(module: nn.Module, prefix: str, *, addable: bool = False) -> dict[str, Shape]:
    """The keys, with the prefix, and the unpacked shapes of a model's weights and biases.

    With `addable` also those of missing biases that a layer can add to a module's output.
    """
    shapes: dict[str, Shape] = {}
    for site in all_sites(module).values():
        shapes[f"{prefix}{site.key}"] = site.shape
        if site.may_add_bias if addable else site.has_bias:
            shapes[f"{prefix}{site.bias_key}"] = site.shape[:1]
    return shapes


def _unread(adapter: Adapter) -> list[str]:
    """A remark on the keys of a file that belong to no layer. They are neither trained nor written again."""
    keys = adapter.left_out
    if not keys:
        return []
    return [f"{number_of(len(keys), 'unknown key')} of {adapter.name} left out, such as {keys[0]}"]


def _unscaled(adapter: Adapter) -> list[str]:
    """A remark if layers lack the configuration that states their scale."""
    names = adapter.unscaled
    if not names:
        return []
    return [
        f"{number_of(len(names), 'layer')} of {adapter.name} at scale 1, such as {names[0]}: the file has no "
        f"alpha, and no {CONFIG_NAME} lies beside it"
    ]


def layers_for(adapter: Adapter, module: nn.Module, prefix: str) -> tuple[dict[str, Layer], list[str]]:
    """The layers of an adapter by the paths of their sites in the model, and remarks on what is left out.

    A file may have layers for another part too, such as the text encoder of a diffusion model; they are left
    out. Raises MatchError where all layers are for another part, and for any other layer without a module,
    with another shape than its module, or for a part of a module: only whole layers can be trained.
    """
    # diffusers writes a component of a model without a prefix. Try both readings, and take the one that
    # leaves fewer layers without a module.
    tried = [(each, _entry(adapter, module, each)) for each in dict.fromkeys((prefix, ""))]
    prefix, entry = min(tried, key=lambda tried_one: len(tried_one[1].unmatched))
    for unmatched in entry.unmatched:
        if _repeats(adapter, unmatched.layer, entry, module):
            continue
        unread = unmatched.layer in adapter.unreadable
        raise MatchError(
            "E-file-layer-unreadable" if unread else "E-module-absent",
            file=adapter.path,
            key=unmatched.layer,
            got=unmatched.reason,
            expected=unmatched.nearest,
        )
    for mismatch in entry.mismatches:
        raise MatchError(
            "E-layer-misfits-module",
            file=adapter.path,
            key=mismatch.layer,
            got=mismatch.made_for,
            expected=str(list(mismatch.expected)),
        )
    if not entry.matches and entry.absent:
        raise MatchError(
            "E-weights-for-another-component",
            file=adapter.path,
            absent=f" {phrase('R-and-the')} ".join(COMPONENT_NAMES[component] for component in entry.absent),
        )
    sites = all_sites(module).values()
    paths = {f"{prefix}{key}": site.path for site in sites for key in (site.key, site.bias_key)}
    layers: dict[str, Layer] = {}
    for match in entry.matches:
        if match.target.rows is not None or match.window is not None:
            raise MatchError("E-layer-for-part-of-module", file=adapter.path, key=match.layer, got=match.key)
        layers[paths[match.key]] = adapter.layer(match.layer)
    _check_base(adapter, module, {match.layer: paths[match.key] for match in entry.matches})
    beside = [
        f"{number_of(len(layers), 'layer')} of {adapter.name} left out, for the {COMPONENT_NAMES[component]}"
        for component, layers in entry.absent.items()
    ]
    return layers, [*beside, *_unread(adapter), *_unscaled(adapter), *odd_alphas(adapter)]


def _repeats(adapter: Adapter, layer: str, entry: EntryResolution, module: nn.Module) -> bool:
    """Whether a layer is only the bias of a module without a weight, and another layer of the file sets the
    same parameter of the model to the same values.

    So it is with the heads of masked language models in transformers: `cls.predictions.bias` is the bias of
    the decoder as well.
    """
    if layer in adapter.unreadable or adapter.info[layer].algorithm is not Full:
        return False
    own, modules = adapter.layer(layer).tensors(), dict(named_modules(module))
    held = getattr(modules.get(adapter.info[layer].named.path), "bias", None)
    if own.keys() != {"set_bias"} or not isinstance(held, nn.Parameter):
        return False
    for match in entry.matches:
        other = adapter.layer(match.layer).tensors().get("set_bias")
        there = modules.get(adapter.info[match.layer].named.path)
        if other is not None and getattr(there, "bias", None) is held and torch.equal(other, own["set_bias"]):
            return True
    return False


def _entry(adapter: Adapter, module: nn.Module, prefix: str) -> EntryResolution:
    shapes = model_shapes(module, prefix, addable=True)
    (entry,) = resolve(Stack([Entry(adapter)]), shapes, oriented=True).entries
    return entry


def _check_base(adapter: Adapter, module: nn.Module, paths: Mapping[str, str]) -> None:
    """Raise MatchError where the file has a weight of the base that differs from the model's."""
    modules = dict(named_modules(module))
    for layer, key in adapter.base_weights.items():
        weight = getattr(modules[paths[layer]], "weight", None) if layer in paths else None
        if not isinstance(weight, Tensor) or not is_plain(weight):
            continue
        if not adapter.trained_on(layer, weight):
            raise MatchError(
                "E-file-weight-differs",
                file=adapter.path,
                key=key,
                path=paths[layer],
                shape=list(weight.shape),
            )
