"""How a layer is trained: its algorithm, sizes and dropouts, as the user gives them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypedDict, cast, get_args, get_type_hints

from ..algorithms import ALGORITHMS, declaring
from ..algorithms.training import Trained
from ..errors import LycorisError, unknown_name
from ..messages import either, phrase

MemberForm = Literal["auto", "bypass", "rebuilt"]
Axis = Literal["output", "input"]

THEIRS: Mapping[str, str] = {
    "algorithm": "algo",
    "rank": "r lora_r lora_rank lora_dim linear_dim network_dim dim block_size",
    "alpha": "lora_alpha linear_alpha network_alpha",
    "conv_rank": "conv_dim",
    "input_dropout": "dropout lora_dropout conv_dropout",
    "tucker": "use_tucker use_cp use_conv_cp disable_conv_cp",
    "dora": "dora_wd weight_decompose wd_on_output use_dora",
    "rslora": "rs_lora use_rslora",
    "factor": "decompose_factor",
    "form": "bypass_mode",
    "include": "train_norm target_modules target_module target_name",
    "exclude": "exclude_name exclude_modules",
    "tokens": "trainable_token_indices token_indices",
    "overrides": "rank_pattern alpha_pattern module_algo_map name_algo_map",
}
"""Our names, each with the keywords of LyCORIS and PEFT that mean the same."""
OURS = {theirs: ours for ours, words in THEIRS.items() for theirs in words.split()}

NOT_HERE: Mapping[str, str] = {
    "use_scalar": "Leave it out: every layer starts at a change of zero without a scalar",
    "rescaled": "Leave it out: no rotation here learns a scale",
    "unbalanced_factorization": "Leave it out: the second factor of a LoKr is always the larger one",
    "full_matrix": "A rank larger than any layer, such as 1000000, keeps both factors of a LoKr whole",
    "enable_conv": 'Choose the modules by preset: "full" has convolutions, "full-lin" has none',
}
"""LyCORIS' keywords that do not exist here, with what to do instead."""


