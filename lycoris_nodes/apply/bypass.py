"""Bypass in the host: hooks on the modules of a loaded model. The weights stay as they are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ...lycoris_ops import Bypass, BypassPlan, LycorisError, Met, Moment
from ..host.passes import PatcherInjection, add_injection, forget_passes, wrap_passes
from ..host.weights import HostReader, layer_of
from .patch import memory_named

NAME = "lycoris_bypass"
"""The key under which the host keeps this injection on a patcher."""
PERCENTS = range(1 << 24)
"""Steps of the search for the share of a diffusion; the result is exact to 6e-8."""


class BypassInjection(PatcherInjection):
    """The bypass plans of a model's layers, by module path, and the hooks that are attached for them.

    All clones of a patcher share one injection. One injection may also serve several models, such as the
    copies of a model on several GPUs. Hooks are therefore kept for each model apart.
    """

    def __init__(self, plans: Mapping[str, BypassPlan]) -> None:
        self.plans = plans
        self.timed = [path for path, plan in plans.items() if plan.timed]
        """The modules with a strength that follows timings."""
        self._attached: WeakKeyDictionary[Any, dict[str, Bypass]] = WeakKeyDictionary()
        """Model to its attached hooks, by module path."""
        self._met: WeakKeyDictionary[Any, tuple[Any, dict[str, Met | None]]] = WeakKeyDictionary()
        """Model to (`patches_uuid`, what each layer learned from its weight under these patches)."""
        self._sigmas: tuple[Any, list[float]] = (None, [])
        """The sigmas of the steps of a run, as the host has them and as numbers."""

    def inject(self, patcher: Any) -> None:
        """Attach the hooks to the modules of the model that the host has loaded.

        Layers whose change depends on the weight read it here. What they learn from it is kept until the
        patches of the model change, so loading the model again reads no weight. Plans of several stages read
        it in each pass. They read it here too, to find faults early.

        Raises LycorisError, and leaves no hook attached, if the model lacks a layer or a layer cannot be
        computed; PatchMemoryError if there is no memory to read a weight.
        """
        # Another clone has attached them already: clones share the model and this injection.
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
                    raise LycorisError("the loaded model has no layer of this name to bypass", key=path)
                hooks = Bypass(module, plan, reader=HostReader(), met=known.get(path), name=path)
                dtype, device = torch.float32, patcher.load_device
                purpose = "to read a weight that bypassed layers depend on"
                hint = "Unload other models"
                with memory_named(purpose, path, plan.geometry.shape, dtype, device, hint):
                    hooks.meet(dtype, device)
                known[path] = hooks.met
                attached[path] = hooks.attach()
        except BaseException:
            # Interrupts too: a hook that stayed would change every later run of the model.
            self.eject(patcher)
            raise

    def follow(self, run: Any, x: Any, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Set the strengths that follow timings for the sigma of a pass, then run the pass.

        The host calls this in place of the model's `apply_model`, which it gives as `run`.
        """
        model = run.class_obj
        attached = self._attached.get(model, {})
        if attached:
            # In the order of `apply_model`: c_concat, c_crossattn, control, transformer_options.
            options = kwargs.get("transformer_options") or (args[3] if len(args) > 3 else {})
            now = moment_of(model.model_sampling, float(sigma.flatten()[0]), self._steps(options))
            strengths = {path: attached[path].plan.strengths_at(now) for path in self.timed}
            if any(attached[path].strengths != own for path, own in strengths.items()):
                forget_passes(model)
            for path, own in strengths.items():
                attached[path].strengths = own
        return run(x, sigma, *args, **kwargs)

    def _steps(self, options: Mapping[str, Any]) -> list[float]:
        """The sigmas of this run's steps. They are read once a run, because reading waits for the GPU."""
        found = options.get("sample_sigmas")
        if found is None:
            return []
        if self._sigmas[0] is not found:
            self._sigmas = (found, found.tolist())
        return self._sigmas[1]

    def eject(self, patcher: Any) -> None:
        """Remove the hooks and release the tensors that they hold on the device."""
        for hooks in self._attached.pop(patcher.model, {}).values():
            hooks.remove()


def plans_of(patcher: Any) -> Mapping[str, BypassPlan]:
    """The bypass plans that a patcher carries already, by module path."""
    ours = _ours(patcher)
    return {} if ours is None else ours.plans


def add_bypass(patcher: Any, plans: Mapping[str, BypassPlan]) -> None:
    """Add plans, by module path, to a patcher.

    They act after the plans that it already has for the same modules.
    """
    before = _ours(patcher)
    joined = dict(plans_of(patcher))
    for path, plan in plans.items():
        joined[path] = joined[path].then(plan) if path in joined else plan
    # Setting the key replaces all of its injections, those of a second copy of the pack too.
    others = [found for found in patcher.get_injections(NAME) or () if found is not before]
    ours = BypassInjection(joined)
    add_injection(patcher, NAME, [*others, ours])
    if ours.timed:
        wrap_passes(patcher, NAME, ours.follow, in_place_of=None if before is None else before.follow)


def _ours(patcher: Any) -> BypassInjection | None:
    """This pack's injection on a patcher, None where there is none.

    A second copy of the pack, loaded under another name, has a BypassInjection class of its own. Its
    injections are not touched.
    """
    injections = patcher.get_injections(NAME) or ()
    return next((found for found in injections if isinstance(found, BypassInjection)), None)


def moment_of(sampling: Any, sigma: float, sigmas: Sequence[float]) -> Moment:
    """The moment at a sigma, by the host's `model_sampling` and the sigmas of the steps of this run.

    Without sigmas, such as for a model that is called outside a run, both clocks count the diffusion.
    """

    def risen(place: int) -> float:
        return -float(sampling.percent_to_sigma(place / len(PERCENTS)))

    # Find the least percent whose sigma is not above this one. In every sampling the sigmas fall.
    diffusion = bisect_left(PERCENTS, -sigma, key=risen) / len(PERCENTS)
    return Moment(diffusion, _steps(sigma, sigmas) if len(sigmas) > 1 else diffusion)


def _steps(sigma: float, sigmas: Sequence[float]) -> float:
    """The share of the steps that the run has done; between two steps it follows the sigma."""
    count = len(sigmas) - 1
    for step, (now, following) in enumerate(pairwise(sigmas)):
        if sigma >= now:
            return step / count
        if sigma > following:
            return (step + (now - sigma) / (now - following)) / count
    return 1.0
