"""Probe a model: what each layer could gain from some batches, and where it would start."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import processes
from ..algorithms import declaring
from ..algorithms.fitting import Offer
from ..algorithms.planning import Planned
from ..changes.forms import Dense
from ..errors import FileFormatError, PlanError
from ..files.tree_file import TreeForm
from ..files.writing import Progress, safetensors_path
from ..maths.shapes import Shape, flat_shape
from ..maths.tensors import largest_of
from ..messages import either
from ..modules.shares import left_out
from ..modules.sites import Site, select
from .gradients import Loss, agreement, check_seen, summed
from .offers import Gradient, offers_of
from .sizes import bytes_of

PLANNED = tuple(declaring(Planned))
"""The kinds that plans choose from."""
FORM = TreeForm(
    "lycoris_probed", 1, "a probe", "Probe the model again: the files of version 0.2.0 are not read"
)


@dataclass(frozen=True, eq=False)
class Probed:
    """The measurements of one layer."""

    shape: Shape
    kind: str
    energy: float
    """||G||^2 of the mean gradient over the batches."""
    spectrum: Tensor
    """The leading singular values of G as a matrix (O, K), in descending order."""
    offers: tuple[Offer, ...]


@dataclass(frozen=True, eq=False)
class Probe:
    """What each layer could gain, by path and in the model's order.

    `loss` is the mean over the `batches` that were seen.
    """

    layers: Mapping[str, Probed]
    loss: float
    batches: int
    agreement: float | None = None
    """The cosine between the gradients of every second batch and of the others, estimated by random
    projections: 1 where batches agree, near 0 where the mean gradient is mostly chance and more batches would
    help. None for a single batch, and where no layer is linear or a convolution."""
    left_out: str | None = None
    """Which share of the model's weights was not probed, in words; None where it is not known."""

    @cached_property
    def energy(self) -> float:
        """||G||^2 of all layers together."""
        return sum(layer.energy for layer in self.layers.values())

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The kinds on offer for the layers."""
        names = dict.fromkeys(offer.algorithm for layer in self.layers.values() for offer in layer.offers)
        return tuple(names)

    def check_model(self, sites: Mapping[str, Site]) -> None:
        """Raise PlanError unless these sites of a model hold the probe's layers, in the same shapes."""
        check_layers({path: layer.shape for path, layer in self.layers.items()}, sites, "probe")

    def start_of(
        self, path: str, algorithm: str, factor: int | None, rank: int | None
    ) -> Mapping[str, Tensor]:
        """The factors that a layer starts from; empty where the kind starts from none.

        Raises PlanError for a layer that was not probed.
        """
        offer = self._offer(path, algorithm, factor, rank)
        return {} if offer is None else offer.start

    def gain_of(self, path: str, algorithm: str, factor: int | None, rank: int | None) -> float | None:
        """The gain of a layer, None where it is not known. Raises PlanError for a layer not probed."""
        offer = self._offer(path, algorithm, factor, rank)
        if offer is None:
            return None
        # A rank above the highest measured one gains at least as much.
        return max(g for r, g in zip(offer.ranks, offer.kept, strict=True) if r is None or r <= (rank or r))

    def uniform_gain(self, parameters: int) -> float | None:
        """The gain of a LoRA with this many parameters and the same rank on all layers.

        It is interpolated linearly between ranks, and from 0 to rank 1. None where the probe has no offer of
        LoRA.
        """
        offers = [
            offer for layer in self.layers.values() for offer in layer.offers if offer.algorithm == "lora"
        ]
        size, gain = 0, 0.0
        for index in range(max((len(offer.ranks) for offer in offers), default=0)):
            # A layer that has no such rank stays at its highest.
            chosen = [(offer, min(index, len(offer.ranks) - 1)) for offer in offers]
            larger = sum(offer.parameters[index] for offer, index in chosen)
            better = sum(offer.kept[index] for offer, index in chosen)
            if larger > parameters:
                return gain + (better - gain) * (parameters - size) / (larger - size)
            size, gain = larger, better
        return gain if offers else None

    def _offer(self, path: str, algorithm: str, factor: int | None, rank: int | None) -> Offer | None:
        if path not in self.layers:
            raise PlanError("E-probe-layer-unknown", key=path, count=len(self.layers))
        for offer in self.layers[path].offers:
            full = offer.ranks == (None,)
            if offer.algorithm == algorithm and offer.factor == factor and full == (rank is None):
                return offer
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe to a safetensors file, whole or not at all. Raises WriteError where it cannot."""
        layers = {name: _described(layer) for name, layer in self.layers.items()}
        about = {name: getattr(self, name) for name in ("loss", "batches", "agreement", "left_out")}
        FORM.write(safetensors_path(path), {**about, "layers": layers})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a probe that `save` wrote. Raises FileFormatError for any other file."""
        read = FORM.read(Path(path))
        try:
            layers = {name: _undescribed(entry) for name, entry in read.pop("layers").items()}
            return cls(layers, **read)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                "E-probe-damaged", file=str(path), name=type(error).__name__, error=error
            ) from error


