"""Injections into the passes of a model, and wrappers around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_management
from comfy.conds import CONDList
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy.patcher_extension import PatcherInjection as PatcherInjection
from comfy.samplers import get_area_and_mult
from torch import Tensor


def add_injection(patcher: Any, name: str, injections: list[PatcherInjection]) -> None:
    """Set the injections that a patcher has under a name.

    The host calls `inject` when it has loaded the model and `eject` before it unloads it. Every clone is
    marked as not injected. Otherwise a clone of a loaded model would be marked as injected, and when the
    clone is deleted, the host would eject hooks from the model that is in use.
    """
    patcher.set_injections(name, injections)
    patcher.is_injected = False
    if not patcher.get_callbacks(CallbacksMP.ON_CLONE, name):
        patcher.add_callback_with_key(CallbacksMP.ON_CLONE, name, _not_injected)


def _not_injected(patcher: Any, clone: Any) -> None:
    clone.is_injected = False


WRAPPED = {
    "pass": WrappersMP.APPLY_MODEL,
    "sampling": WrappersMP.OUTER_SAMPLE,
    "preparation": WrappersMP.PREPARE_SAMPLING,
    "conditionings": WrappersMP.CALC_COND_BATCH,
}
"""What can be wrapped, with the host's name for it."""


def wrap(
    patcher: Any, what: str, name: str, wrapper: Callable[..., Any], *, in_place_of: Callable[..., Any] | None
) -> None:
    """Have the host call a wrapper in place of something that it does with a patcher.

    The wrapper gets what the host would call, and its arguments. `what` is one of `WRAPPED`: a `pass` of the
    model, a whole `sampling`, the `preparation` of a sampling (which loads the models), or all passes for
    some `conditionings`. `name` is the key of the wrapper. A wrapper equal to `in_place_of` under the same
    key is removed.
    """
    kind = WRAPPED[what]
    kept = [earlier for earlier in patcher.get_wrappers(kind, name) if earlier != in_place_of]
    patcher.remove_wrappers_with_key(kind, name)
    for each in (*kept, wrapper):
        patcher.add_wrapper_with_key(kind, name, each)


def area_of(conditioning: Mapping[str, Any], x: Tensor, sigma: Tensor) -> list[range] | None:
    """The range of x along each axis that a pass for a conditioning sees; None for all of x."""
    area = conditioning.get("area")
    if area is None:
        return None
    seen: Any = get_area_and_mult({"area": area, "model_conds": {}, "uuid": None}, x, sigma)
    extents, axes = seen.area, x.ndim - 2
    return [range(start, start + count) for count, start in zip(extents[:axes], extents[axes:], strict=True)]


def pictures_that_fit(model: Any, x: Tensor, chunks: int, conditioning: Mapping[str, Any]) -> int:
    """How many pictures fit into free memory in one pass of a model, by the host's own estimate; at least 1.

    Each picture has `chunks` samples, one for each text. `conditioning` has the other inputs of the pass.
    """
    held: dict[str, list[list[int]]] = {}
    for name, value in conditioning.items():
        if isinstance(value, Tensor):
            held[name] = [[chunks, *value.shape[1:]]]
        elif (
            isinstance(value, list)
            and value
            and all(isinstance(each, Tensor) and each.ndim > 1 for each in value)
        ):
            # Count reference latents as the host does, for one sample.
            held[name] = [[chunks, *CONDList([each[:1] for each in value]).size()[1:]]]
    # The host's own margin.
    needed = 1.5 * model.memory_required([chunks, *x.shape[1:]], cond_shapes=held)
    return max(1, int(model.current_patcher.get_free_memory(x.device) / max(needed, 1.0)))


def pictures_beside(patcher: Any, shape: Sequence[int]) -> int:
    """How many pictures of a latent fit into the device's memory beside the whole model; at least 1.

    A pass has two samples of each, as with classifier-free guidance.
    """
    total = comfy.model_management.get_total_memory(patcher.load_device)
    room = total - patcher.model_size() - comfy.model_management.minimum_inference_memory()
    needed = 1.5 * patcher.model.memory_required([2, *shape[1:]])
    return min(shape[0], max(1, int(room / max(needed, 1.0))))


def forget_passes(model: Any) -> None:
    """Clear what a model caches from one pass for the next.

    HiDream-O1 keeps the keys and values of a text, and does not notice that its weights have changed.
    """
    forget = getattr(getattr(model, "diffusion_model", None), "clear_kv_cache", None)
    if forget:
        forget()


def forget_between_samplings(patcher: Any) -> None:
    """Have the model of a patcher forget its passes before and after each sampling with this patcher."""
    if not hasattr(getattr(patcher.model, "diffusion_model", None), "clear_kv_cache"):
        return
    for time in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP):
        if not patcher.get_callbacks(time, "lycoris"):
            patcher.add_callback_with_key(time, "lycoris", lambda patcher: forget_passes(patcher.model))
