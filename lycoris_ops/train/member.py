"""One adapted module of a network: a layer whose tensors are parameters, and how it acts on the module."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..algorithms import Layer, declaring
from ..algorithms.axes import DIFF_B, field_of
from ..algorithms.base import Dependent, Sharing
from ..algorithms.boft import Boft
from ..algorithms.checks import a_layer
from ..algorithms.factored import Factored
from ..algorithms.full import Full
from ..algorithms.ia3 import Ia3
from ..algorithms.norm import Norm
from ..algorithms.oftv2 import OftV2
from ..algorithms.training import Trained
from ..bypass import compiled
from ..bypass.hook import Bypass, own_of, values_of
from ..bypass.plan import BypassPlan
from ..bypass.rebuilt import Rebuilt
from ..bypass.share import WeightShare
from ..bypass.stacked import StackedPart
from ..changes.forms import Dense, Hadamard, Kronecker
from ..errors import LayerError, LycorisError, located
from ..layers.part import Part
from ..maths.divided import is_divided, whole
from ..maths.shapes import Shape
from ..maths.tensors import compute_dtype, is_plain
from ..messages import phrase
from ..modules.sites import Site
from ..processes import divided_by
from .settings import LayerSettings
from .strengths import Strengths

PASSES = 3
"""How often a bypass computes its products: forward, and backward for the input and for the factors.

A rebuilt weight costs one product as large as the module's own, for the gradient of the weight."""

MANY_SMALL = 3
"""How much more a multiplication costs in a Kronecker product, which has many small matrices.

Measured on a CPU, for layers of width 640 to 3072."""

FORMED = 500
"""The cost of each value of a factored weight. It covers forming the value, and computing the factors'
gradients from the weight's. The unit is one multiplication of a large matrix product, measured on a CPU:
memory bandwidth limits these steps."""

BETWEEN = 250
"""The cost for each value that a Kronecker product's bypass forms between its two factors, in the same unit.

Measured on a CPU, for layers of width 64 to 1280: the figures are in benchmarks/README.md."""

FEW = 1 << 17
"""For weights up to this size, rebuilding costs less than operators, if the change depends on the weight and
a pass has more tokens than the weight has outputs.

Measured on a CPU with DoRA, OFT and BOFT, for layers of width 64 to 1024 and 1 to 4096 tokens: the figures
are in benchmarks/README.md."""

TINY = 1 << 15
"""For weights up to this size it costs less with any number of tokens, except for BOFT and OFTv2. Above it,
operators on few tokens keep a quarter to a half of the bytes for the backward pass; OFT and BOFT are faster
too, DoRA is slower by up to a quarter."""

LITTLE = 1 << 20
"""Up to this many values of an output are always kept for the backward pass. Below it, rebuilding a larger
weight takes longer."""


