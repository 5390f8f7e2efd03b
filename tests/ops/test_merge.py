"""Merging adapters: methods against mergekit, PEFT and closed forms in float64, and adapters of mixed
kinds."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import KINDS, WEIGHTS, home, load, rand
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file
from torch import Tensor
from written import change, error, patched
from written import in_memory as adapter

import lycoris_ops as lyc
from lycoris_ops.__main__ import main
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.algorithms.fitting import Delta
from lycoris_ops.changes.forms import Additive, Dense, LowRank
from lycoris_ops.merge.deltas import Deltas
from lycoris_ops.merge.merge import METHODS

CPU = torch.device("cpu")
RECORDED = load_file(Path(__file__).with_name("merged_by_mergekit.safetensors"))
"""What mergekit 0.1.5 makes of random changes: its functions, called on them with a base of zeros."""
STRENGTHS = RECORDED["strengths"].tolist()
SHAPE = (14, 33)


def dense(forms: Any, shape: tuple[int, int] = SHAPE) -> Tensor:
    return sum((form.dense(torch.float32, CPU) for form in forms), torch.zeros(shape))


def merged(method: str, deltas: Deltas, **options: Any) -> Tensor:
    found = METHODS[method]
    return dense(found.merge(deltas, found.checked(options)), deltas.shape)


@pytest.mark.parametrize(
    ("record", "method", "strengths", "options"),
    [
        ("sum", "sum", STRENGTHS, {}),
        ("breadcrumbs", "breadcrumbs", STRENGTHS, {"density": 0.7, "gamma": 0.1}),
        ("breadcrumbs_all_large", "breadcrumbs", STRENGTHS, {"density": 0.7, "gamma": 0.9}),
        ("sce", "sce", STRENGTHS, {"select": 0.6}),
        ("sce_all", "sce", STRENGTHS, {}),
        ("model_stock", "model_stock", [1, 1, 1], {}),
        ("karcher", "karcher", [1, 1, 1], {}),
        # mergekit has the share of the second as an option, and keeps no strength.
        ("slerp", "slerp", [1.4, 0.6], {}),
        ("nearswap", "nearswap", [1, 1], {"t": 0.3}),
    ],
)
def test_methods_give_what_mergekit_gives(
    record: str, method: str, strengths: list[float], options: dict[str, float]
) -> None:
    changes = [[Dense(one)] for one in RECORDED["deltas"][: len(strengths)]]
    assert error(merged(method, Deltas(changes, strengths, SHAPE), **options), RECORDED[record]) < 1e-6


def test_a_change_opposite_to_the_mean_does_not_turn_it() -> None:
    for _ in range(5):
        change = [LowRank(torch.randn(SHAPE[0], 2), torch.randn(2, SHAPE[1]), 1.0)]
        found = merged("karcher", Deltas([change, change], [1.0, -0.5], SHAPE))
        assert error(found, 0.75 * dense(change)) < 1e-6


def test_methods_give_what_peft_gives() -> None:
    changes = list(RECORDED["deltas"])
    deltas = Deltas([[Dense(one)] for one in changes], STRENGTHS, SHAPE)
    strengths, ones = torch.tensor(STRENGTHS), torch.ones(3)
    # PEFT's votes are not weighted. A strength times a change has the same largest values.
    scaled = [strength * one for strength, one in zip(STRENGTHS, changes, strict=True)]
    for density in (0.2, 0.55, 1.0):
        wanted = merge_utils.ties(scaled, ones, density, "total")
        assert error(merged("ties", deltas, density=density), wanted) < 1e-6
        wanted = merge_utils.magnitude_prune(changes, strengths, density)
        assert error(merged("magnitude_prune", deltas, density=density), wanted) < 1e-6


def mergekits(kept: list[Tensor], strengths: list[float], normalize: bool) -> Tensor:
    """mergekit's sign consensus of values, place by place in Python's float64."""
    found = torch.zeros(kept[0].shape, dtype=torch.float64)
    for place in range(found.numel()):
        votes = [(w, w * float(one.flatten()[place])) for w, one in zip(strengths, kept, strict=True)]
        sign = 1 if sum(vote for _, vote in votes) >= 0 else -1
        agree = [(w, vote) for w, vote in votes if vote * sign > 0]
        divisor = sum(w for w, _ in agree) if normalize else 1
        found.view(-1)[place] = sum(vote for _, vote in agree) / (divisor or 1)
    return found


@pytest.mark.parametrize("strengths", [[0.3, 1.7, -0.6], [0.8, 0.8, 0.8]])
@pytest.mark.parametrize("method", ["ties", "dare", "della", "breadcrumbs"])
def test_consensus_at_unequal_strengths_is_that_of_mergekit_and_of_peft(
    method: str, strengths: list[float]
) -> None:
    changes = list(RECORDED["deltas"])
    deltas = Deltas([[Dense(one)] for one in changes], strengths, SHAPE)
    # Nothing is drawn at density 1.
    options = {
        "ties": {"density": 0.55},
        "dare": {"density": 1.0},
        "della": {"density": 1.0, "epsilon": 0.0},
        "breadcrumbs": {"density": 0.55, "gamma": 0.0},
    }[method]
    kept = [merge_utils.prune(one, options["density"], "magnitude") for one in changes]
    weights = torch.tensor(strengths, dtype=torch.float64)
    wide = [one.double() for one in kept]
    wanted = {
        "sum": sum(w * one for w, one in zip(strengths, wide, strict=True)),
        "ties_normalize": mergekits(wide, strengths, True),
        "ties_sum": mergekits(wide, strengths, False),
        "ties_total": merge_utils.ties(wide, weights, 1.0, "total"),
        "ties_frequency": merge_utils.ties(wide, weights, 1.0, "frequency"),
    }
    for consensus, expected in wanted.items():
        found = merged(method, deltas, consensus=consensus, **options)
        assert isinstance(expected, Tensor) and error(found, expected) < 1e-6, consensus
        # With mixed strengths no two of them are the same.
        others = [one for name, one in wanted.items() if name != consensus]
        assert strengths[0] == strengths[1] or min(error(found, one) for one in others) > 0.1  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("consensus", ["sum", "ties"])
@pytest.mark.parametrize("method", ["dare", "della"])
def test_what_is_drawn_is_scaled_by_its_probability(
    monkeypatch: pytest.MonkeyPatch, method: str, consensus: str
) -> None:
    """The mean over many seeds is the merge without dropping; one draw is the formula on its own mask."""
    changes = list(RECORDED["deltas"])

    def deltas(seed: int) -> Deltas:
        return Deltas([[Dense(one)] for one in changes], STRENGTHS, SHAPE, layer="a", seed=seed)

    one = merged(method, deltas(3), density=0.6, consensus=consensus)
    assert torch.equal(one, merged(method, deltas(3), density=0.6, consensus=consensus))
    assert not torch.equal(one, merged(method, deltas(4), density=0.6, consensus=consensus))
    kept: list[Tensor] = []
    for index, (values, strength) in enumerate(zip(changes, STRENGTHS, strict=True)):
        drawn = torch.rand(SHAPE, generator=deltas(3).generator(index), dtype=torch.float32)
        chance = torch.full(SHAPE, 0.6)
        if method == "della":
            ranks = values.abs().double().numpy().argsort(1).argsort(1)
            chance = torch.tensor(0.45 + 0.3 * ranks / (SHAPE[1] - 1))
        kept.append(strength * torch.where(drawn < chance, values.double() / chance, 0.0))
    wanted = sum(kept)
    if consensus == "ties":
        wanted = merge_utils.ties(kept, torch.ones(3), 1.0, "total")
    assert isinstance(wanted, Tensor) and error(one, wanted) < 1e-5
    if consensus == "sum":
        mean = torch.stack([merged(method, deltas(seed), density=0.6) for seed in range(600)]).mean(0)
        assert error(mean, RECORDED["sum"]) < 0.1


def low_rank(*ranks: int, shape: tuple[int, int] = (40, 56)) -> list[LowRank]:
    return [LowRank(torch.randn(shape[0], rank), torch.randn(rank, shape[1]), 0.5) for rank in ranks]


def as_deltas(forms: list[Any], strengths: list[float]) -> Deltas:
    changes: list[list[Additive]] = [[form] for form in forms]
    shape = tuple(forms[0].dense(torch.float32, CPU).shape)
    return Deltas(changes, strengths, shape, layer="x", names="abc"[: len(forms)])


def test_factors_give_what_whole_matrices_give_in_any_order() -> None:
    """Every method that works on factors, and none of the orders of the adapters has a part."""
    forms = low_rank(2, 3, 4)
    whole = [Dense(form.dense(torch.float32, CPU)) for form in forms]
    for name, method in METHODS.items():
        count = 2 if method.adapters[1] == 2 else 3
        strengths = STRENGTHS[:count]
        factored = as_deltas(forms[:count], strengths)
        found = merged(name, factored)
        assert (factored.factors is not None) and as_deltas(whole, STRENGTHS).factors is None
        if method.factors and name != "core_space":
            assert error(found, merged(name, as_deltas(whole[:count], strengths))) < 1e-5, name
            forms_of_it = method.merge(factored, method.checked({}))
            assert all(isinstance(form, LowRank) for form in forms_of_it), name
        if not method.ordered:
            turned = Deltas(
                factored.forms[::-1], strengths[::-1], factored.shape, layer="x", names=factored.names[::-1]
            )
            assert error(merged(name, turned), found) < 1e-5, name


def test_tsv_parts_are_orthogonal_linear_and_keep_their_norms() -> None:
    forms = low_rank(2, 3, 4)
    deltas = as_deltas(forms, STRENGTHS)
    wanted = torch.zeros(deltas.shape, dtype=torch.float64)
    lefts, sizes, rights = zip(
        *(torch.linalg.svd(form.dense(torch.float64, CPU), full_matrices=False) for form in forms),
        strict=True,
    )
    ranks = [2, 3, 4]

    def polar(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix.T @ matrix)
        return matrix @ (vectors / values.sqrt()) @ vectors.T

    left = polar(torch.cat([one[:, :r] for one, r in zip(lefts, ranks, strict=True)], 1)).split(ranks, 1)
    right = polar(torch.cat([one[:r].T for one, r in zip(rights, ranks, strict=True)], 1)).split(ranks, 1)
    for strength, a, s, b, r in zip(STRENGTHS, left, sizes, right, ranks, strict=True):
        wanted += strength * (a * s[:r]) @ b.T
    assert error(merged("tsv", deltas), wanted) < 1e-5
    assert METHODS["tsv"].parts is not None
    parts = [dense(part, deltas.shape) for part in METHODS["tsv"].parts(deltas, {})]
    for (one, form), (two, _) in itertools.permutations(zip(parts, forms, strict=True), 2):
        assert one.norm().item() == pytest.approx(form.dense(torch.float32, CPU).norm().item(), rel=1e-5)
        assert (one.T @ two).abs().max() < 1e-4 and (one @ two.T).abs().max() < 1e-4
    # Two equal adapters: each has half, and the sum is the change itself.
    twice = as_deltas([forms[0], forms[0]], [1.0, 1.0])
    assert error(merged("tsv", twice), forms[0].dense(torch.float32, CPU)) < 1e-5


def test_subspace_methods_against_closed_forms_in_float64() -> None:
    forms = low_rank(2, 3, 4)
    deltas = as_deltas(forms, STRENGTHS)
    wide = [form.dense(torch.float64, CPU) for form in forms]
    # Regression: the least-norm solution of its normal equations, by stacked least squares.
    weights = [one.T @ one / one.square().sum() for one in wide]
    total = sum(weights)
    target = sum(w * one @ gram for w, one, gram in zip(STRENGTHS, wide, weights, strict=True))
    assert isinstance(target, Tensor) and isinstance(total, Tensor)
    wanted = target @ torch.linalg.pinv(total, rtol=1e-10, hermitian=True)
    found = merged("regression", deltas)
    assert error(found, wanted) < 1e-4
    # Independent row spaces: every adapter acts on its own inputs as if it were alone.
    for strength, one in zip(STRENGTHS, wide, strict=True):
        assert error(found.double() @ one.T, strength * one @ one.T) < 1e-4
    assert error(merged("regression", as_deltas([forms[0], forms[0]], [1, 1])), wide[0]) < 1e-5
    average = sum(w * one for w, one in zip(STRENGTHS, wide, strict=True))
    assert isinstance(average, Tensor)
    assert error(merged("regression", deltas, ridge=1e6), average / 3) < 1e-4
    # Iso-C over the true rank, and its neutral setting.
    left, values, right = torch.linalg.svd(average, full_matrices=False)
    assert error(merged("iso", deltas), (left[:, :9] @ right[:9]) * values[:9].mean()) < 1e-5
    assert error(merged("iso", deltas, amount=0.0), average) < 1e-5
    # Its authors' code: `svd` of the sum, and the mean of all values for each. A sum of full rank, since the
    # directions of values of 0 are arbitrary.
    full = [torch.randn(deltas.shape, dtype=torch.float64) for _ in STRENGTHS]
    left, values, right = torch.linalg.svd(
        sum(w * one for w, one in zip(STRENGTHS, full, strict=True)), full_matrices=False
    )
    theirs = torch.linalg.multi_dot([left, torch.diag(values.mean().expand_as(values)), right])
    given = Deltas([[Dense(one.float())] for one in full], STRENGTHS, deltas.shape)
    assert error(merged("iso", given, directions="all"), theirs) < 1e-5
    # KnOTS, by the singular value decomposition of all changes side by side.
    left, values, right = torch.linalg.svd(torch.cat(wide, 1), full_matrices=False)
    aligned = [*(values[:9, None] * right[:9]).split(56, 1)]
    scaled = [w * one for w, one in zip(STRENGTHS, aligned, strict=True)]
    wanted = left[:, :9] @ merge_utils.ties(scaled, torch.ones(3), 0.3, "total")
    assert error(merged("knots", deltas, density=0.3), wanted) < 1e-4
    # Core space: the rule on the cores in the bases of balanced factors.
    ups, downs = [], []
    for form, rank in zip(forms, (2, 3, 4), strict=True):
        a, s, b = torch.linalg.svd(form.dense(torch.float64, CPU), full_matrices=False)
        ups.append(a[:, :rank] * s[:rank].sqrt())
        downs.append(s[:rank, None].sqrt() * b[:rank])
    u = torch.linalg.svd(torch.cat(ups, 1), full_matrices=False)[0]
    v = torch.linalg.svd(torch.cat(downs).T, full_matrices=False)[0]
    cores = [w * u.T @ one @ v for w, one in zip(STRENGTHS, wide, strict=True)]
    wanted = u @ merge_utils.ties(cores, torch.ones(3), 0.5, "total") @ v.T
    assert error(merged("core_space", deltas), wanted) < 1e-4


def test_neutral_settings() -> None:
    forms = low_rank(2, 3)
    deltas = as_deltas(forms, [1.0, 1.0])
    total, one = merged("sum", deltas), merged("sum", as_deltas(forms[:1], [0.7]))
    assert error(merged("dare", deltas, density=1.0), total) < 1e-6
    assert error(merged("della", deltas, density=1.0, epsilon=0.0), total) < 1e-6
    assert error(merged("breadcrumbs", deltas, density=1.0, gamma=0.0), total) < 1e-6
    assert error(merged("magnitude_prune", deltas, density=1.0), total) < 1e-6
    assert error(merged("average", deltas), total / 2) < 1e-6
    assert error(merged("nearswap", deltas, t=0.0), forms[0].dense(torch.float32, CPU)) < 1e-6
    for name, method in METHODS.items():
        # One adapter alone is itself at its strength, for methods that do not look at single values.
        if (
            method.factors
            and method.adapters[0] == 1
            and name not in ("average", "knots", "iso", "core_space")
        ):
            assert error(merged(name, as_deltas(forms[:1], [0.7])), one) < 1e-5, name


# Whole adapters.

ADDITIVE = [kind for kind, spec in KINDS.items() if spec.additive and not spec.flat]


@pytest.mark.parametrize("kind", ADDITIVE)
def test_the_sum_of_mixed_kinds_is_exact_and_is_read_back(tmp_path: Path, kind: str) -> None:
    weight = home(kind)
    shape = WEIGHTS[weight]
    first = adapter("one", {"a": load(kind, weight), "b": load("lora", "linear")})
    second = adapter("two", {"a": load("lora", weight), "c": load("loha", "linear")})
    merged = lyc.merge_adapters([(first, 0.7), (second, -0.4)])
    lyc.save_adapter(merged, tmp_path / "m.safetensors", dialect="kohya")
    found = lyc.load_adapter(tmp_path / "m.safetensors").layers
    assert list(found) == ["lora_unet_a", "lora_unet_b", "lora_unet_c"]
    wanted = 0.7 * change(first.layers["lora_unet_a"], shape) - 0.4 * change(
        second.layers["lora_unet_a"], shape
    )
    assert error(change(found["lora_unet_a"], shape), wanted) < 3e-6
    assert (
        error(change(found["lora_unet_c"], (12, 18)), -0.4 * change(second.layers["lora_unet_c"], (12, 18)))
        < 3e-6
    )
    turned = lyc.merge_adapters([(second, -0.4), (first, 0.7)])
    assert error(change(turned.layers["lora_unet_a"], shape), wanted) < 3e-6


def test_the_sum_of_small_ranks_is_a_lora_and_of_large_ones_a_difference() -> None:
    loras = [adapter(name, {"a": load("lora", "conv2d")}) for name in ("one", "two")]
    (layer,) = lyc.merge_adapters([(one, 1.0) for one in loras]).layers.values()
    assert layer.algorithm == "lora" and layer.rank == sum(
        one.layers["lora_unet_a"].rank or 0 for one in loras
    )
    # The same change twice has no higher rank than once.
    (layer,) = lyc.merge_adapters([(loras[0], 1.0), (loras[0], 0.5)]).layers.values()
    assert layer.rank == loras[0].layers["lora_unet_a"].rank
    full = adapter("full", {"a": load("full", "conv2d")})
    (layer,) = lyc.merge_adapters([(loras[0], 1.0), (full, 1.0)]).layers.values()
    assert layer.algorithm == "full"
    budget = lyc.merge_adapters([(loras[0], 1.0), (full, 1.0)], "ties", lyc.Rank(3), density=0.5)
    assert budget.layers["lora_unet_a"].rank == 3 and budget.report is not None and budget.report.error > 0


def test_the_sum_of_ranks_that_nearly_fill_a_weight_is_decomposed_from_factors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = (96, 12)
    first, second = (
        adapter(name, {"a": ALGORITHMS["lora"].load({"lora_up.weight": up, "lora_down.weight": down})})
        for name, up, down in (("one", rand(96, 4), rand(4, 12)), ("two", rand(96, 5), rand(5, 12)))
    )
    wanted = 0.7 * change(first.layers["lora_unet_a"], shape) - change(second.layers["lora_unet_a"], shape)
    # No matrix as large as the weight is formed for it.
    monkeypatch.delattr(Delta, "values")
    (layer,) = lyc.merge_adapters([(first, 0.7), (second, -1.0)]).layers.values()
    assert (layer.algorithm, layer.rank) == ("lora", 9)
    assert error(change(layer, shape), wanted) < 1e-6


ALONE = [name for name, method in METHODS.items() if method.alone is not None]


@pytest.mark.parametrize("strength", [0.7, -1.5])
@pytest.mark.parametrize("name", ALONE)
def test_methods_say_rightly_what_they_make_of_one_change_alone(name: str, strength: float) -> None:
    method = METHODS[name]
    options = method.checked({"scale": 0.6} if "scale" in {one.name for one in method.options} else {})
    assert method.alone is not None
    forms = low_rank(3)
    deltas = as_deltas(forms, [strength])
    found = dense(method.merge(deltas, options), deltas.shape)
    wanted = method.alone(strength, options) * forms[0].dense(torch.float32, CPU)
    assert error(found, wanted) < 1e-6


@pytest.mark.parametrize("kind", ADDITIVE)
def test_a_layer_of_one_adapter_alone_keeps_its_kind(tmp_path: Path, kind: str) -> None:
    """Times its strength, and so does its change of the bias."""
    weight = home(kind)
    biased = load(kind, weight).with_bias_change(rand(WEIGHTS[weight][0]))
    first = adapter("one", {"a": biased, "b": load("lora", "linear")})
    second = adapter("two", {"b": load("lora", "linear")})
    own, shape = first.layers["lora_unet_a"], WEIGHTS[weight]
    merged = lyc.merge_adapters([(first, 0.7), (second, -0.4)], scale=2.0)
    made = merged.layers["lora_unet_a"]
    assert (made.algorithm, made.rank) == (own.algorithm, own.rank)
    held = {name: tensor.shape for name, tensor in own.tensors().items()}
    assert {name: tensor.shape for name, tensor in made.tensors().items()} == held
    assert error(change(made, shape), 1.4 * change(own, shape)) < 1e-6
    held, kept = own.tensors()["diff_b"], made.tensors()["diff_b"]
    assert error(kept, 1.4 * held) < 1e-6
    assert merged.report is not None
    assert [row.before.split(" ")[0] for row in merged.report.rows] == [own.algorithm, "2"]
    lyc.save_adapter(merged, tmp_path / "m.safetensors")
    read = lyc.load_adapter(tmp_path / "m.safetensors").layers["lora_unet_a"]
    assert torch.equal(change(read, shape), change(made, shape))
    # What changes single values is no multiple of the layer.
    (trimmed, _) = lyc.merge_adapters([(first, 0.7), (second, -0.4)], "ties").layers.values()
    assert error(change(trimmed, shape), 0.7 * change(own, shape)) > 1e-3


def test_a_layer_alone_is_taken_as_it_is_where_the_size_allows_it() -> None:
    lokr, lora = load("lokr-full-low", "linear"), load("lora", "linear")
    pair = [(adapter("one", {"a": lokr, "b": lora}), 0.5), (adapter("two", {"b": lora}), 1.0)]
    kinds = {
        algorithm: lyc.merge_adapters(pair, "sum", lyc.Ratio(1), algorithm=algorithm).layers["lora_unet_a"]
        for algorithm in ("auto", "lokr", "lora")
    }
    for algorithm, layer in kinds.items():
        assert layer.algorithm == ("lora" if algorithm == "lora" else "lokr")
        assert error(change(layer, (12, 18)), 0.5 * change(lokr, (12, 18))) < 1e-5
    # A limit of the norm bounds the factor, and nothing else.
    bounded = lyc.merge_adapters(pair, "average", norm_limit=0.25).layers["lora_unet_a"]
    assert error(change(bounded, (12, 18)), 0.125 * change(lokr, (12, 18))) < 1e-6
    # Two layers on one weight have no kind in common, and a zero layer is none.
    both = lyc.merge_adapters([*pair, (adapter("three", {"a": lokr}), 1.0)]).layers["lora_unet_a"]
    assert both.algorithm != "lokr"
    nothing = lora.with_tensors({"lora_up": torch.zeros(12, lora.rank or 1)})
    left = lyc.merge_adapters([(adapter("one", {"a": nothing, "b": lora}), 1.0)])
    assert list(left.layers) == ["lora_unet_b"] and left.report is not None
    assert list(left.report.left_out) == ["lora_unet_a"]


@pytest.mark.parametrize("size", [None, lyc.Rank(2)], ids=str)
def test_a_merged_layer_has_the_widest_dtype_of_those_that_it_is_made_of(size: lyc.Size | None) -> None:
    half, brain, single = torch.float16, torch.bfloat16, torch.float32

    def of(dtype: torch.dtype) -> lyc.Adapter:
        layer = load("lora", "linear")
        return adapter(
            str(dtype), {"a": layer.with_tensors({k: t.to(dtype) for k, t in layer.tensors().items()})}
        )

    for held, wanted in (
        ((half, half), half),
        ((brain, brain), brain),
        ((half, brain), single),
        ((half, single), single),
    ):
        pairs = [(of(dtype), 0.6) for dtype in held]
        made = [lyc.merge_adapters(pairs, size=size)]
        if size is None:
            made += lyc.orthogonal_adapters(pairs)
        for one in made:
            assert {t.dtype for t in one.layers["lora_unet_a"].tensors().values()} == {wanted}, held
    (asked,) = lyc.merge_adapters(pairs, size=size, dtype=half).layers.values()
    assert {t.dtype for t in asked.tensors().values()} == {half}


def fused_flux() -> dict[str, Tensor]:
    """Weights of a Flux whose q, k and v are one."""
    root = "model.diffusion_model"
    return {
        f"{root}.img_in.weight": torch.randn(12, 8),
        f"{root}.vector_in.in_layer.weight": torch.randn(12, 8),
        f"{root}.double_blocks.0.img_attn.qkv.weight": torch.randn(36, 18),
        f"{root}.double_blocks.0.img_attn.qkv.bias": torch.randn(36),
        f"{root}.double_blocks.0.img_attn.proj.weight": torch.randn(12, 12),
    }


def difference(found: lyc.Adapter | lyc.Stack, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter or a stack adds to each weight that it changes, in float64."""
    wide = {key: weight.double() for key, weight in weights.items()}
    return {key: weight - wide[key] for key, weight in patched(found, wide).items()}


