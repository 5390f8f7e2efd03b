"""Layers of a chosen kind and size nearest to a change, against decompositions in float64."""

from __future__ import annotations

import math
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import KINDS, WEIGHTS, base, factors, home, load
from torch import Tensor
from written import change, error, in_memory

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.algorithms.fitting import Delta, Offer
from lycoris_ops.changes.forms import Dense
from lycoris_ops.fit.engine import Source, fit_layers
from lycoris_ops.fit.settings import FitSettings
from lycoris_ops.maths.decompositions import Pause


def adapter(**layers: Any) -> Any:
    return in_memory("test", layers)


def optimal(values: Tensor, rank: int) -> float:
    """The error of the best matrix of a rank, by a float64 decomposition of the whole matrix."""
    spectrum = torch.linalg.svdvals(values.double().flatten(1))
    return (spectrum[rank:].square().sum() / spectrum.square().sum()).sqrt().item()


def dense(shape: tuple[int, ...], decay: float) -> Tensor:
    """A random matrix with singular values i^-decay."""
    rows, columns = shape[0], math.prod(shape[1:])
    count = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(size, count, dtype=torch.float64))[0] for size in (rows, columns)
    )
    spectrum = torch.arange(1, count + 1, dtype=torch.float64) ** -decay
    return ((left * spectrum) @ right.T).float().reshape(shape)


def fits(kind: str, values: Tensor, **options: Any) -> tuple[Offer, ...]:
    return ALGORITHMS[kind].fit(Delta((Dense(values.flatten(1)),), tuple(values.shape), **options))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(400, 640), (160, 96, 3, 3)], ids=str)
def test_a_lora_is_as_near_as_the_decomposition_in_float64(shape: tuple[int, ...], decay: float) -> None:
    values = dense(shape, decay)
    (fit,) = fits("lora", values, largest=32, scale=0.5)
    for rank in (1, 8, 32):
        layer = fit.layer(rank - 1)
        found = error(change(layer, shape), values)
        assert layer.rank == rank and layer.alpha == rank / 2
        assert found <= 1.02 * optimal(values, rank)
        kept = 1 - fit.kept[rank - 1] / values.double().square().sum().item()
        assert math.sqrt(kept) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize(("shape", "edge"), [((4, 4), 4 / math.sqrt(3) * 2), ((4, 2), 3.957198)], ids=str)
def test_singular_values_that_noise_could_have_are_left_out(shape: tuple[int, int], edge: float) -> None:
    """For a square matrix the edge is the 4 / sqrt(3) of the paper, times sqrt(n) and the noise."""
    for second, count in ((1.001 * edge, 2), (0.999 * edge, 1)):
        values = torch.zeros(shape)
        values[0, 0], values[1, 1] = 100.0, second
        delta = Delta((Dense(values),), shape, noise=1.0)
        assert delta.significant == count
        left = (shape[0] - count) * (shape[1] - count)
        assert delta.variance == pytest.approx(min(1.0, (second**2 if count == 1 else 0.0) / max(1, left)))


@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("kind", lyc.FITTED)
def test_what_is_kept_of_a_fit_is_as_large_as_it_says(kind: str, tucker: bool) -> None:
    """Fits of many layers are kept at once: none holds the whole change, or vectors that it leaves out."""
    values = dense((80, 96, 3, 3), 1.0)
    delta = Delta((Dense(values.flatten(1)),), (80, 96, 3, 3), largest=64, noise=2e-3, tucker=tucker)
    made, change = ALGORITHMS[kind].fit(delta), weakref.ref(delta)
    del delta
    assert change() is None
    for fit in made:
        held = [cell.cell_contents for cell in getattr(fit.make, "__closure__", ())]
        tensors = [one for one in held if isinstance(one, Tensor)]
        assert tensors and sum(one.untyped_storage().nbytes() for one in tensors) <= 1.5 * fit.held


@pytest.mark.parametrize(
    ("kind", "size"), [("lora", "auto"), ("full", "auto"), ("auto", lyc.Rank(3)), ("auto", "auto")], ids=str
)
def test_auto_makes_no_layer_larger_or_worse_than_it_is(kind: str, size: Any) -> None:
    """Not even with what the layer itself is not allowed: a higher rank, or no Tucker core."""
    made = {name: load(name, home(name)) for name in ("lokr-full-low", "loha", "lora-dora-out", "oft")}
    layers = {
        name.replace("-", "_"): one.with_tensors({k: t.half() for k, t in one.tensors().items()})
        for name, one in made.items()
    }
    weight = {f"diffusion_model.{name}.weight": base("conv2d") for name in layers}
    for options in ({}, {"largest": 1}, {"tucker": True}):
        source = adapter(**layers)
        found = lyc.resize_adapter(source, size, kind, weight, **options)
        assert found.size <= source.size
        for name, layer in found.layers.items():
            if not options and layer.algorithm not in ("lora", kind) and kind != "auto":
                own = source.layers[name].dump()
                assert all(torch.equal(tensor, own[key]) for key, tensor in layer.dump().items()), name
    (one,) = lyc.resize_adapter(adapter(a=layers["lokr_full_low"]), size, kind).layers.values()
    assert one.algorithm == "lokr"


