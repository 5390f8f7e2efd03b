"""A process's share of a layer whose weight is divided among processes.

This is for tensor parallelism where weights and inputs are DTensors, as torch's `parallelize_module` makes
them. Each process has the whole layer, and computes with the part that belongs to its part of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from ..algorithms import Layer
from ..maths.shapes import Rows
from .geometry import Geometry


@dataclass(frozen=True)
class WeightShare:
    """Some rows (axis 0) or columns (axis 1) of a weight, or all of it (None)."""

    mesh: Any
    """The mesh of processes, whose last dimension divides the weight."""
    axis: int | None
    part: Rows
    """The rows or columns."""
    least: int
    """How many of them the last process has; below 1 where it has none."""

    @classmethod
    def of(cls, weight: Tensor) -> WeightShare:
        """The share that this process has of a weight that is divided among processes.

        `fully_shard` may have divided the shares further. It undoes that in each pass, so that does not count
        here.
        """
        divided: Any = weight
        mesh, placement = divided.device_mesh, divided.placements[-1]
        if placement.is_replicate():
            return cls(mesh, None, (0, len(weight)), len(weight))
        axis: int = placement.dim % weight.ndim
        # As torch divides: equal parts, except that the last ones may be smaller or empty.
        size = weight.shape[axis]
        count: int = mesh.size(mesh.ndim - 1)
        most = -(-size // count)
        start: int = min(size, most * mesh.get_local_rank(mesh.ndim - 1))
        return cls(mesh, axis, (start, min(size, start + most)), size - most * (count - 1))

    def of_geometry(self, geometry: Geometry) -> Geometry:
        """The geometry of a linear layer that has only this part of the weight."""
        size = self.part[1] - self.part[0]
        if self.axis is None:
            return geometry
        return replace(geometry, inputs=size) if self.axis else replace(geometry, outputs=size)

    def of_layer(self, layer: Layer) -> Layer:
        """The part of a layer that is for this part of the weight.

        The gradients of its tensors are added up over the processes in the backward pass. Where the weight is
        divided by columns, each process adds an equal share of the bias's change. Raises LayerError for a
        layer that cannot be cut so.
        """
        if self.axis is None:
            return layer
        layer = layer.with_tensors({name: self._added_up(tensor) for name, tensor in layer.tensors().items()})
        if self.axis == 0:
            return layer.rows(self.part)
        count, held = self.mesh.size(self.mesh.ndim - 1), layer.tensors()
        shared = {name: held[name] / count for name in layer.table.biases if name in held}
        return layer.columns(self.part).with_tensors(shared)

    def beside(self, x: Tensor, y: Tensor, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """y as changed by `add`, which is given this process's parts of the module's input x and output y."""
        # Some builds of torch lack this module.
        from torch.distributed.tensor import Partial, Replicate, Shard

        takes = Shard(x.ndim - 1) if self.axis == 1 else Replicate()
        gives = (Shard(y.ndim - 1), Partial())[self.axis] if self.axis is not None else Replicate()
        # If rows are divided, each process adds a part of the input's gradient. If columns are divided, the
        # outputs are summed, and each process has the whole gradient of the sum.
        met = _own(x, takes, Partial() if self.axis == 0 else takes)
        output = add(met, _own(y, gives, Replicate() if self.axis == 1 else gives))
        kind: Any = type(y)
        total = kind.from_local(output, self.mesh, [gives], run_check=False, shape=y.shape, stride=y.stride())
        return total.redistribute(placements=cast("Any", y).placements)

    def _added_up(self, value: Tensor) -> Tensor:
        """The tensor, with a gradient that is summed over all processes."""
        if not value.requires_grad:
            return value
        from torch.distributed.tensor import DTensor, Partial, Replicate

        kind: Any = DTensor
        divided = kind.from_local(value, self.mesh, [Replicate()], run_check=False)
        return divided.to_local(grad_placements=[Partial()])


def _own(value: Any, placement: Any, gradient: Any) -> Tensor:
    """This process's part of a tensor divided by `placement`, with a gradient divided by `gradient`."""
    return value.redistribute(placements=[placement]).to_local(grad_placements=[gradient])
