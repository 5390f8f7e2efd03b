"""Sum the gradients of a model's weights over batches, without changing the model.

Those of linear layers, convolutions and embeddings are computed from a layer's inputs and the gradients of
its outputs, so their weights may be frozen or quantised. All others are autograd's own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import processes
from ..bypass.hook import input_of, own_of
from ..errors import LycorisError, PlanError
from ..maths import chance
from ..maths.divided import is_divided
from ..maths.tensors import CPU, fetched
from ..modules.sites import Site
from ..modules.statistics import evaluating, with_statistics
from ..turns import turns

DIRECTIONS = 32
"""The number of random directions that compare the gradients of two halves of the batches."""
FIRM = 1 / 3
"""Below this cosine c between the gradients of two halves of the batches, their mean counts as chance. The
signal's share of the mean's energy is 2 c / (1 + c): below a third, more than half is noise."""

Loss = Callable[[Any, Any], Tensor]
"""loss(model, batch): a scalar with a graph."""

AddPass = Callable[[Tensor, Tensor], None]
"""Called in each pass of a layer, with its input and the gradient of its output."""


@dataclass(frozen=True)
class Sums:
    """The result of one pass over the batches. All tensors are float32."""

    gradients: dict[str, Tensor]
    """The mean gradient (O, I, *kernel) of each weight by path; zeros where no batch reaches the layer."""
    loss: float
    """The mean loss."""
    batches: int
    reached: bool
    """Whether the loss of any batch depends on any of the layers."""
    halves: tuple[float, float, float]
    """<A, B>, ||A||^2 and ||B||^2 of the gradients A of every second batch and B of the others, estimated by
    DIRECTIONS projections of each linear layer and ungrouped convolution."""


# `backward` could not add to tensors made in inference mode.
@torch.inference_mode(mode=False)
@torch.enable_grad()
def summed(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Iterable[Any],
    loss: Loss,
    *,
    seed: int,
    least: int | None = None,
    most: int | None = None,
) -> Sums:
    """One pass over the batches, or over the first `most`, for some sites.

    Each of n processes takes every n-th batch, as `turns` gives them.

    The loss of a batch draws the same random numbers in any process.

    With `least`, the halves are compared after that many batches, then after twice, four times as many and so
    on, and at the end of a turn. The pass ends as soon as their cosine is at least FIRM.

    Raises PlanError for a loss that is not a finite scalar, if there is no batch, and as `check_seen` does.
    """
    check_seen(module, sites)
    sums = {site.path: _Sum(site) for site in sites}
    total, count = 0.0, 0
    with _tapped(module, sums), chance.Chance(seed).drawn():
        for turn in turns(batches, processes.rank(), processes.count()):
            # A process without a batch repeats another's without counting it: with a sharded model, the
            # others wait for it.
            own = processes.rank() if turn.counts else 0
            with chance.Chance(seed, "probe", count + own).drawn():
                value = _passed(module, turn.batch, loss, counts=turn.counts)
            for each in sums.values():
                each.project(half=(count + own) % 2)
            total, count = total + value, count + turn.of
            if least is not None and count >= least:
                agree = agreement(_halves(sums.values()))
                if agree is not None and agree >= FIRM:
                    break
                while least <= count:
                    least *= 2
            if most is not None and count >= most:
                break
    if not count:
        raise PlanError("E-batches-absent")
    for each in sums.values():
        processes.add_up([each.gradient])
        # In place: copies of all would take as much memory again.
        each.gradient.div_(count)
    of_processes = processes.of_all((total, any(each.reached for each in sums.values())))
    return Sums(
        gradients={path: each.gradient for path, each in sums.items()},
        loss=sum(own for own, _ in of_processes) / count,
        batches=count,
        reached=any(reached for _, reached in of_processes),
        halves=_halves(sums.values()),
    )


def _passed(module: nn.Module, batch: Any, loss: Loss, *, counts: bool) -> float:
    """Run a batch forward and backward, and return its loss. Unless it `counts`, loss and gradients are 0."""
    states = chance.states()
    value = scalar(loss(module, batch))
    if not torch.isfinite(value.detach()).all():
        # With a sharded model other processes would have to take part in another pass.
        bad = first_bad(module, partial(loss, module, batch), states) if processes.count() == 1 else None
        raise PlanError(
            "E-output-not-finite" if bad else "E-loss-not-finite",
            key=bad,
            got=str(float(value.detach())),
        )
    if value.requires_grad:
        # torch has no type for `backward`.
        cast("Any", value if counts else value * 0).backward()
    return float(value.detach()) if counts else 0.0


def check_in_memory(module: nn.Module, sites: Iterable[Site], error: type[LycorisError]) -> list[Site]:
    """The sites whose weights hooks of accelerate load within each pass.

    Raises `error` for a weight on the device meta that nothing loads.
    """
    offloaded = [site for site in sites if cast("Tensor", getattr(site.module, site.weight)).is_meta]
    if not offloaded:
        return []
    inside = {
        id(inner) for outer in module.modules() if hasattr(outer, "_hf_hook") for inner in outer.modules()
    }
    for site in offloaded:
        if id(site.module) not in inside:
            raise error(
                "E-weight-not-in-memory",
                key=site.path,
            )
    return offloaded


def check_seen(module: nn.Module, sites: Iterable[Site]) -> None:
    """Raise PlanError for a weight on the device meta whose gradient cannot be seen.

    Hooks of accelerate load offloaded weights within each pass. A linear layer's inputs and outputs are
    visible then, but norms and the like need the gradient of the weight itself.
    """
    for site in check_in_memory(module, sites, PlanError):
        if _seen_by_parameter(site):
            raise PlanError("E-offloaded-gradient-hidden", key=site.path, kind=site.kind)


def _seen_by_parameter(site: Site) -> bool:
    """Whether the parameter's own gradient is read: norms have many forms, and some modules call no layer."""
    return site.geometry is None and site.kind != "embedding"