def test_with_a_base_any_kind_and_any_names_are_merged() -> None:
    """DoRA beside split q, k and v onto a fused weight, with a bias; names of two tools."""
    weights = fused_flux()
    dora = {
        **KINDS["lora"].make((36, 18), 2),
        "alpha": torch.tensor(2.0),
        "dora_scale": torch.rand(36, 1) + 0.5,
    }
    one = lyc.Adapter.of(
        {"diffusion_model.double_blocks.0.img_attn.qkv": lyc.ALGORITHMS["lora"].load(dora)}, name="one"
    )
    names = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    two = lyc.Adapter.of({name: load("lora", "linear") for name in names}, name="two")
    stack = lyc.Stack([lyc.Entry(one, 0.8), lyc.Entry(two, 0.5)])
    merged = lyc.merge_adapters(stack, base=weights)
    wanted, found = difference(stack, weights), difference(merged, weights)
    assert wanted.keys() == found.keys()
    assert all(error(found[key], change) < 1e-5 for key, change in wanted.items())
    recipe = json.loads(merged.metadata["lycoris_recipe"])
    assert [one["strength"] for one in recipe["merged"]] == [0.8, 0.5] and recipe["method"] == "sum"
    # Both adapters are named where each has a layer that the model lacks.
    lost = {"transformer.lost": load("lora", "linear")}
    pairs = [(lyc.Adapter.of({**own.layers, **lost}, name=own.name), 1.0) for own in (one, two)]
    report = lyc.merge_adapters(pairs, base=weights).report
    assert report is not None and list(report.left_out) == [
        f"transformer.lost ({of})" for of in ("one", "two")
    ]


