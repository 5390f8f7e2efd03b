"""What holds for every registered algorithm, whatever it computes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from layers import CASES, KINDS, MIXED, WEIGHTS, base, factors, home, load

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS, check, declaring, detect
from lycoris_ops.algorithms.axes import Table
from lycoris_ops.algorithms.training import Trained

OTHER_VARIANTS = {
    frozenset({"lora_embedding_A", "lora_embedding_B"}),
    frozenset({"lora_up.weight", "lora_down.weight", "lora_E"}),
    frozenset({"set_rows", "set_rows_at"}),
    frozenset({"diff_b"}),
    frozenset({"set_bias"}),
    frozenset({"b_norm"}),
    frozenset({"w_norm", "b_norm"}),
}
"""Variants for embeddings, rows, biases and norms. They are not in `KINDS`, and have tests of their own."""


def test_every_variant_of_every_algorithm_is_tested() -> None:
    variants = {variant for kind in ALGORITHMS.values() for variant in kind.table.variants}
    extras = frozenset().union(*(kind.table.extras for kind in ALGORITHMS.values()))
    tested = {frozenset(factors(kind, home(kind), alpha=None)) - extras for kind in KINDS}
    assert tested | OTHER_VARIANTS == variants
    # Layers are compared by identity, because == of two tensors gives a tensor.
    assert all(kind.__eq__ is object.__eq__ for kind in ALGORITHMS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_algorithm_detects_a_key_set(kind: str) -> None:
    tensors = factors(kind, home(kind))
    assert [name for name, cls in ALGORITHMS.items() if cls.accepts(tensors)] == [KINDS[kind].algorithm]
    assert detect(tensors) is ALGORITHMS[KINDS[kind].algorithm]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_or_a_missing_key_is_detected_by_none(kind: str) -> None:
    tensors = factors(kind, home(kind), alpha=None)
    assert detect({**tensors, "unheard_of": torch.zeros(1)}) is None
    needed = min((v for v in detect(tensors).table.variants if v <= tensors.keys()), key=len)  # type: ignore[union-attr]
    for key in needed:
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        # A LoKr that loses its core is still a LoKr.
        assert detect(rest) is None or key == "lokr_t2"


def test_two_kinds_in_one_layer_are_detected_by_none() -> None:
    for one, other in itertools.permutations(KINDS, 2):
        # OFT and BOFT have the same keys, and differ in the dimensions of the tensor.
        same = KINDS[one].algorithm == KINDS[other].algorithm or {one, other} == {"oft", "boft"}
        if not same and KINDS[one].flat == KINDS[other].flat:
            assert detect({**factors(one, home(one)), **factors(other, home(other))}) is None


@pytest.mark.parametrize(("kind", "weight"), MIXED)
def test_load_and_dump_are_inverses(kind: str, weight: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        stored = {
            key: tensor if key == "alpha" or not tensor.is_floating_point() else tensor.to(dtype)
            for key, tensor in factors(kind, weight).items()
        }
        dumped = ALGORITHMS[KINDS[kind].algorithm].load(stored).dump()
        assert dumped.keys() == stored.keys()
        for key, tensor in stored.items():
            assert dumped[key].dtype == tensor.dtype
            assert torch.equal(dumped[key], tensor)


@pytest.mark.parametrize(("kind", "weight"), MIXED)
def test_delta_has_the_weights_shape_and_the_compute_dtype(kind: str, weight: str) -> None:
    layer = load(kind, weight)
    # Changes are computed in float32, or in float64 for a float64 weight.
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        delta = layer.delta(base(weight, dtype))
        assert delta.shape == WEIGHTS[weight]
        assert delta.dtype == expected
        assert delta.abs().max() > 0


# The scale does not apply to a sparse remainder, and a DoRA magnitude is applied after it.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "sparse" not in kind and "dora" not in kind])
def test_a_scale_of_alpha_over_rank_is_applied_once(kind: str) -> None:
    weight = home(kind)
    spec = KINDS[kind]
    plain = factors(kind, weight, rank=4, alpha=None)
    algorithm = ALGORITHMS[spec.algorithm]
    # A LoKr of two full factors is the one layer of its kind that alpha does not scale.
    assert algorithm.table.scaled_by_alpha == (spec.scaled or spec.algorithm == "lokr")
    whole = algorithm.load(plain, spec.options).delta(base(weight))
    # Where alpha bounds a rotation, it is far above any norm, so that it bounds nothing.
    alpha = 1.0 if spec.scaled else 1e6
    scaled = algorithm.load({**plain, "alpha": torch.tensor(alpha)}, spec.options)
    torch.testing.assert_close(scaled.delta(base(weight)), whole / 4 if spec.scaled else whole)


@pytest.mark.parametrize("kind", KINDS)
def test_multiplied_multiplies_the_change(kind: str) -> None:
    """Strengths of saved and merged files go this way. What is not proportional is refused."""
    weight = base(home(kind), torch.float64)
    layer = load(kind, home(kind))
    bias = torch.randn(weight.shape[0], dtype=torch.float64)
    close = {"rtol": 2e-6, "atol": 1e-6 * float(layer.delta(weight).abs().max())}
    with_bias = layer.with_bias_change(torch.randn(weight.shape[0])) if KINDS[kind].additive else layer
    for factor in (0.5, -2.0, 0.3):
        if not layer.proportional:
            with pytest.raises(lyc.LayerError, match="cannot be multiplied by a number"):
                layer.multiplied(factor)
            continue
        made = layer.multiplied(factor)
        torch.testing.assert_close(made.delta(weight), factor * layer.delta(weight), **close)
        change, whole = (one.change(weight, bias) for one in (with_bias.multiplied(factor), with_bias))
        if whole.bias is not None and change.bias is not None:
            torch.testing.assert_close(change.bias, factor * whole.bias, **close)


@pytest.mark.parametrize(
    ("left_out", "problem"),
    [
        ("algorithm", "without algorithm$"),
        ("table", "without table$"),
        ("in_comfy", "without in_comfy$"),
        ("additive", r"without its formula \(additive or sides\)$"),
        ("outer_v", "without the field outer_v$"),
        (None, None),
    ],
)
def test_a_kind_that_lacks_something_is_not_registered(left_out: str | None, problem: str | None) -> None:
    members: dict[str, Any] = {
        "algorithm": "own",
        "table": Table({"outer_u": "O", "outer_v": "I"}, alpha=None),
        "in_comfy": False,
        "additive": lambda layer: (),
    }
    fields = {name: torch.Tensor for name in ("outer_u", "outer_v") if name != left_out}
    members = {name: value for name, value in members.items() if name != left_out}
    members["__annotations__"] = fields
    kind = dataclasses.dataclass(frozen=True, eq=False, kw_only=True)(type("Own", (lyc.Layer,), members))
    if problem is None:
        check(kind)
    else:
        with pytest.raises(TypeError, match=problem):
            check(kind)


def test_a_kind_that_is_to_be_trained_needs_a_start() -> None:
    members: dict[str, Any] = {
        "algorithm": "own",
        "in_comfy": False,
        "sides": lambda layer, weight: None,
        "table": Table({"own": "O I"}, alpha=None),
        "__annotations__": {"own": torch.Tensor},
    }
    with pytest.raises(TypeError, match=r"without init$"):
        check(dataclasses.dataclass(frozen=True, eq=False, kw_only=True)(type("Own", (Trained,), members)))


@pytest.mark.parametrize(("axes", "says"), [("O rank", "cannot be read"), ("O r, sacled", "unknown note")])
def test_a_table_that_cannot_be_read_is_refused(axes: str, says: str) -> None:
    with pytest.raises(TypeError, match=f"^own.* {says}: "):
        Table({"own": axes}, alpha=None)


def test_a_variant_keeps_few_extents_and_answers_though_another_thread_clears_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cleared(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            """As if another thread cleared the results right after."""

    (variant,) = Table({"outer_u": "O", "outer_v": "I"}, alpha=None).each
    monkeypatch.setattr("lycoris_ops.algorithms.axes.KEPT", 4)
    for size in range(1, 10):
        assert variant.extent({"outer_u": (size,), "outer_v": (3,)}) == (size, 3)
    assert len(variant._extents) <= 4
    variant._extents = Cleared()
    assert variant.extent({"outer_u": (5,), "outer_v": (3,)}) == (5, 3)


STARTS = [
    (name, weight)
    for name in sorted(declaring(Trained))
    for weight, shape in WEIGHTS.items()
    # Every block of a BOFT has two halves.
    if (name == "norm") == (len(shape) == 1) and not (name == "boft" and shape[0] % 2)
    if name != "vera" or len(shape) == 2
]
"""(algorithm, weight) of all layers that can be made from a shape alone."""


@pytest.mark.parametrize(("name", "weight"), STARTS)
def test_init_starts_without_effect_and_by_seed(name: str, weight: str) -> None:
    shape = WEIGHTS[weight]
    # For these the rank says how large a block is, and blocks have to divide the outputs or inputs.
    rank = {"boft": 12, "oft": 6, "oftv2": 3, "boft_peft": 3}.get(name, 2)
    one, same, other = (ALGORITHMS[name].init(shape, rank, 1.0, seed=seed) for seed in (7, 7, 8))
    torch.testing.assert_close(one.delta(base(weight)), torch.zeros(shape, dtype=torch.float64))
    assert one.dump().keys() == same.dump().keys()
    assert all(torch.equal(tensor, same.dump()[key]) for key, tensor in one.dump().items())
    # The others start from zeros or ones, whatever the seed.
    if name in ("lora", "loha", "lokr", "glora", "singlora", "vera"):
        assert any(not torch.equal(tensor, other.dump()[key]) for key, tensor in one.dump().items())
        assert type(one).load(one.dump()).alpha == (None if name == "vera" else 1.0)


def test_init_of_a_kind_that_cannot_start_there_is_an_error() -> None:
    assert "tlora" not in lyc.trainable()
    with pytest.raises(lyc.LayerError, match="35"):
        ALGORITHMS["boft"].init((35, 21), 2, 1.0, seed=0)
    with pytest.raises(lyc.LayerError, match="13"):
        ALGORITHMS["oftv2"].init((12, 13), 4, 1.0, seed=0)
    with pytest.raises(lyc.LayerError, match="35"):
        ALGORITHMS["oft"].init((35, 21), 4, 1.0, seed=0)


APART = [(kind, weight) for kind, weight in MIXED if load(kind, weight, alpha=None).row_axes() is not None]
"""(kind, weight) of all layers whose rows do not depend on each other."""


@pytest.mark.parametrize(("kind", "weight"), APART)
def test_rows_of_a_layer_change_what_it_changes_there(kind: str, weight: str) -> None:
    """The halves of a layer are exchanged, which gives a layer of the same kind.

    It must make the changes of the whole layer, to weight and bias, with their halves exchanged.
    """
    one, met = load(kind, weight, alpha=None), base(weight)
    count, values = WEIGHTS[weight][0], torch.randn(WEIGHTS[weight][0], dtype=torch.float64)
    if "diff_b" in one.table.suffixes:
        one = dataclasses.replace(one, diff_b=torch.randn(count))
    half = next(n for n in range(count // 2, 0, -1) if count % n == 0)
    # A rotation can be cut only between its blocks, and its rank is their size.
    half = {"oft": one.rank or 1}.get(kind, half)
    order = [*range(half, count), *range(half)]
    # LoKr takes several ranges only where each is of whole blocks: it is cut in one place instead.
    rows = one.rows((half, count), (0, half)) if "lokr" not in kind else one.rows((1, count))
    order = order if "lokr" not in kind else [*range(1, count)]
    assert type(rows) is type(one)
    whole, part = one.change(met, values), rows.change(met[order], values[order])
    torch.testing.assert_close(part.delta, whole.delta[order])
    assert (part.bias is None) == (whole.bias is None)
    if whole.bias is not None:
        torch.testing.assert_close(part.bias, whole.bias[order])


CUT = [kind for kind, weight in CASES if weight == "linear" and load(kind, weight).column_axes() is not None]
"""All kinds whose layers can be cut by columns."""


@pytest.mark.parametrize("kind", CUT)
def test_columns_of_a_layer_change_what_it_changes_there(kind: str) -> None:
    one, met = load(kind, "linear", alpha=None), base("linear")
    for start, stop in ((0, 6), (5, 8)):
        part = one.columns((start, stop))
        torch.testing.assert_close(part.delta(met[:, start:stop]), one.delta(met)[:, start:stop])


def test_rows_of_a_kronecker_product() -> None:
    """Rows that are whole blocks cut a factor. Other rows become a full matrix."""
    one, met = load("lokr-full-low", "linear", alpha=None), base("linear")
    blocks = one.rows((8, 12), (0, 4))
    torch.testing.assert_close(blocks.delta(met[:8]), one.delta(met)[[*range(8, 12), *range(4)]])
    assert type(one).load(blocks.dump()).lokr_w1.shape == (2, 3)
    window = one.rows((1, 10)).rows((2, 5), (0, 1))
    torch.testing.assert_close(window.delta(met[:4]), one.delta(met)[[3, 4, 5, 1]])
    assert type(one).load(window.dump()).lokr_w2.shape == (4, 18)
    with pytest.raises(lyc.LayerError, match=r"\[4, 18\].*\[3, 18\]"):
        window.delta(met[:3])


@pytest.mark.parametrize(("kind", "weight"), MIXED)
def test_a_wrong_shape_is_an_error_that_shows_both(kind: str, weight: str) -> None:
    """The weight has one output too many, or one input where the layer does not know its outputs."""
    layer, shape = load(kind, weight), [*WEIGHTS[weight]]
    axis = next((axis for axis, size in enumerate(layer.extent) if size is not None), None)
    # A layer that knows neither side, such as SingLoRA's, knows the larger of both.
    shape[axis or 0] += 200 if axis is None else 1
    wrong = torch.zeros(shape)
    for attempt in (lambda: layer.delta(wrong), lambda: lyc.patch_(wrong, [(layer, 1.0)])):
        with pytest.raises(lyc.LayerError) as caught:
            attempt()
        assert str(list(wrong.shape)) in str(caught.value)
        assert str(WEIGHTS[weight][0]) in str(caught.value) or axis == 1


def test_another_kernel_of_the_same_size_does_not_fit() -> None:
    layer = ALGORITHMS["lora"].load(factors("lora", "conv2d-wide"))
    with pytest.raises(lyc.LayerError):
        layer.delta(torch.zeros(10, 6, 5, 1))


@pytest.mark.parametrize("kind", [("full", "diff_b"), ("norm", "b_norm")], ids=str)
def test_what_changes_a_bias_alone_changes_no_weight(kind: tuple[str, str]) -> None:
    layer = ALGORITHMS[kind[0]].load({kind[1]: torch.ones(12)})
    weight = base("conv2d", torch.float16)
    delta = layer.delta(weight)
    assert delta.shape == weight.shape and delta.dtype == torch.float32 and not delta.any()
    assert torch.equal(lyc.patch_(weight.clone(), [(layer, 1.0)]), weight)
    change = layer.change(weight)
    assert change.delta is None and change.bias is not None and change.bias.eq(1).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dora_leaves_what_has_no_direction_at_zero(axis: int, dtype: torch.dtype) -> None:
    """An output or an input that is zero in the weight and in the product has no norm to divide by.

    DoRA must leave it zero instead of making it NaN.
    """
    tensors = factors("lora-dora-out" if axis == 0 else "lora-dora-in", "linear")
    name = "lora_down.weight" if axis else "lora_up.weight"
    weight = base("linear", dtype)
    weight.select(axis, 2).zero_()
    tensors[name].select(axis, 2).zero_()
    layer = ALGORITHMS["lora"].load({**tensors, "dora_scale": tensors["dora_scale"] * 5})
    delta = layer.delta(weight)
    assert delta.isfinite().all() and not delta.select(axis, 2).any()
    sides = layer.sides(weight).change(weight)
    torch.testing.assert_close(sides, delta)
    assert not lyc.patch_(weight.clone(), [(layer, 1.0)]).select(axis, 2).any()


@pytest.mark.parametrize("on_input", [0, 1])
def test_factors_of_the_other_side_do_not_fit(on_input: int) -> None:
    layer = ALGORITHMS["ia3"].load({"weight": torch.ones(12), "on_input": torch.tensor(on_input)})
    right, wrong = ((20, 12, 3, 3), (12, 20, 3, 3)) if on_input else ((12, 20, 3, 3), (20, 12, 3, 3))
    layer.check_fit(right)
    with pytest.raises(lyc.LayerError, match=r"an ia3 layer does not fit.*12.*\[.*20.*\]"):
        layer.check_fit(wrong)


@pytest.mark.parametrize("on_input", [0, 1])
def test_factors_of_a_fused_layer_are_cut_where_they_are_of_outputs(on_input: int) -> None:
    """Factors of the inputs are for all rows, so they are not cut."""
    count = 8 if on_input else 12
    factor = torch.arange(1.0, count + 1)
    layer = ALGORITHMS["ia3"].load({"weight": factor, "on_input": torch.tensor(on_input)})
    weight = torch.ones(4, 8)
    patched = lyc.patch_(weight.clone(), [(lyc.Part(layer, window=(8, 12)), 1.0)])
    wanted = 1 + (factor if on_input else factor[8:, None])
    torch.testing.assert_close(patched, weight * wanted)
    if not on_input:
        with pytest.raises(lyc.LayerError, match=r"rows of an ia3 layer.*rows 9 to 13 of \[12, \*\]"):
            lyc.patch_(weight, [(lyc.Part(layer, window=(9, 13)), 1.0)])


@pytest.mark.parametrize(
    ("shapes", "rank"),
    [
        (((18, 24), (24, 18), (12, 24), (24, 18)), 24),
        (((4, 18), (18, 4), (4, 18), (12, 4)), 4),
        (((24, 18), (18, 24), (24, 18), (12, 24)), 24),
    ],
    ids=["above the inputs", "older", "older, above the inputs"],
)
def test_the_rank_of_glora_is_that_of_its_scale(shapes: tuple[tuple[int, int], ...], rank: int) -> None:
    """The rank is known even if it is larger than the number of inputs, and also in the older layout.

    In the older layout each pair of factors is the other way round.
    """
    parts = {
        f"{name}.weight": torch.randn(shape)
        for name, shape in zip(("a1", "a2", "b1", "b2"), shapes, strict=True)
    }
    plain = ALGORITHMS["glora"].load(parts)
    assert plain.rank == rank
    halved = ALGORITHMS["glora"].load({**parts, "alpha": torch.tensor(rank / 2)})
    weight = base("linear")
    torch.testing.assert_close(halved.delta(weight), plain.delta(weight) / 2)