class _Sum:
    """The sums of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        weight = cast("Tensor", getattr(site.module, site.weight))
        # The device of an offloaded weight is known only when its gradient comes.
        device = CPU if weight.is_meta else weight.device
        self.gradient = torch.zeros(site.shape, dtype=torch.float32, device=device)
        self.reached = False
        """Whether a gradient came."""
        self._came = False
        """Whether one came since the last call of `project`."""
        self.projected: list[Tensor] = []
        """G V for random V (K, DIRECTIONS), for each half of the batches."""
        product = site.geometry
        if product is not None and product.groups == 1:
            drawn = torch.Generator().manual_seed(zlib.crc32(site.path.encode()))
            self._directions = torch.randn(product.columns, DIRECTIONS, generator=drawn).to(device)
            self.projected = [self.gradient.new_zeros(site.shape[0], DIRECTIONS) for _ in range(2)]

    def add(self, x: Tensor, gradient: Tensor) -> None:
        if not self.reached:
            self._move(gradient.device)
        self.reached = self._came = True
        gradient, x = gradient.to(self.gradient.device), x.to(self.gradient.device)
        with torch.autocast(gradient.device.type, enabled=False):
            site, gradient = self.site, gradient.float()
            if site.kind == "embedding":
                # The padding word never gets a gradient.
                words, padding = x.reshape(-1), getattr(site.module, "padding_idx", None)
                rows = gradient.reshape(-1, gradient.shape[-1])
                rows = rows if padding is None else rows.masked_fill((words == padding)[:, None], 0)
                self.gradient.index_add_(0, words, rows)
                return
            product, x = site.geometry, x.detach().float()
            assert product is not None
            product.add_weight_gradient(self.gradient, product.padded(x), gradient)

    def add_whole(self, gradient: Tensor) -> None:
        """Add a gradient of the parameter that holds the weight."""
        self.reached = True
        self.gradient.add_(self.site.oriented(gradient).float())

    def _move(self, device: torch.device) -> None:
        """Move the sums to another device."""
        if device == self.gradient.device:
            return
        self.gradient = self.gradient.to(device)
        if self.projected:
            self._directions = self._directions.to(device)
            self.projected = [each.to(device) for each in self.projected]

    def project(self, *, half: int) -> None:
        """Add the gradients since the last call to the projections of one half of the batches."""
        if not self.projected or not self._came:
            return
        self._came = False
        # Project the sum rather than each input: there are usually more inputs than rows.
        with torch.autocast(self.gradient.device.type, enabled=False):
            projected = self.gradient.flatten(1) @ self._directions
        self.projected[half] += projected - self.projected[0] - self.projected[1]


def agreement(halves: Sequence[float]) -> float | None:
    """The cosine between the gradients of two halves, from `Sums.halves`; None where one of them is zero."""
    product, first, other = halves
    return product / math.sqrt(first * other) if first * other > 0 else None


def _halves(sums: Iterable[_Sum]) -> tuple[float, float, float]:
    """<A, B>, ||A||^2 and ||B||^2 as in `Sums`, from each site's projections of the two halves."""
    projected = [half.clone() for each in sums for half in each.projected]
    processes.add_up(projected)
    products = [
        torch.stack([(half * other).sum(), half.square().sum(), other.square().sum()])
        for half, other in zip(projected[::2], projected[1::2], strict=True)
    ]
    total = torch.zeros(3, dtype=torch.float64)
    for each in fetched(*products):
        total += each
    product, one_energy, other_energy = (total / DIRECTIONS).unbind()
    return float(product), float(one_energy), float(other_energy)