class LayerOptions(TypedDict, total=False):
    """The fields of `LayerSettings` that `create_lycoris` takes beside its own, with their types."""

    conv_rank: int | None
    conv_alpha: float | None
    factor: int | None
    decompose_both: bool
    tucker: bool
    dora: Axis | None
    rslora: bool
    constraint: float | None
    tokens: Sequence[int]
    bias: bool
    input_dropout: float
    rank_dropout: float
    module_dropout: float
    lr: float
    form: MemberForm


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """How one layer is trained.

    The change is scaled by alpha / rank. With `alpha` None, alpha is the rank and the scale is 1. With
    `rslora` the scale is alpha / sqrt(rank) (Kalajdzievski, 2312.03732), and the file holds an alpha that
    gives the same scale. `rank` is the size of a block for rotations (oft, oftv2, boft, boft_peft), and has
    no meaning for full, norm and ia3.
    """

    algorithm: str = "lora"
    rank: int = 16
    alpha: float | None = None
    conv_rank: int | None = None
    """The rank of convolutions whose kernel is larger than 1; None for `rank`."""
    conv_alpha: float | None = None
    """The alpha of these convolutions; None for the same alpha / rank as other layers."""
    factor: int | None = None
    """LoKr: the size of the first factor, see `maths.shapes.factorization`; None or -1 for the most
    even split."""
    decompose_both: bool = False
    """LoKr: both factors are low-rank where that saves parameters."""
    tucker: bool = False
    """LoRA, LoHa, LoKr: the kernel of a convolution is factored too."""
    dora: Axis | None = None
    """LoRA, LoHa, LoKr: a DoRA magnitude for each output or each input."""
    rslora: bool = False
    constraint: float | None = None
    """OFT and BOFT: the bound of the rotation's norm; None for no bound."""
    tokens: Sequence[int] = ()
    """The numbers of some rows of an embedding or a head, such as those of new tokens. Only these rows are
    trained, as plain values and whatever the algorithm is. () trains the module as the algorithm does."""
    bias: bool = False
    """Whether the bias of the module is trained as well, where it has one."""
    input_dropout: float = 0.0
    """The share of the input's values that the layer sees as zero."""
    rank_dropout: float = 0.0
    """The share of the rank's components that a pass leaves out."""
    module_dropout: float = 0.0
    """The share of the passes that leave the layer out."""
    lr: float = 1.0
    """The layer's learning rate, as a multiple of the optimiser's."""
    form: MemberForm = "auto"
    """What the layer changes: the module's output (bypass) or its weight (rebuilt). auto chooses what costs
    less.

    Norms, embeddings and the projections of torch's attention are always rebuilt."""

    def with_options(
        self, options: Mapping[str, Any], where: str, beside: Iterable[str] = ()
    ) -> LayerSettings:
        """These settings with some replaced. Raises LycorisError for an unknown name or an impossible value.

        Messages say that the options are from `where`. `beside` has the other names that may be given there.
        """
        check_names(options, [field.name for field in dataclasses.fields(self)], where, beside)
        changed = replace(self, **options)
        changed.check(where)
        return changed

    def check(self, where: str) -> None:
        """Raise LycorisError for an impossible value."""
        if self.algorithm not in trainable():
            raise LycorisError(
                "E-algorithm-unknown",
                key=where,
                got=str(self.algorithm),
                expected=either(trainable()),
                hint=phrase("R-kind-cannot-begin-training-can") if self.algorithm in ALGORITHMS else None,
            )
        kinds = get_type_hints(type(self))
        for name, choices in (("form", get_args(MemberForm)), ("dora", (*get_args(Axis), None))):
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), " or ".join(map(repr, choices)), where)
        for name, others in (("rank", ()), ("conv_rank", (None,)), ("factor", (None, -1))):
            value = getattr(self, name)
            if value not in others and not (type(value) is int and value > 0):
                raise _wrong(name, value, "a whole number above 0", where)
        if not _are_rows(self.tokens):
            raise _wrong("tokens", self.tokens, "a list of whole numbers, 0 or more", where)
        for name in ("alpha", "conv_alpha"):
            value = getattr(self, name)
            # At 0 nothing would be learned. Other trainers mean the rank by 0, which is None here.
            if value is not None and (not _between(value, 0, math.inf) or value == 0):
                raise _wrong(name, value, "a finite number above 0", where)
        for name in ("constraint", "lr"):
            value = getattr(self, name)
            if value is not None and not _between(value, 0, math.inf):
                raise _wrong(name, value, "a finite number, 0 or more", where)
        for name in ("input_dropout", "rank_dropout", "module_dropout"):
            value = getattr(self, name)
            if not _between(value, 0, 1):
                raise _wrong(name, value, "a number from 0 to below 1", where)
        for name in (name for name, kind in kinds.items() if kind is bool):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "True or False", where)

    def given(self) -> dict[str, Any]:
        """The settings that differ from the defaults, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    @property
    def kind(self) -> type[Trained]:
        return declaring(Trained)[self.algorithm]

    def scale(self, *, kernel: bool) -> float:
        """The scale of the change; `kernel` says that the layer has a kernel larger than 1."""
        rank, alpha = self.size(kernel=kernel)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def size(self, *, kernel: bool) -> tuple[int, float]:
        """The requested rank and alpha."""
        alpha = self.rank if self.alpha is None else self.alpha
        if not kernel or (self.conv_rank is None and self.conv_alpha is None):
            return self.rank, alpha
        rank = self.conv_rank or self.rank
        return rank, alpha / self.rank * rank if self.conv_alpha is None else self.conv_alpha


@cache
def trainable() -> tuple[str, ...]:
    """The algorithms that can start from a shape alone."""
    return tuple(sorted(declaring(Trained)))


def check_names(
    options: Mapping[str, Any], known: Iterable[str], where: str, beside: Iterable[str] = ()
) -> None:
    """Raise LycorisError for the first option that is not known, with the name that was likely meant."""
    names = set(known)
    for name in options:
        if name in names:
            continue
        error = unknown_name(
            "E-option-unknown", name, sorted({*names, *beside}), key=where, meant=OURS.get(name)
        )
        if name in NOT_HERE:
            error.values["hint"] = NOT_HERE[name]
        raise error


def _between(value: object, least: float, below: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < below


def _are_rows(value: Any) -> bool:
    return isinstance(value, Sequence) and all(
        type(row) is int and row >= 0 for row in cast("Sequence[Any]", value)
    )


def _wrong(name: str, value: object, expected: str, where: str) -> LycorisError:
    return LycorisError("E-option-value-impossible", key=where, name=name, got=repr(value), expected=expected)