class Member(nn.Module):
    """The layer of one module. Its tensors are this member's parameters, named like the layer's fields.

    The tensors are on the device of the module's weight. They are first drawn on the CPU, so a seed gives the
    same values on every device.

    `layer` is made of these parameters and can be used like any other layer. The member acts on its module
    from `attach` to `detach`, by a `Bypass` or by a `Rebuilt` weight. Dropouts act in training mode.
    """

    def __init__(
        self, site: Site, layer: Layer, settings: LayerSettings, move: Callable[..., Tensor] = Tensor.to
    ) -> None:
        super().__init__()
        self.site = site
        self.settings = settings
        self.strengths = Strengths()
        """The strength of the layer, which it shares with the others of its network."""
        self.tied: tuple[Site, ...] = ()
        """Other modules that hold the same weight, which the layer changes too."""
        self._tied: list[Rebuilt] = []
        self.passed = False
        """Whether there was a pass in which the layer could act."""
        self.left_out = False
        """Whether `module_dropout` has left the layer out of its last pass."""
        self._attached = False
        self.replace(layer, move)

    # A caller may be within inference mode, whose tensors cannot be trained.
    @torch.inference_mode(mode=False)
    def replace(self, layer: Layer, move: Callable[..., Tensor] = Tensor.to) -> None:
        """Train `layer` in place of this one, starting from its values. Its parameters are new ones.

        `move` moves what the layer shares with others to a device, for all of them once. Raises LycorisError
        where the layer does not fit the module, a dropout cannot act on it, or the present layer is sharded.
        """
        if any(map(is_divided, self.parameters())):
            raise LycorisError("E-sharded-layer-not-replaced", weight=self.site.path)
        with located(weight=self.site.path):
            layer.check_fit(self.site.shape)
            self._check_dropouts(layer)
        weight: Tensor = getattr(self.site.module, self.site.weight)
        held = next(chain(self.parameters(), self.buffers()), weight)
        # The device of the tensors, else the weight's. None if hooks load the weight within each pass.
        device = None if held.is_meta else held.device
        attached = self._attached
        self.detach()
        for name in [*self._parameters, *self._buffers]:
            delattr(self, name)
        trained, shared = layer.table.factors, layer.shared if isinstance(layer, Sharing) else {}
        for name, tensor in layer.tensors().items():
            if name in shared:
                self.register_buffer(name, move(tensor, device))
                continue
            # Copy: others may use the same layer of a file. The rounding of products depends on the memory
            # layout, so use the layout that a tensor has after saving and loading.
            value = tensor.detach().clone(memory_format=torch.contiguous_format).to(device)
            if name in trained:
                self.register_parameter(name, nn.Parameter(value.to(compute_dtype(value.dtype))))
            else:
                self.register_buffer(name, value)
        self._hold(layer)
        self.bypass_up_to = bypass_up_to(self.site, self._layer, self.settings)
        if attached:
            self.attach()

    @property
    def layer(self) -> Layer:
        """The layer, whose tensors are this member's parameters.

        They may be sharded, see `whole`.
        """
        # `to` and others may put new tensors in the place of the old ones. `getattr` takes long.
        held, fixed = self._parameters, self._buffers
        for name, value in self._tensors.items():
            met = held[name] if name in held else fixed[name] if name in fixed else getattr(self, name)
            if met is not value:
                self._hold(self._layer)
                break
        return self._layer

    def whole(self) -> Layer:
        """The layer with whole tensors. If it is sharded, all processes must call this, and the gradients
        of its tensors are added up over them.
        """
        layer = self.layer
        if self._divided:
            return layer.with_tensors({name: whole(value) for name, value in self._tensors.items()})
        return layer

    def _hold(self, layer: Layer) -> None:
        """Keep the layer with the parameters and buffers as its tensors."""
        self._layer = layer.with_tensors({name: getattr(self, name) for name in layer.tensors()})
        self._tensors = self._layer.tensors()
        self._divided = any(is_divided(value) for value in self._tensors.values())

    @property
    def form(self) -> str:
        """How the layer acts on its module, in words: `bypass`, `rebuilt`, or both with a limit in tokens."""
        if self.bypass_up_to == math.inf:
            return "bypass"
        if self.bypass_up_to == 0:
            return "rebuilt"
        return phrase("R-bypass-up-tokens-else-rebuilt", bypass_up_to=self.bypass_up_to)

    def attach(self) -> None:
        """Let the layer act on its module."""
        if self._attached:
            return
        layer, site = self.whole(), self.site
        # Let it compute now what it keeps. In a graph of torch.compile the first pass would differ from the
        # second, and some of it breaks the graph.
        layer.check_fit(site.shape)
        layer.forms()
        # Decide again: the model may have another dtype by now.
        self.bypass_up_to = bypass_up_to(site, layer, self.settings)
        self._bypass: Bypass | None = None
        self._rebuilt: Rebuilt | None = None
        if self.bypass_up_to > 0:
            self._planned_at: tuple[tuple[int, torch.dtype], ...] = ()
            """The `_versions` that the bypass was planned with; () for a layer that learns."""
            self._bypass = Bypass(site.module, self._plan(layer), name=site.path)
        if site.stacked is not None and site.expert is not None:
            self._rebuilt = StackedPart(
                site.stacked,
                site.expert,
                layer,
                self.multiplier,
                name=site.path,
                transposed=site.transposed,
                always=bool(self.settings.module_dropout),
            )
        elif self.bypass_up_to < math.inf:
            self._rebuilt = self._rebuilding(site, layer)
            self._tied = [self._rebuilding(other, layer) for other in self.tied]
        for hook in self._tied:
            hook.before_pass = partial(self._before_tied, hook)
            hook.attach()
        # Attach the bypass first: only it can refuse.
        if self._bypass is not None:
            self._bypass.before_pass = self._before_bypass
            self._bypass.instead = self._rebuilt
            self._bypass.attach()
        if self._rebuilt is not None:
            self._rebuilt.before_pass = self._before_rebuilt
            self._rebuilt.attach()
        self._attached = True

    def _rebuilding(self, site: Site, layer: Layer) -> Rebuilt:
        return Rebuilt(
            site.module,
            layer,
            self.multiplier,
            name=site.path,
            weight=site.weight,
            bias=site.bias,
            caller=site.caller,
            transposed=site.transposed,
            # With form="bypass" a module may move and cast its weight within the pass. An offloaded weight is
            # loaded there.
            follows=self.settings.form == "bypass" or getattr(site.module, site.weight).is_meta,
            always=bool(self.settings.module_dropout),
        )

    @property
    def multiplier(self) -> float:
        """The strength of the layer. One that is set is for this layer alone."""
        return self.strengths.get()

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        self.strengths = Strengths(value)

    def check_part(self, weight: Tensor) -> None:
        """Raise LycorisError where the layer cannot act while each process holds a part of its weight."""
        layer, site = self.whole(), self.site
        linear = site.kind == "linear" and site.geometry is not None and not site.transposed
        forms = (*layer.forms(), *layer.forms("bias"))
        share = WeightShare.of(weight)
        for reason, expected in (
            (
                not linear
                and site.kind not in ("norm", "embedding")
                and phrase("R-weight-kind", kind=site.kind),
                phrase("R-torch-s-linear-layers-embeddings"),
            ),
            (
                "forward" in vars(site.module) and phrase("R-module-whose-forward-others-have"),
                phrase("R-model-divided-torch-s-parallelize"),
            ),
            (
                any(isinstance(form, Dependent) for form in forms)
                and phrase("R-whose-change-depends-on-weight", algorithm=a_layer(layer.algorithm)),
                phrase("R-lora-loha-lokr-or-full"),
            ),
            (linear and self.settings.form == "rebuilt" and 'form="rebuilt"', 'form="auto"'),
            (self.settings.input_dropout and "input_dropout", phrase("R-rank-dropout-or-module-dropout")),
            (share.least < 1 and phrase("R-process-without-part"), phrase("R-fewer-processes")),
        ):
            if reason:
                raise LycorisError(
                    "E-layer-divided-by-processes",
                    weight=site.path,
                    reason=reason,
                    division=divided_by(weight),
                    expected=expected,
                )
        with located(weight=site.path):
            share.of_layer(layer)

    def detach(self) -> None:
        """Take the layer away from its module."""
        if self._attached:
            for hook in (self._bypass, self._rebuilt, *self._tied):
                if hook is not None:
                    hook.remove()
            self._tied = []
            self._attached = False

    @property
    def vectors(self) -> frozenset[str]:
        """The tensors to be treated as vectors: all of them if the weight itself is a vector."""
        layer = self.layer
        return layer.table.vectors if len(self.site.shape) > 1 else frozenset(layer.tensors())

    # Each hook prepares itself, because a graph of torch.compile may hold one hook and not the other. Only
    # the one that acts in a pass draws a dropout.

    def _before_rebuilt(self, x: Tensor) -> None:
        """Set the hook of the rebuilt weight for one pass."""
        assert self._rebuilt is not None
        if self._bypass is not None and self._bypassed(x):
            self._rebuilt.strength = 0.0
        else:
            self._rebuilt.layer, self._rebuilt.strength, _ = self._for_pass()

    def _before_bypass(self, x: Tensor) -> None:
        """Set the hook of the bypass for one pass."""
        hook, used = self._bypass, 0.0
        assert hook is not None
        if self._rebuilt is None or self._bypassed(x):
            layer, used, share = self._for_pass()
            versions: tuple[tuple[int, torch.dtype], ...] = ()
            for value in self._tensors.values():
                if value.requires_grad:
                    break
            else:
                # torch.compile cannot ask for them: a graph does as the last pass outside of it.
                versions = self._planned_at if compiled.traced() else self._versions()
            if layer is not self._planned or versions != self._planned_at:
                # Without gradients the bypass keeps what it computes from the tensors.
                hook.plan, self._planned_at = self._plan(layer, share), versions
            hook.dropout = self.settings.input_dropout if self.training else 0.0
        # Not read first: a graph would depend on the strengths of the pass before it.
        hook.strengths = ((used,) * self._parts,)

    def _for_pass(self) -> tuple[Layer, float, WeightShare | None]:
        """The layer, its strength and this process's share of the weight for one pass, with the dropouts."""
        layer, settings = self.layer, self.settings
        if self._divided:
            layer = self.whole()
        site, share = self.site, None
        plain = type(cast("Any", site.module)._parameters.get(site.weight)) is nn.Parameter
        if not plain and is_divided(weight := own_of(site.module, site.weight)):
            share = WeightShare.of(weight)
            with located(weight=self.site.path):
                layer = share.of_layer(layer)
        # Setting an attribute of a module takes long. A graph would depend on the value if it were read.
        if compiled.traced() or not self.passed:
            self.passed = True
        strength, training = self.strengths.get(), self.training
        if training and settings.module_dropout:
            strength = self._drawn_strength()
        if training and settings.rank_dropout:
            layer = _without_ranks(layer, settings.rank_dropout)
        return layer, strength, share

    def _versions(self) -> tuple[tuple[int, torch.dtype], ...]:
        """How often each tensor was changed in place, and its dtype."""
        held = self._tensors.values()
        # torch does not count the changes of a tensor of the inference mode.
        return tuple((0 if value.is_inference() else value._version, value.dtype) for value in held)

    def _before_tied(self, hook: Rebuilt, x: Tensor) -> None:
        """Set the hook of a tied module for one pass."""
        hook.layer, hook.strength = self.whole(), self._drawn_strength()

    def _drawn_strength(self) -> float:
        """The strength, or 0 in a pass that leaves the module out."""
        share = self.settings.module_dropout if self.training else 0.0
        self.left_out = bool(share) and float(torch.rand(())) < share
        return 0.0 if self.left_out else self.multiplier

    def _bypassed(self, x: Tensor) -> bool:
        """Whether the layer acts beside the module in a pass with this input."""
        geometry = self.site.geometry
        return geometry is None or geometry.tokens(x) <= self.bypass_up_to

    def _plan(self, layer: Layer, share: WeightShare | None = None) -> BypassPlan:
        geometry = self.site.geometry
        assert geometry is not None
        self._planned = layer
        parts = [Part(layer)] if layer.extent else []
        # A factor of the bias changes nothing where there is no bias.
        absent = layer.table.bias_may_be_absent and not self.site.has_bias
        biased = layer.forms("bias") and self.site.may_add_bias and not absent
        beside = [Part(layer, parameter="bias")] if biased else []
        with located(weight=self.site.path):
            own = geometry if share is None else share.of_geometry(geometry)
            self._parts = len(parts) + len(beside)
            """The number of strengths of the plan."""
            return BypassPlan.build(own, [(part, 1.0) for part in (*parts, *beside)])

    def _check_dropouts(self, layer: Layer) -> None:
        settings, path = self.settings, self.site.path
        if self.site.kind == "norm":
            # A norm's layer has neither a rank nor an input of its own, so neither dropout acts on it.
            return
        if settings.rank_dropout and not any(variant.dropped for variant in layer.table.each):
            raise LycorisError("E-rank-dropout-without-rank", key=path, algorithm=a_layer(layer.algorithm))
        by_weight = self.site.geometry is None or settings.form == "rebuilt"
        rotates = layer.additive() is None and not isinstance(layer, Factored)
        if settings.input_dropout and (by_weight or rotates):
            raise LycorisError("E-dropout-without-input", key=path, algorithm=a_layer(layer.algorithm))