class _Tap(torch.autograd.Function):
    """Pass a layer's output through unchanged, and hand its input and the output's gradient to a sum.

    Autograd saves the input, so it is checked for changes in place and recomputed under gradient
    checkpointing. `token` requires a gradient, so the output requires one even if nothing before it does.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, token: Tensor, add: AddPass) -> Tensor:
        ctx.save_for_backward(x)
        ctx.add = add
        # A copy: the model may change it in place, which torch forbids for a view.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.add(ctx.saved_tensors[0], gradients[0])
        return gradients[0], None, None, None


@contextmanager
def _tapped(module: nn.Module, sums: Mapping[str, _Sum]) -> Generator[None]:
    """A context where the passes of a model add to the sums. Afterwards the model is as it was."""
    token = torch.zeros((), requires_grad=True)

    def tap(add: AddPass) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            x = input_of(args, named)
            # torch has no type for `apply`.
            return cast("Any", _Tap).apply(output, x, token, add)

        return hook

    with ExitStack() as stack:
        _frozen(module, stack)
        for each in sums.values():
            inner = each.site.module
            if _seen_by_parameter(each.site):
                weight = cast("nn.Parameter", getattr(inner, each.site.weight))
                (_in_passes if is_divided(weight) else _by_parameter)(weight, each, stack)
            else:
                handle = inner.register_forward_hook(tap(each.add), with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _frozen(module: nn.Module, stack: ExitStack) -> None:
    """Freeze all parameters and running statistics until the stack unwinds.

    The flags are restored by name, since hooks may have replaced the parameters.
    """
    for inner in module.modules():
        for name, parameter in inner.named_parameters(recurse=False):
            if parameter.requires_grad:
                stack.callback(_released, inner, name, parameter)
                # Parameters of a lazy module before its first pass have no other way.
                parameter.requires_grad = False
    stack.enter_context(evaluating(with_statistics(module)))


def _released(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Unfreeze a parameter, and the parameter that an offloading hook has put in its place."""
    parameter.requires_grad = True
    cast("nn.Parameter", getattr(module, name)).requires_grad = True


def _by_parameter(parameter: nn.Parameter, total: _Sum, stack: ExitStack) -> None:
    """Add the gradients of a parameter to a sum, wherever the model uses it."""
    stack.callback(setattr, parameter, "grad", parameter.grad)
    stack.callback(parameter.requires_grad_, False)
    parameter.grad = None
    parameter.requires_grad_(True)

    # torch has no type for `register_hook`.
    stack.callback(cast("Any", parameter).register_hook(total.add_whole).remove)


def _in_passes(_: nn.Parameter, total: _Sum, stack: ExitStack) -> None:
    """`_by_parameter` for a parameter that `fully_shard` has divided, which is whole only within passes.

    A leaf of the graph with its values takes its place there: `fully_shard` would divide the gradient.
    """
    site = total.site
    held = vars(site.module)

    def before(*_: object) -> None:
        # The sites of several experts share one leaf.
        leaf = held.get(site.weight)
        if leaf is None:
            leaf = held[site.weight] = own_of(site.module, site.weight).detach().requires_grad_()
        leaf.register_hook(total.add_whole)

    def after(*_: object) -> None:
        held.pop(site.weight, None)

    stack.callback(site.used_by.register_forward_pre_hook(before).remove)
    stack.callback(site.used_by.register_forward_hook(after, always_call=True, prepend=True).remove)


def scalar(value: object, error: type[LycorisError] = PlanError) -> Tensor:
    """A loss as a tensor without dimensions. Raises `error` unless it is one floating-point value."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        return value.reshape(())
    got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise error("E-loss-not-a-scalar", got=got)


def first_bad(module: nn.Module, run: Callable[[], object], states: list[Any] | None = None) -> str | None:
    """The path of the first module whose output is not finite in a pass; None where all are finite.

    `states` are the random states at the start of the pass.
    """
    paths: list[str] = []

    def watch(path: str) -> Callable[..., None]:
        def hook(inner: nn.Module, args: Any, output: Any) -> None:
            floats = isinstance(output, Tensor) and output.is_floating_point()
            if not paths and floats and not torch.isfinite(output.detach()).all():
                paths.append(path)

        return hook

    named: Iterable[tuple[str, nn.Module]] = cast("Any", module).named_modules()
    handles = [inner.register_forward_hook(watch(path)) for path, inner in named if path]
    try:
        if states is not None:
            chance.restore(states)
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return paths[0] if paths else None
