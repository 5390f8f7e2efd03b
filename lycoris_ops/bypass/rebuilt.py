"""Apply a layer by putting a changed weight into its module for each pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..algorithms import Layer
from ..algorithms.base import Change, check_each
from ..errors import LycorisError, located
from ..maths.divided import divided_as, is_divided
from ..maths.recompute import transformed
from ..maths.tensors import compute_dtype, is_plain, largest_of, only_for_its_module, promoted
from .forwards.forward import in_own_dtypes
from .hook import BeforePass, Hiding, check_present, input_of, own_of, values_of


@dataclass(eq=False)
class Rebuilt(Hiding):
    """A module's pass with W + strength * delta(W) in place of W, and likewise for the bias.

    For modules that no `Geometry` describes, such as norms and embeddings, and for layers whose bypass would
    take more work than forming the weight. Gradients flow to the layer's tensors. Between passes the module
    has its own parameters: during a pass an attribute of the instance hides them.

    If a module has several of these, each adds its change of the module's own weight, and the first forms
    the sum.

    The sum is rounded to the dtype of the weight. In half precision this may lose a small change, which a
    bypass would still add to the output. Nothing computes in dtypes of one byte, so a module casts such a
    weight in each pass; the sum then has a dtype that holds the values of both the weight and the input.

    `follows` is for modules that move and cast their own weight to their input in each pass. The sum is then
    made on the input's device, in a dtype that holds the values of both the weight and the input.

    `always` hides the weight also in passes that do not change it. It is for a layer whose dropout breaks the
    graphs of torch.compile: the module's pass is then a graph of its own, which does not look again whether
    the weight is hidden.

    `weight` and `bias` are their names in the module. `caller` is the module in whose pass they are used, if
    it is another one. `transposed` is for a module that stores the weight as (I, O).
    """

    module: nn.Module
    layer: Layer
    strength: float
    _: KW_ONLY
    name: str | None = None
    weight: str = "weight"
    bias: str = "bias"
    caller: nn.Module | None = None
    transposed: bool = False
    follows: bool = False
    always: bool = False

    def __post_init__(self) -> None:
        self.before_pass: BeforePass | None = None
        """It may set `layer` and `strength` for the pass."""
        # Each pass has a layer of the same form. torch.compile cannot trace `not` of a tuple.
        self._leaves_bias = bool(self.layer.extent) and not self.layer.forms("bias")
        """Whether the layer changes the weight alone."""
        self._seen: tuple[Layer, tuple[int, ...]] | None = None
        """The layer whose change was found to be finite, and how often each of its tensors was changed."""
        self._hidden: list[dict[str, Any]] = []
        """For each running pass, the instance attributes that the changed ones replace; None for none."""
        self._handles: list[RemovableHandle] = []
        self._first: Rebuilt | None = None
        """The instance whose hooks add this change too."""
        self._others: list[Rebuilt] = []
        """The instances whose changes are added by this one's hooks."""

    def attach(self) -> Rebuilt:
        """Add the hooks, if they are not there. Raises LycorisError where a weight must stay packed."""
        if self._handles or self._first is not None:
            return self
        value = own_of(self.module, self.weight)
        if value is not None and only_for_its_module(value):
            raise LycorisError("E-packed-weight-not-rebuilt", weight=self.name, name=type(value).__name__)
        caller = self.caller or self.module
        hooks: Mapping[int, Any] = cast("Any", caller)._forward_pre_hooks
        there = [getattr(hook, "__self__", None) for hook in hooks.values()]
        there = [hook for hook in there if isinstance(hook, Rebuilt) and hook.module is self.module]
        self._first = next((hook for hook in there if hook.weight == self.weight), None)
        if self._first is not None:
            self._first._others.append(self)
        else:
            self._handles = [
                caller.register_forward_pre_hook(self._before, with_kwargs=True),
                # The last one to hide a weight is the first to show it again, also where a pass fails.
                caller.register_forward_hook(self._after, always_call=True, prepend=True),
            ]
        return self

    def remove(self) -> None:
        """Take the hooks away, if they are there."""
        for handle in self._handles:
            handle.remove()
        if self._first is not None:
            self._first._others.remove(self)
        others, self._first, self._handles, self._others = self._others, None, [], []
        for other in others:
            other._first = None
            other.attach()

    @property
    def serves_others(self) -> bool:
        return bool(self._others)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else input_of(args, kwargs)
        self._hidden.append({})
        changed: dict[str, Tensor] = {}
        for each in (self, *self._others):
            each._change(given, changed)
        own, parameters = vars(self.module), cast("Any", self.module)._parameters
        for name, value in changed.items():
            self._hidden[-1][name] = own.get(name)
            plain = type(parameters.get(name)) is nn.Parameter
            own[name] = value if plain else divided_as(value, own_of(self.module, name))
        for name in (self.weight, self.bias) if self.always else ():
            held = own_of(self.module, name)
            if not (name in changed or held is None or held.is_meta):
                self._hidden[-1][name] = own.get(name)
                own[name] = held

    def _change(self, x: Tensor, changed: dict[str, Tensor]) -> None:
        """Add the changes for a pass with this input to the changed weight and bias, by their names."""
        if self.before_pass is not None:
            self.before_pass(x)
        if self.strength == 0.0:
            return
        weight, bias = self._values(self.weight, x), None
        if self.strength == 1.0 and self._leaves_bias and not (changed or self.follows):
            # Less work than to compute the change and add it to the weight.
            changed[self.weight] = self._changed(weight)
            return
        if own_of(self.module, self.bias) is not None:
            bias = self._values(self.bias, x)
        change = self.change_of(weight, bias)
        # A host that finds the weight or the bias on another device would move both.
        if self.follows or change.delta is not None:
            self._add(changed, self.weight, weight, change.delta)
        if bias is not None and (self.follows or change.bias is not None):
            self._add(changed, self.bias, bias, change.bias)
        elif change.bias is not None and self._may_add_bias:
            self._add(changed, self.bias, torch.zeros_like(change.bias, dtype=weight.dtype), change.bias)

    def change_of(self, weight: Tensor, bias: Tensor | None = None) -> Change:
        """The layer's change of these values, laid out as the module stores them."""
        wide = weight.to(compute_dtype(weight.dtype))
        wide = wide.T if self.transposed else wide
        with located(weight=self.name), in_own_dtypes(wide.device):
            change = self.layer.unchecked(wide, bias)
            self._check((change.delta, wide), (change.bias, bias))
        if not self.transposed or change.delta is None:
            return change
        return replace(change, delta=change.delta.T)

    def _changed(self, weight: Tensor) -> Tensor:
        """The weight as changed at strength 1, laid out and stored as the module has it."""
        wide = weight.to(compute_dtype(weight.dtype))
        wide = wide.T if self.transposed else wide
        try:
            with in_own_dtypes(wide.device):
                self.layer.check_fit(wide.shape)
                changed = self.layer.changed(wide)
                if not changed.requires_grad:
                    self._check((changed, wide))
        except LycorisError as error:
            raise error.within(weight=self.name) from None
        return (changed.T if self.transposed else changed).to(weight.dtype)

    def _check(self, *changes: tuple[Tensor | None, Tensor | None]) -> None:
        """Raise LayerError where a change of a finite weight or bias overflows, in the first pass of a frozen
        layer with these values: to look at them waits for the device.

        Training checks the loss instead, and transforms of torch cannot read values.
        """
        tensors = self.layer.tensors().values()
        if transformed() or any(tensor.requires_grad for tensor in tensors):
            return
        # torch does not count the changes of a tensor of the inference mode.
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        if self._seen == (self.layer, versions):
            return
        deltas = [change for change, _ in changes if change is not None]
        if not all(map(math.isfinite, largest_of(deltas))):
            check_each(*changes)
        self._seen = self.layer, versions

    def _values(self, name: str, x: Tensor) -> Tensor:
        """The weight or bias in the dtype, and on the device, that the sum is to have; where it is divided
        among processes, the part of this one."""
        value = own_of(self.module, name)
        if value.is_meta or not is_plain(value):
            value = value.to_local() if is_divided(value) else values_of(self.module, name, self.name)
            check_present(value, x.device, self.name)
        if not self.follows and value.itemsize > 1:
            return value
        dtype = promoted(value.dtype, x.dtype) if x.is_floating_point() else value.dtype
        # Still one byte for an embedding, whose input is integers.
        dtype = compute_dtype(dtype) if dtype.itemsize == 1 else dtype
        return value.to(x.device if self.follows else value.device, dtype)

    @property
    def _may_add_bias(self) -> bool:
        """Whether the layer may add a bias: the module lacks one that it could have."""
        could = hasattr(self.module, self.bias) and own_of(self.module, self.bias) is None
        return could and not self.layer.table.bias_may_be_absent

    def _add(self, changed: dict[str, Tensor], name: str, value: Tensor, change: Tensor | None) -> None:
        total = changed.get(name, value)
        if change is not None:
            total = torch.add(total.to(change), change, alpha=self.strength).to(value.dtype)
        changed[name] = total

    def _after(self, module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        if not self._hidden:
            # A hook before ours has failed, so that nothing was hidden.
            return
        own = vars(self.module)
        for name, before in self._hidden.pop().items():
            if before is None:
                del own[name]
            else:
                own[name] = before