def read_weight(site: Site) -> Tensor:
    """A site's weight in float32; float64 stays float64. Raises LycorisError where it is packed."""
    weight = _weight_as_held(site)
    return weight.to(compute_dtype(weight.dtype))


def _weight_as_held(site: Site) -> Tensor:
    held = site.oriented(values_of(site.module, site.weight, site.path).detach())
    if held.is_meta:
        raise LycorisError("E-layer-values-not-in-memory", weight=site.path)
    return held


def make_layer(
    site: Site, settings: LayerSettings, seed: int, *, drawn: bool = True
) -> tuple[Layer, str | None]:
    """A fresh layer that changes nothing yet, and a note where it differs from the settings, or None.

    Unless `drawn`, the caller has to replace the tensors that it shares with others.
    A rank above the weight's own is lowered to it; the scale of the change stays. Only DoRA and `tokens` read
    the weight. Raises LycorisError for an algorithm or an option that has no meaning for the site.
    """
    kind = settings.kind
    if settings.tokens:
        return _rows(site, settings.tokens), None
    if site.kind == "norm":
        # A factored change of a vector would have more numbers than the vector.
        norm = Norm.init(site.shape, 1, 1.0, seed=seed)
        return norm.with_tensors({"b_norm": torch.zeros(site.shape)} if site.has_bias else {}), None
    if kind.table.for_norms:
        raise LayerError("E-algorithm-norm-only-for-norms", key=site.path, got=site.kind)
    kernel = math.prod(site.shape[2:]) > 1
    asked, alpha = settings.size(kernel=kernel)
    most = kind.most_rank(site.shape)
    rank = asked if most is None else min(asked, most)
    if kind.table.scaled_by_alpha:
        alpha = settings.scale(kernel=kernel) * rank
    elif kind.table.constrained_by_alpha:
        alpha = settings.constraint or 0.0
    with located(key=site.path):
        options = _options(settings)
        layer: Layer = (
            kind.undrawn(site.shape, rank)
            if issubclass(kind, Sharing) and not drawn
            else kind.init(site.shape, rank, alpha, seed=layer_seed(seed, site.path), **options)
        )
    layer = completed(layer, site, settings)
    if rank == asked or layer.rank is None:
        return layer, None
    return layer, phrase(
        "R-rank-most-can-use-place", path=site.path, rank=rank, shape=list(site.shape), asked=asked
    )


