"""Bypass in the host: hooks on the modules of a loaded model. The weights stay as they are."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils._pytree import tree_map_only

from ...lycoris_ops import (
    Blend,
    Bypass,
    BypassPlan,
    Crop,
    LycorisError,
    Met,
    Moment,
    Places,
    Shape,
    Tokens,
    located,
    phrase,
)
from ..host.one_noise import like_the_first, with_one_noise
from ..host.passes import (
    PatcherInjection,
    add_injection,
    area_of,
    forget_passes,
    pictures_beside,
    pictures_that_fit,
    wrap,
)
from ..host.weights import HostReader, below_hooks, layer_of
from .left_whole import LeftWhole
from .patch import memory_named
from .places import Passing, blended_attention, crop_of, picture_shape
from .turns import CalledInTurn

IN_TURN: Tokens = "for places, in turn"
APART: tuple[Tokens, ...] = ("for places", IN_TURN)
"""Tokens that have no place themselves, but whose outputs are used place by place."""
NAME = "lycoris_bypass"
"""The key under which the host keeps this injection on a patcher."""
PERCENTS = range(1 << 24)
"""The grid on which the percent of a sigma is searched: exact to 6e-8."""


@dataclass(eq=False)
class OfModel:
    """What belongs to one model; all but `patches` and `met` only while it is loaded."""

    patches: Any
    """The host's `patches_uuid` of the patches under which weights were read."""
    met: dict[str, Met | None]
    """What each layer read from its weight, by module path."""
    hooks: dict[str, Bypass] = field(default_factory=dict[str, Bypass])
    in_turn: list[CalledInTurn] = field(default_factory=list[CalledInTurn])
    """The hooks on cross-attentions; `hooks` has the hooks on their layers."""
    blend: Blend | None = None
    """For the cross-attentions that are not called in turn."""
    keys: str = ""
    """The layer that last made keys or values for a cross-attention."""
    passing: Passing | None = None
    """The current pass."""


@dataclass(eq=False)
class OfSampling:
    """What the passes of one sampling have in common."""

    size: Shape | None = None
    """Of the latent."""
    areas: Mapping[Any, Sequence[range]] = field(default_factory=dict[Any, Sequence[range]])
    """The part of the latent that each conditioning is for, by the host's id of the conditioning."""
    retained: Sequence[int] = ()
    """The frames that every context window contains."""
    sigmas: tuple[Any, list[float]] = (None, [])
    """The sigmas of the steps: the host's tensor, and its values as a list."""