def test_block_rules_weight_each_of_several_layers_on_one_weight() -> None:
    """q, k and v of an adapter meet one fused weight at three strengths, of which one is 0."""
    key = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"
    weights = fused_flux()
    root = "transformer.transformer_blocks.0.attn.to_"
    split = lyc.Adapter.of({f"{root}{part}": load("lora", "linear") for part in "qkv"}, name="split")
    rules = lyc.Rules.parse("attn.q = 0.5\nattn.v = off")
    stack = lyc.Stack([lyc.Entry(split, 0.8, rules=rules)])
    merged = lyc.merge_adapters(stack, base=weights)
    wanted, found = difference(stack, weights)[key], difference(merged, weights)[key]
    assert error(found, wanted) < 1e-5
    assert not wanted[24:].any() and wanted[:12].any()
    # The examination of the stack sees the same change.
    norm = lyc.examine(stack, base=weights).layers[0].norm
    assert norm == pytest.approx(float(wanted.norm()), rel=1e-5)


def test_orthogonal_adapters_together_are_the_merge() -> None:
    """With their block rules in them."""
    weights = fused_flux()
    name = "transformer.transformer_blocks.0.attn.to_q"
    one, two = (lyc.Adapter.of({name: load("lora", "linear")}, name=name) for name in (name, name))
    rules = lyc.Rules.parse("attn.q = 0.25")
    stack = lyc.Stack([lyc.Entry(one, 0.8, rules=rules), lyc.Entry(two, -0.5)])
    apart = lyc.orthogonal_adapters(stack, base=weights)
    parts = lyc.Stack(lyc.Entry(part, entry.strength) for part, entry in zip(apart, stack, strict=True))
    whole = lyc.merge_adapters(stack, "tsv", base=weights)
    ((_, found),), ((_, wanted),) = (difference(used, weights).items() for used in (parts, whole))
    assert error(found, wanted) < 1e-5