def _rows(site: Site, tokens: Sequence[int]) -> Layer:
    """A layer that sets rows of a weight (V, D) to their present values."""
    if len(site.shape) != 2:
        raise LayerError("E-tokens-not-rows", key=site.path, got=str(list(site.shape)))
    at = torch.tensor(tokens, dtype=torch.int64)
    with located(key=site.path):
        layer = Full(set_rows=torch.zeros(len(at), site.shape[1]), set_rows_at=at)
        layer.check_values()
        layer.check_fit(site.shape)
    rows = _weight_as_held(site)
    rows = rows[at.to(rows.device)]
    return layer.with_tensors({"set_rows": rows.to(compute_dtype(rows.dtype))})


def completed(layer: Layer, site: Site, settings: LayerSettings) -> Layer:
    """A fresh layer with DoRA's magnitude and a change of the bias, where the settings ask for them.

    Only DoRA reads the weight. Raises LayerError where the algorithm has no magnitude.
    """
    with located(key=site.path):
        if settings.dora is not None:
            if not isinstance(layer, Factored):
                raise LayerError("E-kind-without-dora", algorithm=a_layer(settings.algorithm))
            layer = layer.decomposed(read_weight(site), 0 if settings.dora == "output" else 1)
    if settings.bias and site.has_bias:
        layer = layer.with_tensors({field_of(DIFF_B): torch.zeros(site.shape[0])})
    return layer