class BypassInjection(PatcherInjection):
    """The bypass plans of a model's layers, by module path, and the hooks that are attached for them.

    All clones of a patcher share one injection. It may also serve several models, such as the copies of a
    model on several GPUs, so it keeps the hooks of each model apart.
    """

    def __init__(
        self,
        plans: Mapping[str, BypassPlan],
        tokens: Mapping[str, Tokens],
        left_whole: Sequence[LeftWhole],
    ) -> None:
        self.plans = plans
        self.tokens = tokens
        """For each module whose strength differs over places or pictures: the kind of its tokens."""
        self.left_whole = tuple(left_whole)
        """For each Apply node, the report of its layers that have unexpected tokens."""
        placed = [(path, slot.where) for path in tokens for slot in plans[path].slots() if slot.where]
        used = [where for path, where in placed if where.mask and tokens[path] in APART]
        self.apart = tuple(dict.fromkeys(used))
        """The places that have their own keys and values in cross-attentions."""
        self.masked = {path for path, where in placed if where.mask}
        """The modules with a mask."""
        self.differ = any(where.factors is not None for _, where in placed)
        """Whether a strength differs between pictures."""
        self.timed = [path for path, plan in plans.items() if plan.timed]
        """The modules with a strength that follows timings."""
        self._models: WeakKeyDictionary[Any, OfModel] = WeakKeyDictionary()
        self._sampling = OfSampling()

    @property
    def wrappers(self) -> Mapping[str, Callable[..., Any]]:
        """What the host calls in place of its own functions, see `passes.wrap`."""
        wrappers: dict[str, Callable[..., Any]] = {"pass": self.follow} if self.timed or self.tokens else {}
        if self.tokens:
            wrappers |= {"sampling": self.around_sampling, "conditionings": self.note_areas}
        return {**wrappers, **({"preparation": self.prepare} if self.differ else {})}

    def inject(self, patcher: Any) -> None:
        """Attach the hooks to the modules of the model that the host has loaded.

        Layers whose change depends on the weight read it here, and keep the result until the patches of the
        model change, so loading the model again reads no weight. Plans of several stages read the weight in
        each pass, and here too, to find faults early. The same holds for a layer while the host's LoRA hooks
        act on it.

        Raises LycorisError, and leaves no hook attached, if the model lacks a layer or a layer cannot be
        computed; PatchMemoryError if there is no memory to read a weight.
        """
        if (own := self._models.get(patcher.model)) and own.hooks:
            # By another clone: clones share the model and this injection.
            return
        if own is None or own.patches != patcher.patches_uuid:
            own = self._models[patcher.model] = OfModel(patcher.patches_uuid, {})
        try:
            for path, plan in self.plans.items():
                module = layer_of(patcher, path)
                if module is None:
                    raise LycorisError("E-bypass-layer-absent", key=path)
                below = below_hooks(patcher, path)
                beside = bool(below) and not (plan.additive or plan.placed)
                if beside:
                    # A merged change is made from the weight below the host's LoRA hooks, and does not scale
                    # or turn what they add. So form it, and only add it to the output.
                    plan = BypassPlan.build(plan.geometry, ()).then(plan)
                met = None if beside else own.met.get(path)
                hooks = Bypass(module, plan, reader=HostReader(below), met=met, name=path)
                dtype, device = torch.float32, patcher.load_device
                purpose = "to read a weight that bypassed layers depend on"
                hint = phrase("R-unload-other-models")
                with memory_named(purpose, path, plan.geometry.shape, dtype, device, hint):
                    hooks.meet(dtype, device)
                if not beside:
                    own.met[path] = hooks.met
                if path in self.tokens:
                    hooks.before_pass = partial(self._locate, own, hooks, path)
                    hooks.apart = self.apart if self.tokens[path] in APART else ()
                own.hooks[path] = hooks.attach()
            # After the hooks on the layers, because these hooks take the layers' outputs.
            turns = [path for path, kind in self.tokens.items() if self.apart and kind == IN_TURN]
            for path, layers in groupby(sorted(turns, key=_attention), _attention):
                called = [layer_of(patcher, layer) for layer in layers]
                blend = Blend(self.apart, partial(self._places, own, path, "places"))
                own.in_turn.append(CalledInTurn(layer_of(patcher, path), called, blend))
            if self.apart:
                network = patcher.model.diffusion_model
                kind: Tokens = "level" if hasattr(network, "input_blocks") else "places"
                own.blend = Blend(self.apart, partial(self._places, own, None, kind))
        except BaseException:
            # Interrupts too: a hook that stayed would change every later run of the model.
            self.eject(patcher)
            raise

    def around_sampling(self, run: Any, noise: Any, *args: Any, **kwargs: Any) -> Any:
        """Note the size of the latent, then run the sampling.

        Pictures whose strengths differ get the same noise, also in the steps of samplers that add some. The
        host calls this in place of the `outer_sample` of a guider, which it gives as `run`.
        """
        before, self._sampling = self._sampling, OfSampling(picture_shape(noise, kwargs)[2:])
        for each in self.left_whole:
            each.begin()
        if self.differ:
            noise, args = like_the_first(noise), tuple(map(with_one_noise, args))
            kwargs = {name: with_one_noise(value) for name, value in kwargs.items()}
        try:
            return run(noise, *args, **kwargs)
        finally:
            self._sampling = before

    def note_areas(
        self, run: Any, model: Any, conds: Any, x: Any, sigma: Any, options: Mapping[str, Any]
    ) -> Any:
        """Note what part of the latent each conditioning is for, then run the passes.

        The host calls this in place of its `calc_cond_batch`, which it gives as `run`.
        """
        every = [conditioning for several in conds for conditioning in several or ()]
        sampling = self._sampling
        areas = ((conditioning["uuid"], area_of(conditioning, x, sigma)) for conditioning in every)
        sampling.areas = {number: area for number, area in areas if area is not None}
        sampling.retained = getattr(options.get("context_handler"), "latent_retain_index_list", ())
        try:
            return run(model, conds, x, sigma, options)
        finally:
            sampling.areas, sampling.retained = {}, ()

    def follow(self, run: Any, x: Any, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Set the strengths that change from pass to pass, then run the pass.

        The host calls this in place of the model's `apply_model`, which it gives as `run`.
        """
        model = run.class_obj
        of_model = self._models.get(model)
        # In the order of `apply_model`.
        names = ("c_concat", "c_crossattn", "control", "transformer_options")[: len(args)]
        arguments = {**dict(zip(names, args, strict=True)), **kwargs}
        options = arguments.get("transformer_options") or {}
        hooks = of_model.hooks if of_model else {}
        if hooks and self.timed:
            self._set_strengths(model, hooks, float(sigma.flatten()[0]), options)
        if of_model is None or not (hooks and self.tokens):
            return run(x, sigma, *args, **kwargs)
        chunks = len(options.get("cond_or_uncond") or ()) or 1
        count = max(1, len(x) // chunks)
        crops = self._crops(picture_shape(x, arguments)[2:], options, chunks)
        # A grid may have more pictures than fit in memory, and the host splits a pass only by conditionings.
        most = pictures_that_fit(model, x, chunks, arguments) if self.differ else count
        outputs: list[torch.Tensor] = []
        for start in range(0, count, most):
            pictures = range(start, min(count, start + most))
            samples = [chunk * count + number for chunk in range(chunks) for number in pictures]
            full = len(samples) == len(x)
            own = {
                name: value if full or name == "transformer_options" else of_samples(value, samples, len(x))
                for name, value in arguments.items()
            }
            some, at = (x, sigma) if full else of_samples((x, sigma), samples, len(x))
            apart = tuple(crop for crop in crops for _ in pictures)
            of_model.passing = Passing.about(model, some, own, [*pictures] * chunks, count, apart)
            own["transformer_options"] = self._blended(of_model, options)
            try:
                # By position, as they came: others may wrap the pass too.
                beside = [own.pop(name) for name in names]
                outputs += [run(some, at, *beside, **own)]
            finally:
                of_model.passing = None
                for each in self.left_whole:
                    each.tell()
        if len(outputs) == 1:
            return outputs[0]
        chunks_apart = [output.unflatten(0, (chunks, -1)) for output in outputs]
        return torch.cat(chunks_apart, 1).flatten(0, 1)

    def prepare(self, run: Any, patcher: Any, shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the models for a sampling, with room for only as many pictures as fit beside the model.

        The host calls this in place of its `prepare_sampling`, which it gives as `run`. The host itself
        would leave room for the whole batch, and so load less of the model.
        """
        return run(patcher, [pictures_beside(patcher, shape), *shape[1:]], *args, **kwargs)

    def _crops(self, size: Shape, options: Mapping[str, Any], chunks: int) -> tuple[Crop, ...]:
        """Each chunk's part of the latent in a pass; () if every chunk has all of it."""
        whole, window = self._sampling.size, options.get("context_window")
        areas = [self._sampling.areas.get(number) for number in options.get("uuids") or ()] or [None] * chunks
        if whole is None or (whole == size and window is None and areas == [None] * chunks):
            return ()
        crops = tuple(crop_of(whole, window, self._sampling.retained, area) for area in areas)
        if any(tuple(map(len, crop.kept)) != size for crop in crops):
            raise LycorisError("E-mask-in-parts-of-picture", size=list(size), whole=list(whole))
        return crops

    def _blended(self, of_model: OfModel, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options of a pass with the blended cross-attention."""
        if of_model.blend is None:
            return options
        if (options.get("patches_replace") or {}).get("attn2"):
            raise LycorisError("E-mask-on-replaced-attention")
        attend = blended_attention(of_model.blend, options.get("optimized_attention_override"))
        return {**options, "optimized_attention_override": attend}

    def _locate(self, of_model: OfModel, hooks: Bypass, path: str, x: torch.Tensor) -> None:
        """Give a layer's hooks the places of its tokens in the pass that begins."""
        if of_model.passing is None:
            raise LycorisError("E-mask-outside-sampling", key=path)
        kernel, kind = len(hooks.plan.geometry.kernel), self.tokens[path]
        if kind in APART:
            of_model.keys = path
        if kind in APART or path not in self.masked:
            hooks.places = self._places(of_model, path, "text", ())
        elif kernel:
            # A convolution has its own grid.
            hooks.places = self._places(of_model, path, "text", (math.prod(x.shape[: -kernel - 1]), 1))
        else:
            hooks.places = self._places(of_model, path, kind, tuple(x.shape[:-1]))

    def _places(self, of_model: OfModel, path: str | None, kind: Tokens, shape: Shape) -> Places:
        """The places of a layer's tokens, or of a cross-attention's queries, (samples, tokens).

        Without a path it is the attention whose keys and values were made last. If the tokens are not the
        expected ones, the layer is reported.
        """
        path, passing = path or _attention(of_model.keys), of_model.passing
        assert passing is not None
        places = passing.places(kind, shape)
        if isinstance(places, Places):
            return places
        for each in self.left_whole:
            # The path of an attention stands for the layers in it.
            if path in each.paths or any(other.startswith(f"{path}.") for other in each.paths):
                each.add(path, places)
        return passing.everywhere(shape)

    def _set_strengths(
        self, model: Any, attached: Mapping[str, Bypass], sigma: float, options: Mapping[str, Any]
    ) -> None:
        """Set the strengths that follow timings to their values at the sigma of a pass."""
        sampling, sigmas = self._sampling, options.get("sample_sigmas")
        # Once a run, because reading them waits for the GPU.
        if sampling.sigmas[0] is not sigmas:
            sampling.sigmas = (sigmas, [] if sigmas is None else sigmas.tolist())
        now = moment_of(model.model_sampling, sigma, sampling.sigmas[1])
        strengths = {path: attached[path].plan.strengths_at(now) for path in self.timed}
        if any(attached[path].strengths != own for path, own in strengths.items()):
            forget_passes(model)
        for path, own in strengths.items():
            attached[path].strengths = own

    def eject(self, patcher: Any) -> None:
        """Remove the hooks and release the tensors that they hold on the device."""
        if own := self._models.get(patcher.model):
            self._models[patcher.model] = OfModel(own.patches, own.met)
            for hooks in (*own.in_turn, *own.hooks.values()):
                hooks.remove()


def plans_of(patcher: Any) -> Mapping[str, BypassPlan]:
    """The bypass plans that a patcher carries already, by module path."""
    return _ours(patcher).plans


def add_bypass(
    patcher: Any,
    plans: Mapping[str, BypassPlan],
    tokens: Mapping[str, Tokens],
    left_whole: LeftWhole,
) -> None:
    """Add plans, by module path, to a patcher. They act after the plans that it has for the same modules.

    `tokens` gives the kind of tokens of each module whose strength differs over places or pictures.
    `left_whole` is told in each sampling which of these modules have tokens of another kind.
    """
    before = _ours(patcher)
    joined = dict(before.plans)
    for path, plan in plans.items():
        with located(key=path):
            joined[path] = joined[path].then(plan) if path in joined else plan
    # Setting the key replaces all its injections, so keep those of a second copy of the pack.
    others = [injection for injection in patcher.get_injections(NAME) or () if injection is not before]
    ours = BypassInjection(joined, {**before.tokens, **tokens}, (*before.left_whole, left_whole))
    add_injection(patcher, NAME, [*others, ours])
    for what, wrapper in ours.wrappers.items():
        wrap(patcher, what, NAME, wrapper, in_place_of=before.wrappers.get(what))


def _ours(patcher: Any) -> BypassInjection:
    """This pack's injection on a patcher; one without plans where there is none.

    A second copy of the pack, loaded under another name, has a BypassInjection class of its own. Its
    injections are not touched.
    """
    injections = patcher.get_injections(NAME) or ()
    own = (injection for injection in injections if isinstance(injection, BypassInjection))
    return next(own, BypassInjection({}, {}, ()))


def _attention(path: str) -> str:
    """The path of the attention that has a layer."""
    return path.rpartition(".")[0]


def of_samples(value: Any, samples: Sequence[int], count: int) -> Any:
    """The part of a value for some of `count` samples: their rows, from each tensor with a row per sample."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[samples] if tensor.ndim and len(tensor) == count else tensor

    return tree_map_only(torch.Tensor, cut, value)


def moment_of(sampling: Any, sigma: float, sigmas: Sequence[float]) -> Moment:
    """The moment at a sigma, by the host's `model_sampling` and the sigmas of the steps of this run.

    Without sigmas, as when a model is called outside a run, both clocks show the share of the diffusion.
    """

    def risen(index: int) -> float:
        return -float(sampling.percent_to_sigma(index / len(PERCENTS)))

    # Find the least percent whose sigma is not above this one: sigmas fall as percents rise.
    diffusion = bisect_left(PERCENTS, -sigma, key=risen) / len(PERCENTS)
    return Moment(diffusion, _steps(sigma, sigmas) if len(sigmas) > 1 else diffusion)


def _steps(sigma: float, sigmas: Sequence[float]) -> float:
    """The share of the steps that the run has done, linear in sigma between two steps."""
    count = len(sigmas) - 1
    for step, (now, following) in enumerate(pairwise(sigmas)):
        if sigma >= now:
            return step / count
        if sigma > following:
            return (step + (now - sigma) / (now - following)) / count
    return 1.0