def test_a_norm_limit_bounds_what_adds_up() -> None:
    one = adapter("one", {"a": load("lora", "linear")})
    (layer,) = lyc.merge_adapters([(one, 1.0), (one, 1.0)], norm_limit=1.0).layers.values()
    assert error(change(layer, (12, 18)), change(one.layers["lora_unet_a"], (12, 18))) < 1e-5
    (free,) = lyc.merge_adapters([(one, 1.0), (one, 1.0)], norm_limit=3.0).layers.values()
    assert error(change(free, (12, 18)), 2 * change(one.layers["lora_unet_a"], (12, 18))) < 1e-5


def test_changes_that_cancel_each_other_are_left_out() -> None:
    layers = {"a": load("full", "linear"), "b": load("lora", "linear")}
    one, two = adapter("one", layers), adapter("two", {"a": layers["a"]})
    for method, strengths in (("sum", (1.0, -1.0)), ("average", (0.3, -0.3))):
        made = lyc.merge_adapters(zip((one, two), strengths, strict=True), method)
        assert list(made.layers) == ["lora_unet_b"]
        assert made.report is not None and list(made.report.left_out) == ["lora_unet_a"]
    # Of the bias alone.
    bias = torch.randn(12)
    pair = [adapter("one", {"a": load("lora", "linear").with_bias_change(bias)}) for _ in range(2)]
    (left,) = lyc.merge_adapters(zip(pair, (1.0, -1.0), strict=True), "sum").layers.values()
    assert "diff_b" not in left.tensors()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.factors])