def _options(settings: LayerSettings) -> dict[str, Any]:
    """The options of the algorithm's `init`. Raises LycorisError for an option that the algorithm does not
    have."""
    kind = settings.kind
    for name, options, meant in (
        ("constraint", settings.constraint, kind.table.constrained_by_alpha),
        ("rslora", settings.rslora, kind.table.scaled_by_alpha),
    ):
        if options and not meant:
            raise LycorisError(
                "E-kind-option-unknown", algorithm=a_layer(settings.algorithm), name=name, options=options
            )
    known = kind.init_options()
    options = {name: getattr(settings, name) for name in ("factor", "tucker", "decompose_both")}
    options = {name: value for name, value in options.items() if value}
    for name, value in options.items():
        if name not in known:
            raise LycorisError(
                "E-kind-setting-unknown",
                algorithm=a_layer(settings.algorithm),
                name=name,
                value=value,
                expected=", ".join(sorted(known)) or phrase("R-no-options"),
            )
    return options


def layer_seed(seed: int, path: str) -> int:
    """The seed of one layer. It depends on the layer's path, not on which other layers there are."""
    return (seed * 0x9E3779B1 + zlib.crc32(path.encode())) % (1 << 63)


def bypass_up_to(site: Site, layer: Layer, settings: LayerSettings) -> float:
    """The most tokens in a pass for which a layer is bypassed; with more, its weight is rebuilt.

    inf: always bypass; 0: never. The settings decide, or else the number of tokens at which both cost the
    same. For n tokens a bypass takes PASSES * n times the factors' multiplications for one token. A LoKr also
    forms the product of the tokens with w2, at BETWEEN for each value. A rebuilt weight of size s takes
    n * s, plus FORMED * s for each form whose matrix is made from factors. For a LoHa, forming its Khatri-Rao
    factors counts as a cost of the bypass.

    Norms, embeddings and the projections of torch's attention are always rebuilt. Otherwise a layer with
    `input_dropout` is always bypassed. So is a layer whose weight is packed, is loaded by hooks within each
    pass, or has so narrow a dtype that a small change would be lost. A change that depends on the weight
    consists of operators on inputs or outputs; it is bypassed if it is an (IA)^3, or if the weight has
    more than FEW values. If it has more than TINY, or the layer is a BOFT or an OFTv2, it is bypassed for at
    most as many tokens as outputs. DoRA of outputs and BOFT keep outputs of the module for the backward pass:
    where these have twice as many vectors as the weight has columns, and more than LITTLE values, a rebuilt
    weight keeps less.
    """
    if site.geometry is None:
        return 0.0
    if settings.form != "auto":
        return math.inf if settings.form == "bypass" else 0.0
    weight = cast("Tensor", getattr(site.module, site.weight))
    at_hand = is_plain(weight) and not weight.is_meta and weight.dtype in (torch.float32, torch.float64)
    if settings.input_dropout or not at_hand:
        return math.inf
    size = math.prod(site.shape)
    each, formed = 0, 0
    for form in layer.forms():
        if isinstance(form, Dependent):
            if size > FEW and (
                isinstance(layer, Boft) or (isinstance(layer, Factored) and layer.of_outputs(site.shape))
            ):
                return float(max(2 * size, LITTLE) // site.shape[0])
            if size > FEW or isinstance(layer, Ia3):
                return math.inf
            few = size > TINY or isinstance(layer, (Boft, OftV2))
            return float(site.shape[0]) if few else 0.0
        if isinstance(form, Kronecker):
            each += PASSES * MANY_SMALL * form.work() + BETWEEN * form.between
        else:
            each += PASSES * form.work()
        if not isinstance(form, Dense):
            formed += size - (form.work() if isinstance(form, Hadamard) else 0)
    more = each - size
    return math.inf if more <= 0 else float(max(0, FORMED * formed // more))


@cache
def zeroed(algorithm: str, dimensions: int) -> frozenset[str]:
    """The fields that an algorithm's `init` makes zero, for weights of this many dimensions."""
    kind = declaring(Trained).get(algorithm)
    if kind is None:
        return frozenset()
    shape: Shape = (8, 8, *(3,) * (dimensions - 2)) if dimensions > 1 else (8,)
    layers = [kind.init(shape, rank, float(rank), seed=0) for rank in (1, 8)]
    tensors = [(name, tensor) for layer in layers for name, tensor in layer.tensors().items()]
    return frozenset(name for name, tensor in tensors if name in kind.table.factors and not tensor.any())


def _without_ranks(layer: Layer, share: float) -> Layer:
    """Drop a random share of the layer's components, and scale up the others to make up for it."""
    held = layer.tensors()
    dropped: dict[str, Tensor] = {}
    # Not those of the table: the older layout of GLoRA has other downs under the same names.
    for name, axis in layer.variant.dropped.items():
        factor = held[name]
        size, rest = factor.shape[axis], factor.dim() - axis - 1
        kept = (torch.rand(size, device=factor.device) >= share).to(factor.dtype) / (1 - share)
        kept = kept.sqrt() if name in layer.table.twice else kept
        dropped[name] = factor * kept.view(-1, *(1,) * rest)
    return replace(layer, **dropped)
