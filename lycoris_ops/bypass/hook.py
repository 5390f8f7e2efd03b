"""Hooks that add a plan's changes to a module's output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..changes.place import Places, Where
from ..errors import LycorisError, located
from ..maths.divided import is_divided
from ..maths.recompute import transformed
from ..maths.tensors import compute_dtype, is_plain, unpacked
from . import compiled
from .bound import Acting, BoundPlan, Run
from .forwards.forward import in_own_dtypes, narrowing, outliving
from .geometry import geometry_of
from .plan import BypassPlan, Met
from .share import WeightShare
from .whole import WholePlan, alone_in

BeforePass = Callable[[Tensor], None]
"""A function that is called at the start of each pass, with the module's input."""


class Reader(Protocol):
    """How the values of a module's weight and bias are read, however they are stored."""

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        """The function that computes W x + b alone.

        It is the module's `forward`, without the changes that others have wrapped around it.
        """
        ...

    def weight(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight's values in `dtype` on `device`, as the module stores them."""
        ...

    def bias(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The bias's values in `dtype` on `device`; None where the module has no bias."""
        ...


class PlainReader:
    """Reads parameters that hold their values as they are, not packed or quantised."""

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        return module.forward

    def weight(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
        values = self._read(module, "weight", dtype, device)
        assert values is not None
        return values

    def bias(self, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        return self._read(module, "bias", dtype, device)

    def _read(self, module: nn.Module, name: str, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The values of the parameter, or None where the module has none of this name.

        A frozen parameter of this dtype is returned itself, so that a `WholePlan` knows it again.
        """
        # Without `cast`, which would be a call in each pass.
        known: Any = module
        held = known._parameters.get(name)
        if type(held) is nn.Parameter and held.dtype == dtype and held.device == device:
            return held.detach() if held.requires_grad else held
        if own_of(module, name) is None:
            return None
        values = values_of(module, name).detach()
        check_present(values, device)
        return values.to(device, dtype)


def values_of(module: nn.Module, name: str, path: str | None = None) -> Tensor:
    """The values of a module's own weight or bias, see `own_of`: the parameter itself, the tensor that
    accelerate's hooks load in its place within each pass, or a copy that `unpacked` makes of packed values.

    Raises LycorisError where only the module knows how it is packed.
    """
    value: Any = own_of(module, name)
    if value.is_meta:
        value = _offloaded(module).get(name, value)
    if is_plain(value):
        return value
    # The first pass of an int8 layer of bitsandbytes moves the scales of its weight into its `state`.
    values = unpacked(value, getattr(getattr(module, "state", None), "SCB", None))
    if values is not None:
        return values
    raise LycorisError(
        "E-packed-values-unreadable", weight=path, name=type(value).__name__, dtype=value.dtype
    )


def _offloaded(module: nn.Module) -> Mapping[str, Tensor]:
    """The weights that a hook of accelerate on this very module keeps elsewhere, by name."""
    hook = getattr(module, "_hf_hook", None)
    maps = (getattr(inner, "weights_map", None) for inner in getattr(hook, "hooks", (hook,)))
    return next((held for held in maps if held is not None), dict[str, Tensor]())


def own_of(module: nn.Module, name: str) -> Any:
    """A module's own weight or bias, even while `Rebuilt` hides it in a pass; None where it has none."""
    # Without `cast`, which would be a call in each pass.
    known: Any = module
    held: Mapping[str, Any] = known._parameters
    return held[name] if name in held else getattr(module, name, None)


_Pass = tuple[Acting, Tensor, Tensor]
"""What a pass keeps: what acts on it, the input, and what the module is fed in its place."""


class Hiding:
    """An owner of hooks that hide a module's weight behind a changed one in each pass."""

    @property
    def serves_others(self) -> bool:
        """Whether its hooks add the changes of others too."""
        return False


def check_present(value: Tensor, device: torch.device, path: str | None = None) -> None:
    """Raise LycorisError for a weight on the meta device, unless the pass runs there too."""
    if value.is_meta and device.type != "meta":
        raise LycorisError("E-values-not-in-memory", weight=path, device=str(device))


def shards(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on a module, which then has its whole weights only in its passes."""
    return all(callable(getattr(module, name, None)) for name in ("reshard", "unshard"))


class Bypass:
    """The layers of a plan on one module, by hooks: the module's weight and `forward` stay as they are.

    `attach` adds the hooks and `remove` takes them away. Raises LycorisError for a module whose geometry is
    not the plan's.

    The layers' tensors are moved to the device and dtype of the input, in the first pass with such an input.
    The weight is read only for layers that need its norm or its singular values, and once: when `meet` is
    called, or in the first pass. `met` holds what these layers computed from it, and can be handed to
    another `Bypass` of the same plan and weight. A plan of several stages reads the weight in each pass.

    Where the strengths of the plan differ over places or samples, `places` says where these are.

    Where a tensor of a layer requires gradients, they flow to it. Nothing that was computed from it is then
    kept from one pass to the next, because an optimiser may have changed it in between. `dropout` is for such
    plans alone.

    torch.compile does not look into passes that record no gradients. Then strengths, places and the plan may
    change without compiling again, see `compiled`.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: BypassPlan,
        *,
        reader: Reader | None = None,
        met: Met | None = None,
        name: str | None = None,
    ) -> None:
        own = geometry_of(module)
        if own != plan.geometry:
            raise LycorisError(
                "E-plan-for-another-module", key=name, got=str(own), expected=str(plan.geometry)
            )
        self.module = module
        self._plan: BypassPlan = plan
        with located(weight=name):
            self._acts = plan.acts
        self._in_parts = False
        """Whether its layers are known to suit no `WholePlan`."""
        self.met = met
        self.name = name
        self.before_pass: BeforePass | None = None
        """It may set `strengths` for the pass, and `plan` to one that acts in the same way."""
        self.instead: Hiding | None = None
        """What hides the weight in the passes in which this does nothing, and in no other."""
        self.dropout = 0.0
        """The share of the input's values that additive layers see as zero, at random."""
        self.places: Places | None = None
        """The places and pictures of the module's tokens, for strengths that differ between them.

        `before_pass` must set it, unless it is set already."""
        self.apart: tuple[Where, ...] = ()
        """See `BoundPlan`. To be set before the first pass."""
        self.strengths = plan.strengths
        """The strengths of each stage: of the layers of the weight, then of the layers of the bias.

        They may be changed at any time."""
        self._reader = reader or PlainReader()
        self._bound: BoundPlan | None = None
        self._whole_plan: WholePlan | None = None
        self._pass: _Pass | None = None
        """Held from the first hook of a pass to the second."""
        self._traced: tuple[Tensor, Tensor | None] | None = None
        """Likewise in a pass that torch.compile traces: the input, and what the module is fed for it."""
        self._handles: list[RemovableHandle] = []
        self._number = compiled.numbered(self)
        self._turns: bool | None = None
        """Whether the module may be fed another input. A graph depends on it: once true, it stays so."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy is another bypass, with its own number.
        vars(self).update(state)
        self._number = compiled.numbered(self)

    @property
    def plan(self) -> BypassPlan:
        return self._plan

    @plan.setter
    def plan(self, plan: BypassPlan) -> None:
        # A plan that acts in another way needs other hooks.
        acts = plan.acts
        # Not `self._plan.acts`: its tensors may be views of what an optimiser has changed since.
        again = bool(self._handles) and acts != self._acts
        if again:
            self.remove()
        bound, met = self._bound, self.met
        self._plan, self.met, self._bound, self._whole_plan = plan, None, None, None
        self._acts = acts
        self._in_parts = False
        if self._turns is False:
            if bound is not None and met is not None and not plan.anew:
                self.meet(compute_dtype(bound.made_for[0]), bound.made_for[1])
            self._turns = self._may_turn()
        if again:
            self.attach()

    def attach(self) -> Bypass:
        """Add the hooks, if they are not there.

        Raises LycorisError where the module has another bypass and one of the two depends on the weight:
        it would not see the change that the other makes. `BypassPlan.then` joins the two plans.
        """
        if self._handles:
            return self
        hooks: Mapping[int, Any] = cast("Any", self.module)._forward_hooks
        for hook in hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, Bypass) and not (other.plan.additive and self.plan.additive):
                raise LycorisError("E-bypass-already-on-module", key=self.name)
        if self._turns is None:
            self._turns = self._may_turn()
        compiled.see_hooks()
        add: Any = self.module.register_forward_hook
        # Run first: while a sharded module still has its weights, and before divided outputs are joined.
        first = shards(self.module) or is_divided(getattr(self.module, "weight", None))
        add = partial(add, with_kwargs=True, prepend=first)
        if self._acts == "around":
            self._handles = [
                self.module.register_forward_pre_hook(self._before, with_kwargs=True),
                # Called also where the pass fails, to let go of its input.
                add(self._after, always_call=True),
            ]
            if not shards(self.module):
                compiled.keep_id(self.module, self._handles[1])
        else:
            # Nothing changes the input, so one hook after the pass is enough.
            self._handles = [add(self._behind)]
        return self

    def meet(self, dtype: torch.dtype, device: torch.device) -> Met:
        """Read what the layers need to know of the weight and bias, unless `met` has it already.

        `dtype` is float32 or float64. Raises LycorisError, with the module's name, for a layer whose change
        cannot be computed.
        """
        if self.met is not None:
            return self.met
        with located(weight=self.name), outliving(), in_own_dtypes(device):
            met = self.plan.meet(
                dtype,
                device,
                lambda: self._weight(dtype, device),
                lambda: self._bias(dtype, device),
                self.strengths,
            )
        if not self.plan.anew:
            self.met = met
        return met

    def _weight(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight as (O, I, *kernel)."""
        stored = self._reader.weight(self.module, dtype, device)
        return stored.T if self._plan.geometry.transposed else stored

    def _bias(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        return self._reader.bias(self.module, dtype, device)

    def remove(self) -> None:
        """Take the hooks away, if they are there, and let go of the tensors on the input's device."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._bound, self._whole_plan, self._pass = [], None, None, None

    def _behind(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Any:
        """Change the module's own output, by a plan that leaves its input as it is."""
        x = args[0] if args else input_of(args, kwargs)
        run = partial(self._run, module, args, kwargs)
        if type(y) is not Tensor and is_divided(y):
            return WeightShare.of(cast("Any", module).weight).beside(x, y, partial(self._behind_part, run, x))
        if compiled.traced() and self._stands_apart(args, kwargs, x, y):
            return self._compiled(x, None, y)
        if y.is_nested:
            return _like(self._behind_part(run, x, _flat(x), _flat(y)), y)
        return self._behind_part(run, x, x, y)

    def _behind_part(self, run: Run, own: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The output y with the plan's changes for x, which may be a part of the module's own input."""
        acting = self._bind(x, own)
        if acting is None:
            return y
        if acting.operates:
            return self._finished((acting, x, x), y, run)
        return acting.finish(x, x, y, run)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else input_of(args, kwargs)
        if compiled.traced() and self._stands_apart(args, kwargs, x):
            fed = compiled.fed(x, self._number, narrowing(x.device)) if self._turns else None
            self._traced = (x, fed)
            return None if fed is None else _with_input(args, kwargs, fed)
        self._traced = self._pass = None
        flat = _flat(x)
        acting = self._bind(flat, flat)
        if acting is None:
            return None
        fed = acting.fed(flat)
        self._pass = (acting, flat, fed)
        # Either no layer changes the input, or what others add in `forward` must see it unchanged.
        if fed is flat or self._stands_beside_another():
            return None
        return _with_input(args, kwargs, _like(fed, x))

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor | None
    ) -> Any:
        traced, self._traced = self._traced, None
        held, self._pass = self._pass, None
        if y is None:
            return None
        if traced is not None:
            return self._compiled(*traced, y)
        if held is None:
            return None
        return _like(self._finished(held, _flat(y), partial(self._run, module, args, kwargs)), y)

    def _finished(self, held: _Pass, y: Tensor, run: Run) -> Tensor:
        """The module's output y with the plan's changes."""
        acting, x, fed = held
        if self.apart or not (acting.operates and self._stands_beside_another()):
            return acting.finish(x, fed, y, run)
        # y holds what others add: only the difference that the plan makes to W x + b is added to it.
        product = run(fed)
        # `finish` may write over `product`.
        base = product.clone() if fed is x else run(x)
        return y + (acting.finish(x, fed, product, run) - base)

    def _run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
        """W x + b, with the further arguments of a pass."""
        rest: Mapping[str, Any] = kwargs if args else {}
        with _shown(module):
            # `forward` and not a call of the module, which would run these hooks again.
            return self._reader.forward(module)(x, *args[1:], **rest)

    def _stands_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any], *tensors: Tensor) -> bool:
        """Whether torch.compile is tracing a pass that it must not look into."""
        if not compiled.stands_apart(*tensors) or len(args) + len(kwargs) != 1:
            return False
        return not (torch.is_grad_enabled() and self._plan.learns)

    def _compiled(self, x: Tensor, fed: Tensor | None, y: Tensor) -> Tensor:
        """The output of a pass that torch.compile does not look into."""
        dtype = narrowing(x.device)
        if self.apart:
            return compiled.apart(x, fed, y, self._number, dtype, 1 + len(self.apart))
        compiled.change(x, fed, y, self._number, dtype)
        return y

    def fed(self, x: Tensor) -> Tensor:
        """What the module is fed in place of x, in a pass that torch.compile does not look into."""
        acting = self._bind(x, x)
        return x if acting is None or self._stands_beside_another() else acting.fed(x)

    def changed(self, x: Tensor, fed: Tensor | None, y: Tensor) -> Tensor:
        """The output in place of y; y may be written over. Without `fed` the module was fed x."""
        # With `fed` the pass has begun already.
        acting = self._bind(x, x if fed is None else None)
        if acting is None:
            return y
        if fed is None or self._stands_beside_another():
            fed = acting.fed(x)
        return self._finished((acting, x, fed), y, partial(self._run, self.module, (x,), {}))

    def _may_turn(self) -> bool:
        """Whether the module may be fed another input than its own."""
        met = self.met
        return self._acts == "around" and (met is None or any(base.inputs is not None for base in met.bases))

    def _stands_beside_another(self) -> bool:
        """Whether others add to W x + b, in `forward` or by a changed weight.

        Operators on x or y would act on what the others add as well.
        """
        module: Any = self.module
        hooks: Mapping[int, Any] = module._forward_hooks
        for hook in hooks.values() if len(hooks) > 1 else ():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Hiding) and (owner is not self.instead or owner.serves_others):
                return True
        # A `PlainReader` takes `forward` as it is.
        return not (type(self._reader) is PlainReader or self._reader.forward(module) == module.forward)

    def _bind(self, x: Tensor, own: Tensor | None = None) -> Acting | None:
        """What acts on a pass with this input; a `BoundPlan` is kept for later passes that it serves as well.

        None where all strengths are 0, to keep every bit of the output. A pass begins with `own`, the
        module's input, of which x may be a part.
        """
        if own is not None and self.before_pass is not None:
            acts = self._acts
            self.before_pass(own)
            if self._acts != acts:
                raise LycorisError(
                    "E-bypass-plan-needs-other-hooks", key=self.name, acts=self._acts, hooks=acts
                )
        # With `apart` the output has another shape, whatever the strengths are.
        if not (self.apart or any(map(any, self.strengths))):
            return None
        bound = self._bound
        if bound is not None and bound.made_for != (x.dtype, x.device, self.dropout):
            bound = None
        # One that follows the layers' tensors serves all passes but those that torch.compile traces.
        if bound is None or not bound.follows or torch.compiler.is_compiling():
            anew = self._whole_plan is not None or self._plan.anew
            if anew and (whole := self._whole_pass(x)) is not None:
                return whole
            if bound is None or anew:
                bound = self._bound_anew(x, anew)
        bound.places = self.places
        # A formed change is one layer, and has the strengths already.
        bound.strengths = self.strengths[0] if len(self.strengths) == 1 else (1.0,)
        return bound

    def _bound_anew(self, x: Tensor, anew: bool) -> BoundPlan:
        """The plan for the input's dtype and device, kept unless other passes need another."""
        if anew:
            self.met = None
        met = self.meet(compute_dtype(x.dtype), x.device)
        with outliving():
            bound = BoundPlan(self.plan, met, x, self.dropout, apart=self.apart)
        self._bound = None if anew and not bound.follows else bound
        return bound

    def _whole_pass(self, x: Tensor) -> Acting | None:
        """The pass of a plan of one layer that learns, at strength 1; None for other plans."""
        # Transforms of torch need plain operations.
        if self._in_parts or self.apart or transformed():
            return None
        for strengths in self.strengths:
            if strengths.count(1.0) != len(strengths):
                return None
        whole, begun = self._whole_plan, None
        try:
            if whole is None or whole.made_for != (x.dtype, x.device, self.dropout):
                layer = alone_in(self.plan)
                whole = None if layer is None else WholePlan(self.plan, layer, x, self.dropout)
            if whole is not None:
                begun = whole.begun(x, self._weight, self._bias)
        except LycorisError as error:
            part = self.plan.stages[0].layers[0].part
            raise error.within(weight=self.name, file=part.file, key=part.key) from None
        self._whole_plan = None if begun is None else whole
        self._in_parts = begun is None
        return begun


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a pass, which may be given by keyword: the first tensor."""
    return args[0] if args else kwargs[keyword_of(kwargs)]


@contextmanager
def _shown(module: nn.Module) -> Generator[None]:
    """A context in which a module has its own weight and bias, see `Hiding`."""
    own, held = vars(module), cast("Any", module)._parameters
    hidden = {name: own.pop(name) for name in ("weight", "bias") if name in own and name in held}
    try:
        yield
    finally:
        own.update(hidden)


def _with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Any:
    """The arguments of a pass with another input."""
    if args:
        return (x, *args[1:]), kwargs
    return args, {**kwargs, keyword_of(kwargs): x}


def keyword_of(kwargs: Mapping[str, Any]) -> str:
    """The keyword that gives the input of a pass."""
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor))


def _flat(values: Tensor) -> Tensor:
    """The vectors (tokens, channels) of a nested tensor in one piece; any other tensor as it is.

    torch's own encoder gives its layers such a tensor for padded sequences, where no gradient is asked for.
    """
    return torch.cat(values.unbind()) if values.is_nested else values


def _like(values: Tensor, like: Tensor) -> Tensor:
    """Undo `_flat` where `like` is nested; else the values as they are."""
    if not like.is_nested:
        return values
    parts = torch.split(values, [len(part) for part in like.unbind()])
    # torch has no type hints for its arguments.
    return cast("Any", torch.nested).as_nested_tensor(list(parts), layout=like.layout)
