"""Layers that stand beside their weights: hooks on the modules of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..lycoris_ops import Bypass, BypassPlan, LycorisError, Met
from .host import HostReader, PatcherInjection, add_injection, layer_of
from .patch import memory_named

NAME = "lycoris_bypass"


class BypassInjection(PatcherInjection):
    """The plans of a model's layers, by module path, and what hangs on which model of them.

    Clones share it, and several models may carry it, as those of several cards do: each its own modules.
    """

    def __init__(self, plans: Mapping[str, BypassPlan]) -> None:
        self.plans = plans
        self._attached: WeakKeyDictionary[Any, dict[str, Bypass]] = WeakKeyDictionary()
        self._met: WeakKeyDictionary[Any, tuple[Any, dict[str, Met]]] = WeakKeyDictionary()
        """What the layers learned from the weights of a model, with the state of its patches then."""

    def inject(self, patcher: Any) -> None:
        """Hang the layers on the modules of the model that the host has loaded.

        Weights are read here, once, by the layers that depend on them; not again until the patches of
        the model change. Raises LycorisError, and leaves no hook, where a layer cannot be worked out.
        """
        if patcher.model in self._attached:
            return
        stamp, known = self._met.get(patcher.model, (None, {}))
        if stamp != patcher.patches_uuid:
            self._met[patcher.model] = (patcher.patches_uuid, known := {})
        attached = self._attached[patcher.model] = {}
        try:
            for path, plan in self.plans.items():
                module = layer_of(patcher, path)
                if module is None:
                    raise LycorisError("the loaded model has no such layer", key=path)
                hooks = Bypass(module, plan, reader=HostReader(), met=known.get(path), name=path)
                dtype, device = torch.float32, patcher.load_device
                purpose = "to read a weight that layers beside it depend on"
                hint = "Unload other models"
                with memory_named(purpose, path, plan.geometry.shape, dtype, device, hint):
                    known[path] = hooks.meet(dtype, device)
                attached[path] = hooks.attach()
        except BaseException:
            self.eject(patcher)
            raise

    def eject(self, patcher: Any) -> None:
        """Take them away and let go of what they hold on the device."""
        for hooks in self._attached.pop(patcher.model, {}).values():
            hooks.remove()


def plans_of(patcher: Any) -> Mapping[str, BypassPlan]:
    """What stands beside the layers of a patcher's model already, by module path."""
    ours = _ours(patcher)
    return {} if ours is None else ours.plans


def add_bypass(patcher: Any, plans: Mapping[str, BypassPlan]) -> None:
    """Put plans beside the layers of a patcher's model, after those that are there already."""
    before = _ours(patcher)
    joined = dict(plans_of(patcher))
    for path, plan in plans.items():
        joined[path] = joined[path].then(plan) if path in joined else plan
    others = [found for found in patcher.get_injections(NAME) or () if found is not before]
    add_injection(patcher, NAME, [*others, BypassInjection(joined)])


def _ours(patcher: Any) -> BypassInjection | None:
    """A pack that is loaded twice, under two names, has two of these classes."""
    injections = patcher.get_injections(NAME) or ()
    return next((found for found in injections if isinstance(found, BypassInjection)), None)