def test_what_is_lost_comes_first_and_is_no_success() -> None:
    held = adapter(a=load("lokr-full-full", "linear"), b=load("lora", "linear"))
    kept = lyc.resize_adapter(held, lyc.Rank(12), "same")
    state, line = lyc.fit_verdict(kept)
    assert state == "all" and line == lyc.describe_fit(kept).splitlines()[0]
    assert re.fullmatch(r"\d\.\d\d kB: no smaller, and nothing is lost\.", line), line
    own = adapter(a=load("lora", "linear"))
    for size, words in (
        ("auto", "nothing smaller keeps as much"),
        (lyc.Rank(3), "no layer is larger than was asked for"),
    ):
        state, line = lyc.fit_verdict(lyc.resize_adapter(own, size))
        assert state == "nothing" and line.endswith(f"kB: stays as it was, {words}."), line
    for words in ("  1 lokr (rank full), from lokr\n", "  1 lora (rank 3), from lora 3\n"):
        assert words in lyc.describe_fit(kept)
    assert kept.report is not None
    reasons = {"c": "because it cannot be read", "d": "because its energy is not worth its size"}
    less = replace(kept, report=replace(kept.report, left_out=reasons))
    for name, reason in reasons.items():
        assert f"  1 left out, {reason}:\n    {name}" in lyc.describe_fit(less)
    lossy = lyc.resize_adapter(held, lyc.Rank(2))
    state, line = lyc.fit_verdict(lossy)
    assert lossy.report is not None and state == "partly"
    assert re.fullmatch(r"(\S+ → )?\S+ kB: (larger, and )?loses \S+ %\.", line), line
    assert lyc.describe_fit(lossy).startswith(line)
    lokr = adapter(a=load("lokr-full-full", "linear"))
    for grown, words in (
        (lyc.resize_adapter(lokr, lyc.Rank(12), dtype=torch.float32), "larger, and nothing is lost."),
        (lyc.resize_adapter(lokr, lyc.Rank(2), dtype=torch.float32), "larger, and loses"),
    ):
        state, line = lyc.fit_verdict(grown)
        assert state == ("all" if "nothing" in words else "partly") and re.match(
            rf"\S+ → \S+ kB: {words}", line
        ), line
    both = lyc.describe_fit(kept, lossy).splitlines()[0]
    assert both.startswith("2 files, ") and "test loses" in both.replace("larger, ", "")


@pytest.mark.parametrize("size", [lyc.Rank(2), lyc.Rank(8), "auto", lyc.Energy(0.9)], ids=str)
@pytest.mark.parametrize("kind", ["lora", "lokr", "full", "auto", "same"])
def test_a_layer_that_changes_nothing_is_left_out(kind: str, size: Any) -> None:
    """Also where it is of the kind and no larger than what is asked for."""
    layer = load("lora", "linear")
    nothing = layer.with_tensors({"lora_up": torch.zeros(12, layer.rank or 1)})
    size = lyc.Rank(4) if isinstance(size, lyc.Energy) and kind == "lokr" else size
    made = lyc.resize_adapter(adapter(a=layer, zero=nothing), size, kind)
    assert list(made.layers) == ["lora_unet_a"]
    assert made.report is not None and list(made.report.left_out) == ["lora_unet_zero"]


def test_no_layer_of_the_source_is_kept_while_others_are_measured() -> None:
    """A full difference is as large as the weight, and an adapter of them as the model."""
    alive: weakref.WeakSet[lyc.Layer] = weakref.WeakSet()

    def read(pause: Pause) -> Delta:
        layer = load("full", "linear")
        alive.add(layer)
        return Delta(layer.additive() or (), shape, own=layer)

    shape = WEIGHTS["linear"]
    sources = [Source(name, shape, read, "full", torch.float32, kind="full") for name in "abcdef"]
    most: list[int] = []
    settings = FitSettings(lyc.Ratio(1), "same")
    layers, _ = fit_layers(sources, settings, progress=lambda *_: most.append(len(alive)))
    assert max(most[: len(sources)]) <= 1
    assert {layer.algorithm for layer in layers.values()} == {"full"}


