"""Continue training a file's layers as another kind or at another rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.checks import of_rank
from ..algorithms.lora import Lora
from ..errors import LayerError
from ..maths.shapes import flat_shape
from ..messages import number_of
from ..modules.sites import Site
from ..ranks.sizes import Rank
from ..reading.adapter import Adapter
from ..resize.resize import resize_adapter
from .member import layer_seed, make_layer, read_weight
from .settings import LayerSettings

AXES = {"lora_up": 1, "lora_down": 0, "lora_e": 0}
"""The tensors of a LoRA whose rank can be raised, each with its rank axis."""


@dataclass(frozen=True)
class Wish:
    """A layer of a file, and the settings that it will continue with."""

    site: Site
    layer: Layer
    settings: LayerSettings
    """The wanted kind, rank and factor."""

    @property
    def needs_fit(self) -> bool:
        """Whether the nearest layer has to be found: for another kind or form, or a lower rank."""
        settings, layer = self.settings, self.layer
        other = settings.algorithm != layer.algorithm or settings.factor is not None
        return other or settings.rank < (layer.rank or 0)

    @property
    def idle(self) -> bool:
        """Whether the layer changes nothing on any weight."""
        plain = self.layer.additive() is not None
        return plain and not bool(self.layer.delta(torch.zeros(self.site.shape)).any())


@torch.no_grad()
def changed_layers(wishes: Sequence[Wish], name: str, seed: int) -> tuple[dict[str, Layer], list[str]]:
    """The layers with the wanted settings, by path, and remarks on which were changed and how much is kept.

    For another kind or a lower rank `resize_adapter` finds the nearest layer. For a higher rank components
    are added that change nothing yet. The scale of the factors stays.

    Raises LayerError for a layer that cannot get a higher rank, and the errors of `resize_adapter`.
    """
    groups: dict[tuple[str, int, int | None], list[Wish]] = {}
    for wish in wishes:
        if wish.needs_fit and not wish.idle:
            settings = wish.settings
            groups.setdefault((settings.algorithm, settings.rank, settings.factor), []).append(wish)
    # A layer that changes nothing starts anew.
    layers = {
        wish.site.path: make_layer(wish.site, wish.settings, seed)[0] if wish.idle else wish.layer
        for wish in wishes
    }
    energy = lost = 0.0
    for (algorithm, rank, factor), some in groups.items():
        adapter = Adapter.of({wish.site.path: wish.layer for wish in some}, name=name)
        # Only changes that depend on the weight, such as DoRA's, need it.
        base = {wish.site.key: read_weight(wish.site) for wish in some if wish.layer.additive() is None}
        resized = resize_adapter(adapter, Rank(rank), algorithm, base or None, factor=factor, seed=seed)
        for wish in some:
            layers[wish.site.path] = resized.layer(wish.site.path)
        if resized.report is not None:
            energy += resized.report.energy
            lost += sum(row.lost for row in resized.report.rows) + resized.report.lost
    for wish in wishes:
        layers[wish.site.path] = _grown(layers[wish.site.path], wish, seed)
    touched = [wish for wish in wishes if _words(layers[wish.site.path]) != _words(wish.layer)]
    if not touched:
        return layers, []
    share = 1 - lost / energy if energy > 0 else 1.0
    path = touched[0].site.path
    return layers, [
        f"{number_of(len(touched), 'layer goes', 'layers go')} on as another kind or at another rank, "
        f"such as {path} ({_words(touched[0].layer)} to {_words(layers[path])}); "
        f"{share:.1%} of the energy of their change is kept"
    ]


def _grown(layer: Layer, wish: Wish, seed: int) -> Layer:
    """Raise the rank of a layer to the wanted one, as far as its weight can use it."""
    rank = min(wish.settings.rank, *flat_shape(wish.site.shape))
    if layer.rank is None or layer.rank >= rank:
        return layer
    held = layer.tensors()
    if not isinstance(layer, Lora) or held.keys() & {"lora_mid", "lora_embedding_a"}:
        if wish.needs_fit:
            # The nearest layer needs no more components.
            return layer
        raise LayerError(
            "E-rank-not-raisable",
            key=wish.site.path,
            layer=_words(layer),
            rank=wish.settings.rank,
            highest=layer.rank,
        )
    more = rank - layer.rank
    fresh = layer.init(wish.site.shape, more, 1.0, seed=layer_seed(seed, wish.site.path)).tensors()
    grown: dict[str, Tensor] = {}
    for name, axis in AXES.items():
        if name in held:
            # Some files store kernels flat.
            shape = [more if index == axis else size for index, size in enumerate(held[name].shape)]
            new = fresh.get(name, torch.ones(more, 1)).reshape(shape)
            grown[name] = torch.cat([held[name], new.to(held[name])], axis)
    alpha = None if layer.alpha is None else layer.alpha / layer.rank * rank
    return replace(layer, **grown, alpha=alpha)


def _words(layer: Layer) -> str:
    return of_rank(layer.algorithm, layer.rank)


def wish_of(site: Site, layer: Layer, settings: LayerSettings, asked: Mapping[str, object]) -> Wish:
    """The wish for a layer of a file. `asked` are the options that the user has set for it.

    Kind and rank stay as the file has them unless they are given.

    Raises LayerError for a rank or a factor of a kind that has none.
    """
    algorithm = settings.algorithm if "algorithm" in asked else layer.algorithm
    if settings.factor is not None and algorithm != "lokr":
        raise LayerError("E-factor-only-for-lokr", key=site.path, algorithm=algorithm, factor=settings.factor)
    if "rank" in asked and algorithm == layer.algorithm and layer.rank is None:
        raise LayerError("E-rank-not-given", key=site.path, layer=_words(layer), rank=settings.rank)
    rank = settings.rank if "rank" in asked or layer.rank is None else layer.rank
    alpha = layer.alpha / layer.rank * rank if layer.alpha is not None and layer.rank else None
    own = replace(settings, algorithm=algorithm, rank=rank, alpha=alpha, conv_rank=None, conv_alpha=None)
    return Wish(site, layer, own)