def test_value_by_value_a_merge_pauses_within_a_layer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It can be interrupted there, and the tiles have no part in the result."""
    pauses: list[None] = []
    count = 2 if METHODS[name].adapters[1] == 2 else 3
    deltas = Deltas(
        [[Dense(one)] for one in RECORDED["deltas"][:count]],
        STRENGTHS[:count],
        SHAPE,
        seed=3,
        pause=lambda: pauses.append(None),
    )
    whole = merged(name, deltas)
    before = len(pauses)
    monkeypatch.setattr("lycoris_ops.merge.elements.TILE", 40)
    assert torch.equal(merged(name, deltas), whole)
    assert len(pauses) - before > before and len(pauses) - before >= SHAPE[0]


def test_factors_of_one_column_have_a_kronecker_product() -> None:
    """As those of a LoKr with a core of rank 1, which are transposed."""
    shape = WEIGHTS["conv2d"]
    one = adapter("one", {"a": load("lokr-full-tucker", "conv2d", rank=1)})
    two = adapter("two", {"a": load("lora", "conv2d", rank=1)})
    (layer,) = lyc.merge_adapters([(one, 1.0), (two, 1.0)]).layers.values()
    wanted = sum(change(each.layers["lora_unet_a"], shape) for each in (one, two))
    assert isinstance(wanted, Tensor) and error(change(layer, shape), wanted) < 1e-6


def test_the_recipe_tells_the_hash_of_a_file_that_does_not_say_it(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    layer = load("lora", "linear")
    tensors = {f"lora_unet_a.{key}": value.half() for key, value in layer.dump().items() if key != "alpha"}
    save_file({**tensors, "lora_unet_a.alpha": torch.tensor(2.0)}, file)
    made = lyc.merge_adapters([(lyc.load_adapter(file), 0.5)])
    held = file.read_bytes()
    data = held[8 + int.from_bytes(held[:8], "little") :]
    (told,) = json.loads(made.metadata["lycoris_recipe"])["merged"]
    assert told["name"] == "one.safetensors" and told["strength"] == 0.5
    assert told["hash"] == hashlib.sha256(data).hexdigest()


def test_bad_input_is_named() -> None:
    one, two = adapter("one", {"a": load("lora", "linear")}), adapter("two", {"b": load("lora", "linear")})
    dora = adapter("dora", {"a": load("lora-dora-out", "linear")})
    nan = load("lora", "linear")
    nan = nan.with_tensors({"lora_up": torch.full_like(nan.tensors()["lora_up"], float("nan"))})
    other = lyc.Adapter.of({"transformer.blocks.0.a": load("lora", "linear")}, name="other")
    wide = adapter("wide", {"a": load("lora", "linear-odd")})
    cases: list[tuple[Any, str]] = [
        (lambda: lyc.merge_adapters([(one, 1.0), (two, 1.0)]), "no layer in common"),
        (lambda: lyc.merge_adapters([(one, 1.0), (other, 1.0)]), "in different ways"),
        (lambda: lyc.merge_adapters([(one, 1.0), (wide, 1.0)]), "different shapes"),
        (lambda: lyc.merge_adapters([]), "cannot take this number"),
        (lambda: lyc.merge_adapters([(one, 1.0)] * 3, "slerp"), "cannot take this number"),
        (lambda: lyc.merge_adapters([(one, 1.0)], "sums"), "no such merge method"),
        (lambda: lyc.merge_adapters([(one, 1.0)], "ties", scalee=1), "no option `scalee`"),
        (lambda: lyc.merge_adapters([(one, 1.0)], "ties", density=1.5), "out of range"),
        (lambda: lyc.merge_adapters([(one, 1.0)], "della", epsilon=0.5), "probabilities"),
        (
            lambda: lyc.merge_adapters([(one, 1.0), (adapter("nan", {"a": nan}), 1.0)]),
            "^nan: lora_unet_a.*NaN",
        ),
        (lambda: lyc.merge_adapters([(adapter("nan", {"a": nan}), 1.0)]), "^nan: lora_unet_a.*NaN"),
        (lambda: lyc.merge_adapters([(one, 1.0)], norm_limit=0.0), "norm limit"),
        (lambda: lyc.orthogonal_adapters([(one, 1.0)], "ties"), "not a sum of one part"),
        (
            lambda: lyc.merge_adapters(lyc.Stack([lyc.Entry(one, rules=lyc.Rules.parse("in.4 = 0.5"))])),
            "blocks",
        ),
        (lambda: lyc.merge_adapters([(one, 1.0), (dora, 1.0)]), "depends on the weight"),
    ]
    for act, said in cases:
        with pytest.raises(lyc.LycorisError, match=said):
            act()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for file in files:
        lyc.save_adapter(adapter(file.stem, {"a": load("lora", "linear")}), file, dialect="kohya")
    out = tmp_path / "out.safetensors"
    given = ["--adapter", str(files[0]), "0.5", "--adapter", str(files[1]), "-0.25", "-o", str(out)]
    assert main(["merge", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fit"]["layers"][0]["algorithm"] == "lora"
    both = [lyc.load_adapter(file).layers["lora_unet_a"] for file in files]
    wanted = 0.5 * change(both[0], (12, 18)) - 0.25 * change(both[1], (12, 18))
    assert error(change(lyc.load_adapter(out).layers["lora_unet_a"], (12, 18)), wanted) < 3e-6
    ties = ["--method", "ties", "--option", "density=0.5", "--size", "rank 2", "--overwrite"]
    assert main(["merge", *given, *ties]) == 0
    assert lyc.load_adapter(out).layers["lora_unet_a"].rank == 2
    # A file in the way is told before anything is read.
    before = out.read_bytes()
    assert main(["merge", "--adapter", str(tmp_path / "none.safetensors"), "-o", str(out)]) == 2
    assert main(["merge", *given]) == 2 and out.read_bytes() == before
    assert "a file of that name already" in capsys.readouterr().err
    assert main(["merge", *given, "--overwrite", "--method", "ties", "--option", "density"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