@pytest.mark.parametrize("size", [lyc.Rank(12), lyc.Ratio(1), "auto"], ids=str)
@pytest.mark.parametrize("kind", ["lora", "auto", "same"])
def test_no_layer_has_a_rank_above_the_highest_one(kind: str, size: Any) -> None:
    """Not even the source's own, which is of the kind and no larger than what is asked for."""
    up, down = torch.randn(64, 12), torch.randn(12, 64)
    source = adapter(
        a=ALGORITHMS["lora"].load({"lora_up.weight": up, "lora_down.weight": down}),
        zero=ALGORITHMS["lora"].load({"lora_up.weight": up * 0, "lora_down.weight": down}),
    )
    for made in (
        lyc.resize_adapter(source, size, kind, largest=5),
        lyc.resize_adapter(source, lyc.Rank(5), kind),
    ):
        assert max(layer.rank or 0 for layer in made.layers.values()) <= 5


@pytest.mark.parametrize("kind", [k for k, spec in KINDS.items() if spec.additive and not spec.flat])
def test_every_kind_becomes_a_lora_of_its_own_change(kind: str) -> None:
    """At the full rank nothing is lost, and at a lower one no more than by the best matrix of that rank."""
    weight, shape = home(kind), WEIGHTS[home(kind)]
    source = load(kind, weight)
    wanted = change(source, shape)
    full = lyc.resize_adapter(adapter(a=source), lyc.Rank(12), dtype=torch.float32)
    assert error(change(full.layers["lora_unet_a"], shape), wanted) < 1e-5
    low = lyc.resize_adapter(adapter(a=source), lyc.Rank(2), dtype=torch.float32)
    layer = low.layers["lora_unet_a"]
    assert layer.algorithm == "lora" and layer.rank == 2
    found = error(change(layer, shape), wanted)
    assert found == pytest.approx(optimal(wanted, 2), rel=1e-3)
    assert low.report is not None and low.report.error == pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize("kind", [k for k, spec in KINDS.items() if not spec.additive and k != "full-set"])
def test_a_kind_that_depends_on_the_weight_needs_the_base(kind: str) -> None:
    weight = home(kind)
    source = load(kind, weight)
    held = adapter(a_attn=source)
    with pytest.raises(lyc.LayerError, match=r"needs the base model"):
        lyc.resize_adapter(held, lyc.Rank(4))
    met = base(weight)
    found = lyc.resize_adapter(
        held, lyc.Rank(12), base={"diffusion_model.a.attn.weight": met}, dtype=torch.float32
    )
    wanted = source.delta(met)
    assert error(change(found.layers["lora_unet_a_attn"], tuple(met.shape)), wanted) < 1e-5


def test_what_is_of_the_kind_and_no_larger_stays_bit_by_bit() -> None:
    held = adapter(a=load("lora", "linear"), b=load("lokr-full-low", "conv2d"), n=load("norm", "norm"))
    again = lyc.resize_adapter(held, lyc.Rank(3), "same")
    assert {name: layer.algorithm for name, layer in again.layers.items()} == {
        "lora_unet_a": "lora",
        "lora_unet_b": "lokr",
        "lora_unet_n": "norm",
    }
    for name, layer in held.layers.items():
        for suffix, tensor in layer.dump().items():
            assert torch.equal(tensor, again.layers[name].dump()[suffix])
    assert again.report is not None and again.report.error == 0


@pytest.mark.parametrize(
    "words", ["a caption, " * 1000, '"' * 9000, "ä" * 9000], ids=["plain", "quoted", "accents"]
)
def test_a_budget_in_bytes_counts_metadata_as_a_file_holds_them(tmp_path: Path, words: str) -> None:
    init = ALGORITHMS["lora"].init
    layers = {
        f"lora_unet_{name}": init((200, 160), 48, 48.0, seed=seed).with_tensors(
            {"lora_up": torch.randn(200, 48)}
        )
        for seed, name in enumerate("abcd")
    }
    held = lyc.Adapter.of(layers, name="test", metadata={"ss_tag_frequency": words})
    size = 60_000 + len(words.encode()) * (2 if words[0] == '"' else 1)
    made = lyc.resize_adapter(held, lyc.Budget(size), dtype=torch.float32)
    path = lyc.save_adapter(made, tmp_path / "made.safetensors", "kohya").path
    # A rank more of a layer is 1440 bytes.
    assert 0.98 * size - 1440 <= Path(path).stat().st_size <= size


