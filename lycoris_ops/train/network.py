"""A network of adapter layers beside a frozen model."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, SupportsFloat, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from .. import processes
from ..algorithms import Layer
from ..algorithms.base import Sharing, once
from ..algorithms.checks import of_rank
from ..errors import LycorisError, MatchError, located
from ..layers.part import Part
from ..maths.divided import changed_in_place, is_divided, put
from ..maths.shapes import Shape
from ..maths.tensors import is_plain, norm
from ..messages import phrase
from ..modules.named import named_modules
from ..modules.patterns import check_used, patterns
from ..modules.shares import left_out
from ..modules.sites import Site, What, all_sites, left_alone, shared_weights
from ..patch.plan import PatchPlan
from ..reading.adapter import TRANSPOSED, Adapter
from ..reading.load import load_adapter
from ..writing.save import SaveResult, check_dialect, save_adapter
from .guard import guard, unguard
from .in_peft import all_experts, for_peft, on_modules, path_in_peft
from .member import Member, read_weight, zeroed
from .naming import DIFFUSERS, layers_for, model_shapes, named
from .passing import watch
from .strengths import Strengths
from .untied import check_untied, give_own_weights

NAME = "network"
"""The name of a network's adapter in errors and reports."""
LINES = 8
"""The most lines of one kind in a report."""
TURNS = 8
"""The most rounds of shrinking, for a layer whose change is not proportional to its factors."""

Flags = dict[str, tuple[nn.Parameter, bool]]
"""The parameters of a model by name with their `requires_grad`, as a network found them."""

_held_frozen: Any = WeakIdKeyDictionary()
"""For each frozen parameter its flag before the first network, and how many networks hold it."""