def probe(
    module: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    preset: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    algorithms: str | Sequence[str] = "all",
    largest: int = 128,
    memory: int | str = "2GB",
    least: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Probe:
    """Find what each layer of a model could gain from some batches.

    `loss(module, batch)` gives the loss of a batch, a scalar. The gradients of the weights that `preset`,
    `include` and `exclude` choose (see `modules.select`) are averaged over the batches in float32, each as a
    whole, and only their spectra and leading singular vectors are kept. `algorithms` names the kinds to
    consider, "all" or some of them, and `largest` the highest rank.

    At most `memory` bytes of gradients, a number or a text such as "2GB", are held at a time. If the
    gradients of all layers take more, further passes over the batches follow for the next layers. `batches`
    must then be a list or the like that has the same order each time. A single layer larger than that has a
    pass of its own.

    Each pass begins with the same `seed` of torch's generators. The generators are restored afterwards, also
    after an error, and so are the model's weights, gradients, flags, hooks and running statistics. Parameters
    of the loss that are not the model's get gradients as in any `backward`.

    All batches are used unless `least` is given. Then the probe ends after that many, twice, four times as
    many and so on, as soon as the halves agree by a third in the layers of the first pass (see
    `Probe.agreement`). The batches must then be in random order.

    The model runs in its own mode and dtype and on its own device. Hooks of accelerate may load its weights
    within each pass. Modules with running statistics use them, as in training.
    `progress` is called with the numbers of layers done and of all layers.

    In several processes (`torchrun`) all call this with the same arguments. Each takes every n-th batch and
    finds the singular vectors of every n-th layer. All return the same probe as a single process would.

    Raises LycorisError where no layer is chosen, and for a model that the processes compute in parts, as with
    tensor parallelism. Raises PlanError for a loss that is no scalar, has no graph or is not finite, for a
    gradient that is not finite, for batches that run out in a later pass, and as `check_seen` does.
    """
    kinds = chosen_algorithms(algorithms, PLANNED)
    if type(largest) is not int or largest < 1:
        raise PlanError("E-highest-rank-unusable", got=repr(largest))
    if least is not None and (type(least) is not int or least < 2):
        raise PlanError("E-halves-need-two-batches", got=repr(least))
    sites = select(module, preset=preset, include=include, exclude=exclude)
    check_seen(module, sites.values())
    processes.check_whole(module)
    groups = list(_groups(sites, bytes_of(memory)))
    if len(groups) > 1 and iter(batches) is batches:
        raise PlanError("E-batches-once-for-gradients", count=len(groups))
    layers: dict[str, Probed] = {}
    mean, seen, reached = 0.0, 0, False
    halves = (0.0, 0.0, 0.0)
    for group in groups:
        # Every pass takes as many batches as the first did.
        first, most = (None, seen) if least and seen else (least, None)
        sums = summed(module, group, batches, loss, seed=seed, least=first, most=most)
        if seen and sums.batches != seen:
            raise PlanError("E-batches-changed", got=str(sums.batches), expected=str(seen))
        mean, seen, reached = sums.loss, sums.batches, reached or sums.reached
        halves = tuple(map(sum, zip(halves, sums.halves, strict=True)))
        share = range(processes.rank(), len(group), processes.count())
        sizes = largest_of([sums.gradients[site.path] for site in group])
        for index, (site, size) in enumerate(zip(group, sizes, strict=True)):
            if not math.isfinite(size):
                raise PlanError("E-gradient-not-finite", key=site.path)
            if index not in share:
                del sums.gradients[site.path]
        own: dict[str, Probed] = {}
        for index in share:
            site = group[index]
            own[site.path] = _probed(site, sums.gradients.pop(site.path), kinds, largest, seed)
            if progress:
                progress(len(layers) + min(index + processes.count(), len(group)), len(sites))
        of_processes = processes.of_all(own)
        layers |= {
            site.path: of_processes[index % len(of_processes)][site.path] for index, site in enumerate(group)
        }
    if not reached:
        raise PlanError("E-loss-without-graph")
    return Probe(layers, mean, seen, agreement(halves), left_out(module, layers))


def chosen_algorithms(names: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The algorithms of these names, or all with "all". Raises PlanError for an unknown name."""
    chosen = tuple(known) if names == "all" else (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise PlanError(
            "E-fit-algorithm-unknown", got=", ".join(unknown) or "none", expected=either(sorted(known))
        )
    return chosen


def check_layers(
    shapes: Mapping[str, Shape], sites: Mapping[str, Site] | Mapping[str, Probed], what: str
) -> None:
    """Raise PlanError unless the sites hold layers of these shapes. `what` names their owner: plan or
    probe."""
    missing = [path for path in shapes if path not in sites]
    if missing:
        raise PlanError(
            "E-plan-layers-absent", key=missing[0], what=what, absent=len(missing), layers=len(shapes)
        )
    for path, shape in shapes.items():
        if sites[path].shape != shape:
            raise PlanError(
                "E-plan-weight-differs",
                key=path,
                what=what,
                shape=list(sites[path].shape),
                expected=str(list(shape)),
            )


def _groups(sites: Mapping[str, Site], memory: int) -> Generator[list[Site]]:
    """The sites in order, in groups whose gradients fit into memory."""
    group: list[Site] = []
    held = 0
    for site in sites.values():
        size = _bytes(site)
        if group and held + size > memory:
            yield group
            group, held = [], 0
        group.append(site)
        held += size
    yield group


def _bytes(site: Site) -> int:
    """The bytes of a gradient."""
    return 4 * math.prod(site.shape)


def _probed(site: Site, values: Tensor, kinds: Sequence[str], largest: int, seed: int) -> Probed:
    planned = declaring(Planned)
    flat = Dense(values.reshape(flat_shape(site.shape)))
    gradient = Gradient((flat,), site.shape, largest=largest, seed=seed, settled=0.0, device=values.device)
    offers = offers_of((planned[kind] for kind in kinds), gradient)
    energy = gradient.energy
    spectrum = gradient.spectrum if values.ndim > 1 else torch.tensor([math.sqrt(energy)])
    return Probed(
        shape=site.shape,
        kind=site.kind,
        energy=energy,
        spectrum=spectrum.float(),
        offers=offers if energy else (),
    )


def _described(layer: Probed) -> dict[str, Any]:
    """A layer as plain values and tensors."""
    offers = [
        {
            "algorithm": offer.algorithm,
            # As float64, which holds all of them exactly; 0 is for no rank.
            "sizes": torch.tensor(
                [[rank or 0 for rank in offer.ranks], offer.kept, offer.parameters, offer.first_steps],
                dtype=torch.float64,
            ),
            "factor": offer.factor,
            "start": dict(offer.start),
        }
        for offer in layer.offers
    ]
    return {**vars(layer), "offers": offers}


def _undescribed(entry: Mapping[str, Any]) -> Probed:
    offers: list[Offer] = []
    for entry_of_offer in entry["offers"]:
        ranks, kept, parameters, first_steps = entry_of_offer["sizes"].tolist()
        offers.append(
            Offer(
                algorithm=entry_of_offer["algorithm"],
                ranks=tuple(int(rank) or None for rank in ranks),
                kept=tuple(kept),
                parameters=tuple(map(int, parameters)),
                first_steps=tuple(first_steps),
                factor=entry_of_offer["factor"],
                start=entry_of_offer["start"],
            )
        )
    held: dict[str, Any] = {**entry, "offers": tuple(offers)}
    return Probed(**held)