@pytest.mark.parametrize("kind", ["lora", "lokr", "full", "auto"])
def test_a_small_budget_in_bytes_is_not_exceeded_by_the_header(tmp_path: Path, kind: str) -> None:
    layers = {f"a_layer_of_a_long_name_{n}": load("full", ("linear", "conv2d")[n % 2]) for n in range(8)}
    made = {
        name: layer.with_bias_change(torch.randn(12)) if number < 4 else layer
        for number, (name, layer) in enumerate(layers.items())
    }
    resized = lyc.resize_adapter(
        adapter(**made), lyc.Budget(12_000), kind, dtype=torch.float16, tucker=True, largest=12
    )
    path = lyc.save_adapter(resized, tmp_path / "made.safetensors", "kohya").path
    assert Path(path).stat().st_size <= 12_000


def test_alpha_follows_the_rank_and_biases_stay() -> None:
    shape = WEIGHTS["linear"]
    source = ALGORITHMS["lora"].load(
        {
            **factors("lora", "linear", rank=8, alpha=2.0),
            "diff_b": torch.randn(12),
            "lora_B.bias": torch.randn(12),
        }
    )
    made = lyc.resize_adapter(adapter(a=source), lyc.Rank(2), dtype=torch.float32).layers["lora_unet_a"]
    assert made.alpha == 0.5
    bias = source.change(torch.zeros(shape)).bias
    torch.testing.assert_close(made.change(torch.zeros(shape)).bias, bias)


@pytest.mark.parametrize("split", [(4, 6), (2, 3)], ids=str)
def test_a_lokr_is_found_again_and_is_the_nearest_kronecker_product(split: tuple[int, int]) -> None:
    w1, w2 = torch.randn(split), torch.randn(24 // split[0], 36 // split[1], 3, 3)
    values = torch.kron(w1[..., None, None], w2)
    noisy = values + 0.3 * torch.randn(values.shape)
    for matrix in (values, noisy):
        found = fits("lokr", matrix, split=split, largest=4)
        fit = next(f for f in found if f.ranks == (None,) and f.parameters == (w1.numel() + w2.numel(),))
        made = change(fit.layer(0), tuple(values.shape))
        # By Van Loan and Pitsianis: the singular values of the blocks, each as a row.
        rows = [block.flatten() for row in matrix.chunk(split[0], 0) for block in row.chunk(split[1], 1)]
        assert error(made, matrix) == pytest.approx(optimal(torch.stack(rows), 1), abs=1e-5)


def test_a_convolution_gets_a_tucker_core_with_its_singular_values() -> None:
    shape = WEIGHTS["conv2d"]
    source = load("lora-tucker", "conv2d", rank=4)
    wanted = change(source, shape)
    made = lyc.resize_adapter(
        adapter(a=lyc.ALGORITHMS["full"].load({"diff": wanted.float()})),
        lyc.Rank(4),
        tucker=True,
        dtype=torch.float32,
    )
    layer = made.layers["lora_unet_a"]
    assert set(layer.dump()) == {"lora_up.weight", "lora_mid.weight", "lora_down.weight", "alpha"}
    assert error(change(layer, shape), wanted) < 1e-5


def test_an_impossible_factor_names_the_possible_ones() -> None:
    assert FitSettings(lyc.Rank(4), "lokr", factor=-1).factor == -1
    for factor in (0, -2, 2.0):
        with pytest.raises(lyc.PlanError, match=r"factor is a whole number from 1, or -1 for the most even"):
            FitSettings(lyc.Rank(4), "lokr", factor=factor)  # type: ignore[arg-type]


def test_a_size_of_its_own_kind_that_no_layer_can_have_is_refused_with_a_way_on() -> None:
    """An orthogonal layer can become another kind, but norms and biases have no other size."""
    turned = adapter(a=load("oft", "linear"), b=load("boft", "linear"), c=load("norm", home("norm")))
    with pytest.raises(lyc.PlanError) as error:
        lyc.resize_adapter(turned, lyc.Rank(2), "same")
    assert error.value.got == "boft, norm, oft" and "such as lora" in (error.value.hint or "")
    assert error.value.expected == ", ".join(lyc.FITTED)
    with pytest.raises(lyc.PlanError, match="layers of these kinds cannot be resized") as error:
        lyc.resize_adapter(adapter(c=load("norm", home("norm"))), lyc.Rank(2))
    assert error.value.got == "norm" and error.value.hint is None
