"""What holds for every registered algorithm, whatever it computes."""

from __future__ import annotations

import pytest
import torch
from layers import CASES, KINDS, WEIGHTS, factors

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS, detect

CASE_IDS = [f"{kind}-{weight}" for kind, weight in CASES]


def load(kind: str, weight: str, **options: object) -> lyc.Layer:
    algorithm = ALGORITHMS[KINDS[kind].algorithm]
    return algorithm.load(factors(kind, weight, **options))  # type: ignore[arg-type]


def test_every_variant_of_every_algorithm_is_tested() -> None:
    tested = {frozenset(spec.make((12, 18, 3), 3)) for spec in KINDS.values()}
    assert tested == {variant for kind in ALGORITHMS.values() for variant in kind.variants}


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_algorithm_detects_a_key_set(kind: str) -> None:
    keys = factors(kind, "conv2d")
    assert [name for name, cls in ALGORITHMS.items() if cls.accepts(keys)] == [KINDS[kind].algorithm]
    assert detect(keys) is ALGORITHMS[KINDS[kind].algorithm]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_or_a_missing_key_is_detected_by_none(kind: str) -> None:
    keys = factors(kind, "conv2d", alpha=None)
    assert detect([*keys, "dora_scale"]) is None
    lora_without_core = {"lora_up.weight", "lora_down.weight"}
    for key in keys:
        rest = set(keys) - {key}
        assert detect(rest) is None or rest == lora_without_core or key == "lokr_t2"


@pytest.mark.parametrize(("kind", "weight"), CASES, ids=CASE_IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_load_and_dump_are_inverses(kind: str, weight: str, dtype: torch.dtype) -> None:
    stored = {
        key: tensor if key == "alpha" else tensor.to(dtype) for key, tensor in factors(kind, weight).items()
    }
    dumped = ALGORITHMS[KINDS[kind].algorithm].load(stored).dump()
    assert dumped.keys() == stored.keys()
    for key, tensor in stored.items():
        assert dumped[key].dtype == tensor.dtype
        assert torch.equal(dumped[key], tensor)


@pytest.mark.parametrize("alpha", [None, 0.3, 4.0, 1e12, 2 / 3])
def test_alpha_survives_exactly(alpha: float | None) -> None:
    layer = ALGORITHMS["lora"].load(factors("lora", "linear", alpha=None))
    layer = type(layer)(**{**vars(layer), "alpha": alpha})
    assert type(layer).load(layer.dump()).alpha == alpha


@pytest.mark.parametrize(("kind", "weight"), CASES, ids=CASE_IDS)
def test_delta_has_the_weights_shape_and_the_compute_dtype(kind: str, weight: str) -> None:
    layer = load(kind, weight)
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        delta = layer.delta(torch.zeros(WEIGHTS[weight], dtype=dtype))
        assert delta.shape == WEIGHTS[weight]
        assert delta.dtype == expected
        assert delta.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_alpha_over_rank_is_applied_once(kind: str) -> None:
    shape = WEIGHTS["conv2d"]
    plain = factors(kind, "conv2d", rank=4, alpha=None)
    algorithm = ALGORITHMS[KINDS[kind].algorithm]
    whole = algorithm.load(plain).delta(torch.zeros(shape, dtype=torch.float64))
    scaled = algorithm.load({**plain, "alpha": torch.tensor(1.0)})
    expected = whole if kind == "lokr-full-full" else whole / 4
    torch.testing.assert_close(scaled.delta(torch.zeros(shape, dtype=torch.float64)), expected)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_init_starts_without_effect_and_by_seed(name: str, weight: str) -> None:
    shape = WEIGHTS[weight]
    one, same, other = (ALGORITHMS[name].init(shape, 2, 1.0, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.delta(torch.zeros(shape)), torch.zeros(shape))
    assert one.dump().keys() == same.dump().keys()
    assert all(torch.equal(tensor, same.dump()[key]) for key, tensor in one.dump().items())
    assert any(not torch.equal(tensor, other.dump()[key]) for key, tensor in one.dump().items())
    assert ALGORITHMS[name].load(one.dump()).alpha == 1.0


@pytest.mark.parametrize(("kind", "weight"), CASES, ids=CASE_IDS)
def test_a_wrong_shape_is_an_error_that_shows_both(kind: str, weight: str) -> None:
    layer = load(kind, weight)
    wrong = torch.zeros(WEIGHTS[weight][0] + 1, *WEIGHTS[weight][1:])
    for attempt in (lambda: layer.delta(wrong), lambda: lyc.patch_(wrong, [(layer, 1.0)])):
        with pytest.raises(lyc.LayerError) as caught:
            attempt()
        assert str(list(wrong.shape)) in str(caught.value)
        assert str(WEIGHTS[weight][0]) in str(caught.value)


def test_another_kernel_of_the_same_size_does_not_fit() -> None:
    layer = ALGORITHMS["lora"].load(factors("lora", "conv2d-wide"))
    with pytest.raises(lyc.LayerError):
        layer.delta(torch.zeros(10, 6, 5, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_alpha_that_is_not_finite_is_an_error_where_it_counts(bad: float) -> None:
    with pytest.raises(lyc.LayerError, match="alpha"):
        load("lora", "linear", alpha=bad).delta(torch.zeros(WEIGHTS["linear"]))
    full = load("lokr-full-full", "linear", alpha=bad)
    assert torch.isfinite(full.delta(torch.zeros(WEIGHTS["linear"]))).all()


@pytest.mark.parametrize(
    ("kind", "key", "shape"),
    [
        ("lora", "lora_up.weight", (12, 4)),
        ("lora-tucker", "lora_mid.weight", (3, 4, 3, 3)),
        ("loha", "hada_w2_a", (12, 4)),
        ("loha", "hada_w2_b", (3, 17)),
        ("loha-tucker", "hada_t2", (4, 3, 3, 3)),
        ("lokr-low-full", "lokr_w1_b", (4, 3)),
        ("lokr-full-low", "lokr_w2_a", (4, 4)),
        ("lokr-full-tucker", "lokr_t2", (4, 3, 3, 3)),
        ("lora", "lora_up.weight", (12,)),
        ("lora", "lora_down.weight", (0, 18)),
    ],
)
def test_factors_that_contradict_each_other_are_an_error(kind: str, key: str, shape: tuple[int, ...]) -> None:
    weight = "conv2d" if KINDS[kind].needs_kernel else "linear"
    tensors = {**factors(kind, weight), key: torch.zeros(shape)}
    with pytest.raises(lyc.LayerError):
        ALGORITHMS[KINDS[kind].algorithm].load(tensors)