class LycorisNetwork(nn.Module):
    """Adapter layers beside the modules of a frozen model; `parameters()` gives only the layers' parameters.

    `apply_to` lets the layers act, and `restore` leaves the model as it was. A member's layer has the same
    class as a layer from a file, with parameters as its tensors. Dropouts act in training mode.

    `create_lycoris` makes networks.
    """

    def __init__(
        self,
        module: nn.Module,
        members: Mapping[str, Member],
        *,
        seed: int = 0,
        prefix: str = "",
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__()
        # Avoid the registration of nn.Module: neither the model nor its parameters are part of the network.
        object.__setattr__(self, "module", module)
        self.members = dict(members)
        """The members by the paths of their modules."""
        # Registered under other names: a submodule's name may not hold dots or be an attribute of the dict.
        self._held_frozen = nn.ModuleDict(
            {f"{path.replace('/', '//').replace('.', '/')}/": member for path, member in members.items()}
        )
        self.seed = seed
        self.origin: Literal["fresh", "plan", "file"] = "fresh"
        """Where the kinds and sizes of the layers come from: options, a plan or a file."""
        self.prefix = prefix
        """The prefix of the model's module paths in files: `diffusion_model.`, or ""."""
        self.components = False
        """Whether the paths begin with the names of a pipeline's components, as after `join_networks`."""
        self.notes = tuple(notes)
        self._strengths = Strengths()
        self.set_multiplier(1.0)
        self._flags: Flags | None = None
        """The flags that `freeze` returned in `apply_to`; None while the network is not applied."""
        self._watched: list[RemovableHandle] = []

    module: nn.Module

    @property
    def applied(self) -> bool:
        """Whether the layers act on the model."""
        return self._flags is not None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LycorisNetwork:
        """As `nn.Module` does in `to` and others. What members share is changed once, for all of them."""
        return cast("Any", super())._apply(once(fn), recurse)

    # Acting on the model.

    def apply_to(self) -> LycorisNetwork:
        """Let the layers act on the model, and freeze the model's own parameters. Returns the network.

        Raises LycorisError, and lets no layer act, where a layer cannot act beside another network's layer or
        on a weight that is split among processes, and where tokens are trained in a head but not in the
        embedding that shares its weight.
        """
        # Also for a network that acts already: the model may have been divided since.
        divided = {id(weight) for weight in processes.in_parts(self.module).values()}
        for member in self.members.values() if divided else ():
            weight = getattr(member.site.module, member.site.weight)
            if id(weight) in divided:
                member.check_part(weight)
        if self._flags is None:
            self._tie_rows()
            self._flags = freeze(self.module)
            # Before the layers act: their outputs have a graph of their own.
            self._watched = watch(self.module)
            guard(self.module, self)
            try:
                for member in self.members.values():
                    member.attach()
            except BaseException:
                self.restore()
                raise
        return self

    def _tied(self, path: str, others: Iterable[str]) -> list[str]:
        """The other modules with a member's weight in which the member's layer acts too.

        As in PEFT they are those without a layer, if the member is an embedding with trained tokens.
        """
        member = self.members[path]
        rows = member.site.kind == "embedding" and "set_rows" in member.layer.tensors()
        return [other for other in others if other not in self.members] if rows else []

    def _tie_rows(self) -> None:
        """Let the trained tokens of an embedding act in the modules that share its weight.

        Raises LycorisError for tokens that are trained in a head, but not in the embedding that shares its
        weight.
        """
        rows = [path for path, member in self.members.items() if "set_rows" in member.layer.tensors()]
        sites = all_sites(self.module) if rows else {}
        shared = shared_weights(sites.values())
        for path in rows:
            others = shared.get(path, ())
            self.members[path].tied = tuple(sites[other] for other in self._tied(path, others))
            if others and self.members.keys().isdisjoint(others) and not self.members[path].tied:
                raise LycorisError("E-tokens-weight-shared", weight=path, other=others[0])

    def restore(self) -> None:
        """Take the layers away. The model is as before `apply_to`: weights, hooks and `requires_grad`.

        Parameters that another network froze too stay frozen until that network is taken away.
        """
        for member in self.members.values():
            member.detach()
        for handle in self._watched:
            handle.remove()
        self._watched = []
        thaw(self.module, self._flags or {})
        unguard(self.module, self)
        self._flags = None

    def set_multiplier(self, multiplier: float) -> None:
        """Set the strength of all layers. Raises LycorisError unless it is a finite number."""
        number = isinstance(multiplier, SupportsFloat)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not (number and math.isfinite(multiplier)):
            raise LycorisError("E-strength-not-finite", got=repr(multiplier))
        self._strengths.set(float(multiplier))
        for member in self.members.values():
            if member.strengths is not self._strengths:
                member.strengths = self._strengths

    @property
    def multiplier(self) -> float:
        """The strength of all layers.

        In a part of the model that gradient checkpointing runs again, it is that of the first run.
        """
        return self._strengths.get()

    @contextmanager
    def at(self, multiplier: float) -> Generator[None]:
        """A context in which all layers have this strength. Raises as `set_multiplier`."""
        before = self.multiplier
        self.set_multiplier(multiplier)
        try:
            yield
        finally:
            self.set_multiplier(before)

    def off(self) -> AbstractContextManager[None]:
        """A context in which the model computes as if there were no network."""
        return self.at(0.0)

    @torch.no_grad()
    def merge_to(self, *, untie: bool = False) -> None:
        """Add the changes to the model's weights for good, and take the layers away.

        Each sum is rounded once. `untie` first gives modules that share a weight with an adapted one, such as
        a head tied to the embedding, weights of their own, and sets `tie_word_embeddings` in the model's
        configuration to False, so that `save_pretrained` writes both. The model grows by that weight.

        Raises LycorisError where a weight or a changed bias is packed or shared with another module, or where
        a layer adds to a bias that the module lacks; with `untie` it is refused for models with an encoder
        and a decoder, whose passes depend on that setting. Then nothing is changed.
        """
        sites = all_sites(self.module)
        shared = {
            path: others
            for path, others in shared_weights(sites.values()).items()
            if path in self.members and len(self._tied(path, others)) < len(others)
        }
        for path, others in shared.items():
            if not untie:
                raise _shared("weight", path, others[0])
            check_untied(self.module, path)
        for path, others in shared_weights(sites.values(), "bias").items():
            if path in self.members and self.members[path].whole().forms("bias"):
                raise _shared("bias", path, others[0])
        self.restore()
        processes.give_back(self.module)
        work: list[tuple[Site, str, Part]] = []
        for path, member in self.members.items():
            layer, site = member.whole(), member.site
            if layer.extent:
                plain_values(site, site.weight)
                work.append((site, site.weight, Part(layer, key=path)))
            if layer.forms("bias") and (site.has_bias or not layer.table.bias_may_be_absent):
                if not site.has_bias:
                    raise LycorisError("E-module-bias-absent", weight=path, got=type(site.module).__name__)
                plain_values(site, site.bias)
                work.append((site, site.bias, Part(layer, key=path, parameter="bias")))
        for path in shared:
            give_own_weights(self.module, path, sites)
        self._merge(
            [
                (plain_values(site, name), site if name == site.weight else None, part)
                for site, name, part in work
            ]
        )

    def _merge(self, work: Sequence[tuple[Tensor, Site | None, Part]]) -> None:
        """Add the changes of parts to values in place; a site says how a weight is stored."""
        plans = PatchPlan.build_all(
            [
                (site.shape if site else value.shape, value.device, [(part, self.multiplier)])
                for value, site, part in work
            ]
        )
        whole: list[tuple[PatchPlan, Tensor, str]] = []
        for (value, site, part), plan in zip(work, plans, strict=True):
            name = part.key or ""
            if is_divided(value):
                # One at a time: the values of all processes are brought together first.
                with located(weight=name), changed_in_place(value) as values:
                    plan.apply_(site.oriented(values) if site else values, plan.tensors, plan.strengths)
            else:
                whole.append((plan, site.oriented(value) if site else value, name))
        PatchPlan.apply_all(whole)

    # Training.

    def parameter_groups(
        self, lr: float = 1e-4, *, lora_plus: float | None = None, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Groups for a torch optimiser, each with `name`, `params`, `lr`, `weight_decay` and `vectors`.

        A layer's learning rate is `lr` times the `lr` of its settings. `lora_plus` multiplies the rate of the
        parameters that start at zero, such as LoRA's up (Hayou et al., "LoRA+", 2402.12354). Tensors that are
        vectors in meaning, such as biases, norms and DoRA's magnitude, get no weight decay; `vectors` marks a
        group of them. A factor is never a vector, whatever its rank and the sizes of its layer.
        """
        groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
        for member in self.members.values():
            vectors = member.vectors
            zero = zeroed(member.layer.algorithm, len(member.site.shape))
            for name, parameter in member.named_parameters():
                raised = lora_plus is not None and name in zero
                groups.setdefault((member.settings.lr, raised, name in vectors), []).append(parameter)
        result: list[dict[str, Any]] = []
        for (share, raised, vector), parameters in groups.items():
            words = (f"lr x {share:g}", phrase("R-zero-at-start") * raised, "vectors" * vector)
            times = share * (lora_plus if raised and lora_plus is not None else 1.0)
            result.append(
                {
                    "name": " ".join(filter(None, words)),
                    "params": parameters,
                    "lr": lr * times,
                    "weight_decay": 0.0 if vector else weight_decay,
                    "vectors": vector,
                }
            )
        return result

    @torch.no_grad()
    def clip_weight_norm(self, limit: float) -> int:
        """Shrink each layer whose change has a Frobenius norm above `limit`, and return how many there were.

        The norm is that of strength * delta(W), so that it does not depend on how factors are balanced.
        Source: the max-norm regularisation of kohya-ss and LyCORIS. Raises LycorisError for a limit that is
        not a finite number above 0.
        """
        if not 0 < limit < math.inf:
            raise LycorisError("E-limit-not-positive", got=str(limit))
        clipped = 0
        for member in self.members.values():
            weight = read_weight(member.site) if member.layer.additive() is None else None
            layer, first = member.whole(), True
            for _ in range(TURNS):
                device = next(iter(layer.tensors().values())).device
                met = torch.zeros(member.site.shape, device=device) if weight is None else weight
                size = abs(self.multiplier) * float(norm(layer.delta(met))) if layer.extent else 0.0
                if size <= limit * (1 + 1e-6):
                    break
                clipped, first = clipped + first, False
                layer = layer.shrunk(limit / size, met)
            if not first:
                for name, parameter in member.named_parameters():
                    put(parameter, getattr(layer, name))
        return clipped

    # Files.

    def to_adapter(
        self, name: str = NAME, *, include: str | Iterable[str] = "*", dialect: str = "lycoris"
    ) -> Adapter:
        """The layers as an adapter in memory, copied as they are now.

        `include` chooses modules by patterns as in `create_lycoris`. So a mixed network can be written as
        several files, each in a dialect that holds its kinds. For the `dialect` "peft" the LoRA of an
        embedding takes PEFT's form, and a full difference becomes the values of the whole module.

        If `fully_shard` has divided the network, all processes call this, and each gets the whole adapter.

        Raises LycorisError for a model that is a single layer, which has no name in a file, and for a pattern
        that matches no module. With "peft" it also refuses a layer that PEFT lacks for embeddings, for
        convolutions that are grouped or have three dimensions, and for transposed weights, and in torch's
        attention anything but LoRA on the input projection.
        """
        if "" in self.members:
            raise LycorisError("E-model-is-single-layer", got=type(self.module).__name__)
        wanted = patterns(include)
        for pattern in wanted:
            check_used(pattern, self.members, phrase("R-adapted-modules"))
        chosen = {
            path: member
            for path, member in self.members.items()
            if any(pattern.matches_path(path) for pattern in wanted)
        }
        kept = once(Tensor.cpu)
        own = {path: _copied(member.whole(), kept) for path, member in chosen.items()}
        sites = [member.site for member in chosen.values()]
        if dialect == "peft":
            for path, member in chosen.items():
                if path != member.site.path:
                    raise LycorisError("E-peft-joined-networks", key=path)
            own = all_experts({path_in_peft(site): for_peft(own[site.path], site) for site in sites}, sites)
        # Components name themselves, so that no other prefix is needed.
        name_of = str if self.components and dialect == DIFFUSERS else partial(named, self.prefix)
        layers = {name_of(path): layer for path, layer in own.items()}
        # Experts that `all_experts` added have no site.
        of_modules = {name_of(path) for path in on_modules(own, sites, self.module)}
        turned = any(site.transposed for site in sites)
        return Adapter.of(
            layers,
            name=name,
            metadata={TRANSPOSED: "true"} if turned else None,
            on_parameters=layers.keys() - of_modules,
        )

    def save_weights(
        self,
        path: str | os.PathLike[str],
        dialect: str = "lycoris",
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, str | None] | None = None,
        *,
        include: str | Iterable[str] = "*",
        overwrite: bool = True,
    ) -> SaveResult:
        """Write the layers as they are now, see `to_adapter`. Raises as `save_adapter` does.

        For a divided network call `to_adapter` in all processes, and `save_adapter` with a dialect in the
        first one.
        """
        adapter = self.to_adapter(os.path.basename(path), include=include, dialect=dialect)
        return save_adapter(adapter, path, dialect, dtype, metadata, model=self.shapes(), overwrite=overwrite)

    def check_dialect(self, dialect: str) -> None:
        """Raise LycorisError where a dialect cannot hold these layers."""
        check_dialect(self.to_adapter(dialect=dialect), dialect, self.shapes())

    def load_weights(self, path: str | os.PathLike[str] | Adapter) -> None:
        """Go on from an adapter file in any dialect, or from an adapter in memory.

        Every member takes the file's layer for its module, with its algorithm, rank and alpha. Raises
        MatchError, and changes nothing, unless the file has a layer for every member and no others.
        """
        adapter = path if isinstance(path, Adapter) else load_adapter(path)
        layers, left = layers_for(adapter, self.module, self.prefix)
        extra = sorted(layers.keys() - self.members.keys())
        missing = sorted(self.members.keys() - layers.keys())
        if extra or missing:
            raise MatchError(
                "E-file-layers-differ",
                file=adapter.path,
                key=(extra or missing)[0],
                layers=len(layers),
                unknown=len(extra),
                members=len(self.members),
                missing=len(missing),
            )
        move = once(Tensor.to)
        for name, layer in layers.items():
            with located(file=adapter.path):
                self.members[name].replace(layer, move)
        self.notes = tuple(dict.fromkeys((*self.notes, *left)))

    def shapes(self) -> dict[str, Shape]:
        """The keys and shapes of the model's weights, as files name them."""
        return model_shapes(self.module, self.prefix)

    # In words.

    @property
    def report(self) -> str:
        """What is trained and how, in words."""
        members, sites = self.members, all_sites(self.module)
        count = sum(parameter.numel() for parameter in self.parameters())
        lines = [
            phrase("R-adapted-parameters", count=len(members), count_2=count),
            phrase("R-left-out-4", module=left_out(self.module, members, sites)),
        ]
        kinds = Counter(
            (of_rank(member.layer.algorithm, member.layer.rank), member.site.kind, member.form)
            for member in members.values()
        )
        for (layer, kind, form), number in kinds.most_common(LINES):
            lines.append(f"{number} {kind}: {layer}, {form}")
        lines += self.notes[:LINES]
        for path, why in list(left_alone(self.module).items())[:LINES]:
            lines.append(phrase("R-left-alone", left_alone=self._left_alone(path), why=why))
        idle = [path for path, member in members.items() if not member.passed]
        if 0 < len(idle) < len(members):
            lines.append(phrase("R-no-pass-has-reached-so", count=len(idle), idle=idle[0]))
        if turned := [path for path, member in members.items() if member.site.transposed]:
            lines.append(phrase("R-stored-transposed-such-file-their", count=len(turned), turned=turned[0]))
        for path, others in shared_weights(sites.values()).items():
            if path in members and self._tied(path, others):
                lines.append(phrase("R-shares-weight-tokens-changed-both", path=path, others=others[0]))
            elif path in members:
                lines.append(phrase("R-shares-weight-merge-needs-untie", path=path, others=others[0]))
            elif members.keys().isdisjoint(others) and sites[path].kind != "embedding":
                lines.append(phrase("R-left-alone-unless-named-shares", path=path, others=others[0]))
        return "\n".join(lines)

    def _left_alone(self, path: str) -> str:
        """The untrained part of a module, and the verb for it.

        It is the module itself, or only its own parameters where modules inside it are trained.
        """
        what = path or phrase("R-model-itself")
        own = [own for own, _ in dict(named_modules(self.module))[path].named_parameters(recurse=False)]
        beside = path == "" or any(member.startswith(f"{path}.") for member in self.members)
        if not own or not beside:
            return phrase("R-is", what=what)
        return phrase("R-part-is" if len(own) == 1 else "R-parts-are", own=own[:LINES], what=what)

    def recipe(self) -> dict[str, Any]:
        """A description of the network as plain data for JSON: its seed, and each layer with its settings.

        Settings at their defaults are left out. A layer's rank may be lower than its settings ask for.
        """
        return {
            "seed": self.seed,
            "layers": {
                path: {
                    "algorithm": member.layer.algorithm,
                    "rank": member.layer.rank,
                    "alpha": member.layer.alpha,
                    "shapes": {name: list(tensor.shape) for name, tensor in member.layer.tensors().items()},
                    "settings": member.settings.given(),
                }
                for path, member in self.members.items()
            },
        }


def _shared(what: What, path: str, other: str) -> LycorisError:
    return LycorisError("E-modules-share-parameter", weight=path, what=what, other=other)


def plain_values(site: Site, name: str) -> Tensor:
    """The parameter of a module, for `changed_in_place`. Raises LycorisError where it is packed, or not in
    memory."""
    value: Tensor = getattr(site.module, name)
    if value.is_meta:
        raise LycorisError("E-offloaded-weight-not-changed", weight=site.path)
    if not (is_divided(value) or is_plain(value)):
        raise LycorisError(
            "E-packed-weight-not-changed", weight=site.path, name=type(value).__name__, dtype=str(value.dtype)
        )
    return value


def _copied(layer: Layer, kept: Callable[[Tensor], Tensor]) -> Layer:
    """A copy of the layer on the CPU, which training no longer changes. What layers share is `kept`."""
    shared = layer.shared if isinstance(layer, Sharing) else {}
    own = {name: value for name, value in layer.tensors().items() if name not in shared}
    copies = {name: value.detach().to("cpu", copy=True) for name, value in own.items()}
    return layer.with_tensors(copies | {name: kept(value) for name, value in shared.items()})


def freeze(module: nn.Module) -> Flags:
    """Freeze a model's parameters until `thaw` has undone each `freeze` of them. Returns their flags."""
    flags: Flags = {}
    for name, parameter in module.named_parameters():
        flags[name] = parameter, parameter.requires_grad
        first, count = _held_frozen.get(parameter, (parameter.requires_grad, 0))
        _held_frozen[parameter] = first, count + 1
        # Not by `requires_grad_`, which parameters of a lazy module refuse before its first pass.
        parameter.requires_grad = False
    return flags


def thaw(module: nn.Module, flags: Flags) -> None:
    """Undo the `freeze` that returned these flags. The last `thaw` of a parameter restores its own flag.

    A parameter that was put in its place meanwhile, as `fully_shard` does, gets the flag too.
    """
    now = dict(module.named_parameters()) if flags else {}
    for name, (parameter, own) in flags.items():
        # A copied model is held only by its copied network.
        first, count = _held_frozen.get(parameter, (own, 1))
        if count > 1:
            _held_frozen[parameter] = first, count - 1
            continue
        _held_frozen.pop(parameter, None)
        for held in {id(value): value for value in (parameter, now.get(name, parameter))}.values():
            held.requires_grad = first
