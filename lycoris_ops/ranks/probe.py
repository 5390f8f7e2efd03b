"""Probe a model: what each layer could gain from some batches, and where it would start."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import FileFormatError, PlanError
from ..files.tree_file import TreeForm
from ..files.writing import Progress, safetensors_path
from ..maths.shapes import Shape
from ..maths.tensors import is_finite
from ..modules import Site, left_out, select
from .gains import Probed, measured
from .gradients import Loss, agreement, check_seen, summed
from .sizes import bytes_of

FORM = TreeForm("lycoris_probe", 2, "a probe", "Probe the model again, and save the result by `Probe.save`")


@dataclass(frozen=True, eq=False)
class Probe:
    """What each layer could gain, by path and in the model's order.

    `loss` is the mean over the `batches` that were seen.
    """

    layers: Mapping[str, Probed]
    loss: float
    batches: int
    agreement: float | None = None
    """The cosine between the gradients by every second batch and by the others, estimated by random
    projections: 1 where batches say the same, near 0 where the mean gradient is mostly chance and more
    batches would say more. None for a single batch, and where no layer is linear or a convolution."""
    left_out: str | None = None
    """Which share of the model's weights was not probed, in words."""

    @cached_property
    def energy(self) -> float:
        """||G||^2 of all layers together."""
        return sum(layer.energy for layer in self.layers.values())

    def check_model(self, sites: Mapping[str, Site]) -> None:
        """Raise PlanError unless these sites of a model hold the probe's layers, in the same shapes."""
        check_layers({path: layer.shape for path, layer in self.layers.items()}, sites, "probe")

    def gain_of(self, path: str, rank: int) -> float | None:
        """The gain of a layer, None where it is not known. Raises PlanError for a layer not probed."""
        gains = self.layer(path).gains
        # A rank above the highest measured one gains at least as much.
        return gains[min(rank, len(gains)) - 1] if gains else None

    def layer(self, path: str) -> Probed:
        """The measurements of a layer. Raises PlanError for one that was not probed."""
        if path not in self.layers:
            raise PlanError(
                "the probe does not know this layer", key=path, expected=f"one of {len(self.layers)} layers"
            )
        return self.layers[path]

    def uniform_gain(self, parameters: int) -> float | None:
        """The gain of a LoRA of one rank on all layers with so many parameters.

        Between two ranks, and below rank 1, it grows with the parameters in proportion. None where no layer
        has a gain.
        """
        layers = [layer for layer in self.layers.values() if layer.gains]
        size, gain = 0, 0.0
        for rank in range(1, 1 + max((len(layer.gains) for layer in layers), default=0)):
            # A layer that has no such rank stays at its highest.
            ranks = [(layer, min(rank, len(layer.gains))) for layer in layers]
            larger = sum(layer.parameters(own) for layer, own in ranks)
            better = sum(layer.gains[own - 1] for layer, own in ranks)
            if larger > parameters:
                return gain + (better - gain) * (parameters - size) / (larger - size)
            size, gain = larger, better
        return gain if layers else None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe to a safetensors file, whole or not at all. Raises WriteError where it cannot."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        layers = {name: vars(layer) for name, layer in self.layers.items()}
        FORM.write(safetensors_path(path), {**held, "layers": layers})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a probe that `save` wrote. Raises FileFormatError for another file."""
        read = FORM.read(Path(path))
        try:
            layers = {name: Probed(**one) for name, one in read.pop("layers").items()}
            return cls(layers, **read)
        except (KeyError, TypeError, AttributeError) as error:
            problem = "the probe in the file is damaged"
            raise FileFormatError(problem, file=str(path), got=str(error)) from error


def probe(
    module: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    preset: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    largest: int = 128,
    memory: int | str = "2GB",
    least: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Probe:
    """Find what each layer of a model could gain from some batches.

    `loss(module, batch)` gives the loss of a batch, a scalar. The gradients of the weights that `preset`,
    `include` and `exclude` choose (see `modules.select`) are averaged over the batches in float32, each as a
    whole, and only their spectra and leading singular vectors are kept. `largest` is the highest rank that
    is looked at.

    Gradients of at most `memory` bytes, a number or a text such as "2GB", are held at a time: where those of
    all layers take more, the batches are gone through again for the next layers, in the same order, so that
    they must be a list or the like. A single layer larger than that has a pass of its own. Each pass begins
    with the same `seed` of torch's generators, which are afterwards as they were. So are the model's weights,
    gradients, flags, hooks and running statistics, also after an error. Parameters of the loss that are not
    the model's get gradients as by any `backward`.

    All batches are used unless `least` is given. Then the probe ends after so many, or twice as many, four
    times as many and so on, as soon as their halves agree by a third (see `Probe.agreement`), which the
    layers of the first pass decide. The order of the batches must then mean nothing.

    The model runs as it is: in the mode, the dtype and on the device that it has, with weights that hooks of
    accelerate load within each pass too. Modules with running statistics use them, as in a training.
    `progress` is called with the number of layers that are done.

    Raises PlanError for a loss that is no scalar, has no graph or is not finite, for a gradient that is not
    finite, for batches that run out in a later pass, and as `check_seen` does; LycorisError where nothing is
    chosen.
    """
    if type(largest) is not int or largest < 1:
        raise PlanError("the highest rank is a whole number from 1", got=repr(largest))
    if least is not None and (type(least) is not int or least < 2):
        raise PlanError("two halves need two batches", got=repr(least), expected="least=8 or another from 2")
    sites = select(module, preset=preset, include=include, exclude=exclude)
    check_seen(module, sites.values())
    groups = list(_groups(sites, bytes_of(memory)))
    if len(groups) > 1 and iter(batches) is batches:
        raise PlanError(
            "the batches can be gone through only once, and the gradients do not fit into memory at a time",
            got=f"{len(groups)} passes",
            expected="a list of batches or the like, or more memory",
        )
    found: dict[str, Probed] = {}
    mean, seen, reached = 0.0, 0, False
    halves = (0.0, 0.0, 0.0)
    for group in groups:
        # Every pass takes as many batches as the first did.
        taken = itertools.islice(batches, seen) if least and seen else batches
        sums = summed(module, group, taken, loss, seed=seed, least=None if seen else least)
        if seen and sums.batches != seen:
            raise PlanError(
                "the batches changed between two passes", got=str(sums.batches), expected=str(seen)
            )
        mean, seen, reached = sums.loss, sums.batches, reached or sums.reached
        halves = tuple(map(sum, zip(halves, sums.halves, strict=True)))
        for site in group:
            values = sums.gradients.pop(site.path)
            if not is_finite(values):
                raise PlanError("the gradient of a layer is not finite", key=site.path, got="NaN or infinity")
            found[site.path] = measured(values, largest=largest, seed=seed)
            if progress:
                progress(len(found), len(sites))
    if not reached:
        raise PlanError(
            "the loss has no graph to any of the layers",
            expected="a loss of the model's outputs, not detached and not under no_grad",
        )
    return Probe(found, mean, seen, agreement(halves), left_out(module, found))


def check_layers(
    shapes: Mapping[str, Shape], sites: Mapping[str, Site] | Mapping[str, Probed], what: str
) -> None:
    """Raise PlanError unless the sites hold layers of these shapes. `what` says whose they are."""
    missing = [path for path in shapes if path not in sites]
    if missing:
        raise PlanError(
            f"the {what} is for another model",
            key=missing[0],
            got=f"{len(missing)} of {len(shapes)} layers that the model does not have",
        )
    for path, shape in shapes.items():
        if sites[path].shape != shape:
            raise PlanError(
                f"the {what} is for another model",
                key=path,
                got=f"a weight {list(sites[path].shape)}",
                expected=str(list(shape)),
            )


def _groups(sites: Mapping[str, Site], memory: int) -> Generator[list[Site]]:
    """The sites in order, in groups whose gradients fit into memory."""
    group: list[Site] = []
    held = 0
    for site in sites.values():
        size = 4 * torch.Size(site.shape).numel()
        if group and held + size > memory:
            yield group
            group, held = [], 0
        group.append(site)
        held += size
    yield group
