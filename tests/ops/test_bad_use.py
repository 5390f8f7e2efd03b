"""Faults of a layer or a file that show only when it is used: the error names file, layer and weight."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from layers import factors
from safetensors.torch import save_file
from torch import nn
from written import adapter, resolved

import lycoris_ops as lyc
from lycoris_ops.bypass.geometry import Geometry
from lycoris_ops.commands import main
from lycoris_ops.stack.kept_plans import kept_plan
from lycoris_ops.train.settings import LayerOptions, LayerSettings

ROOT = Path(lyc.__file__).parents[1]

KEY, NAME = "diffusion_model.a.c.weight", "lora_unet_a_c"
SAYS = {
    "an alpha that is no number": (factors("lora", "linear", alpha=math.nan), "alpha is not a finite number"),
    "one of a rotation": (factors("oft", "linear", alpha=math.nan), "alpha is not a finite number"),
    "one of DoRA": (factors("lora-dora-out", "linear", alpha=math.inf), "alpha is not a finite number"),
    "one that float32 does not hold": (
        {**factors("lora", "linear", alpha=None), "alpha": torch.tensor(1e300, dtype=torch.float64)},
        r"alpha is too large.*1e\+300.*3.4e\+38",
    ),
    **{
        f"a product that overflows, {kind}": (
            {key: torch.full_like(part, 1e30) for key, part in factors(kind, "linear", alpha=None).items()},
            r"the change of a layer overflows.*3.4e\+38, the largest float32",
        )
        for kind in ("lora", "loha", "lokr-low-low", "glora")
    },
    "a value that float32 does not hold": (
        {"diff": torch.full((12, 18), 1e300, dtype=torch.float64)},
        "the change of a layer overflows",
    ),
}
"""Layers whose fault shows when they meet a weight, and what the error says of it."""
BEFORE = {
    "factors for the other side": (
        {"weight": torch.ones(18), "on_input": torch.tensor(0)},
        r"an ia3 layer does not fit the weight.*\[18, \*\].*\[12, 18\]",
    ),
    "a side that is not said": (
        {"ia3_l": torch.ones(1, 18, 1, 1)},
        "whether an ia3 layer of a convolution is for inputs or outputs",
    ),
    "a T-LoRA without its start": (factors("tlora", "linear"), "no sig_type.*principal or last or middle"),
}
"""Layers whose fault the header of a file does not show, but which is known before a weight is there."""


@pytest.mark.parametrize("case", SAYS)
def test_an_error_at_use_names_file_layer_and_weight(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    """The fault is met by a patch, by a kept plan, by a bypass, and by `bake` on the command line."""
    layer, says = SAYS[case]
    bad = adapter(tmp_path, {NAME: layer})
    path = bad.path
    save_file({KEY: torch.randn(12, 18)}, tmp_path / "base.safetensors")
    pairs = resolved(bad, {KEY: (12, 18)}).pairs()[KEY]
    parts = [(match.read(entry.adapter), 1.0) for entry, match in pairs]
    with pytest.raises(lyc.LayerError, match=f"{path}: {NAME}: .*({says})"):
        lyc.patch_(torch.randn(12, 18), parts)

    def apply_kept() -> None:
        plan = kept_plan((12, 18), pairs)
        plan.apply_(torch.randn(12, 18), plan.tensors, plan.strengths)

    with pytest.raises(lyc.LayerError, match=f"{path}: {NAME}: .*({says})"):
        apply_kept()
    plan = lyc.BypassPlan.build(geometry(), parts)
    with pytest.raises(lyc.LayerError, match=f"{path}: {NAME} on a.c: .*({says})"):
        lyc.Bypass(torch.nn.Linear(18, 12), plan, name="a.c").meet(torch.float32, torch.device("cpu"))
    out = tmp_path / "out.safetensors"
    assert main(["bake", str(tmp_path / "base.safetensors"), "--adapter", path, "-o", str(out)]) == 2
    assert capfd.readouterr().err.startswith(f"error: {path}: {NAME} on {KEY}: ")
    assert not out.exists()


@pytest.mark.parametrize("case", BEFORE)
def test_an_error_that_needs_no_weight_comes_when_the_plan_is_made(tmp_path: Path, case: str) -> None:
    layer, says = BEFORE[case]
    bad = adapter(tmp_path, {NAME: layer})
    pairs = resolved(bad, {KEY: (12, 18)}).pairs()[KEY]
    parts = [(match.read(entry.adapter), 1.0) for entry, match in pairs]
    for make in (lambda: kept_plan((12, 18), pairs), lambda: lyc.BypassPlan.build(geometry(), parts)):
        with pytest.raises(lyc.LayerError, match=f"{bad.path}: {NAME}: .*{says}"):
            make()


def test_what_is_wrong_with_a_rebuilt_weight_is_told_by_its_layer() -> None:
    """A change that overflows in a network that is frozen, and a weight of another size."""
    module = nn.Sequential(nn.Linear(18, 12, bias=False))
    network = lyc.create_lycoris(module, algorithm="lora", form="rebuilt", seed=0).apply_to()
    for value in network.requires_grad_(False).parameters():
        value.fill_(1e30)
    with pytest.raises(lyc.LayerError, match=r"^0: the change of a layer overflows"):
        module(torch.zeros(1, 18))
    network.restore()
    lyc.create_lycoris(module, algorithm="ia3", form="rebuilt", seed=0).apply_to()
    module[0].weight = nn.Parameter(torch.zeros(15, 18))
    with pytest.raises(lyc.LayerError, match=r"^0: an ia3 layer does not fit.*\[12, \*\].*\[15, 18\]"):
        module(torch.zeros(1, 18))


def geometry() -> Geometry:
    found = lyc.geometry_of(torch.nn.Linear(18, 12))
    assert not isinstance(found, str)
    return found


def test_rows_that_cannot_be_changed_alone_name_their_layer() -> None:
    layer = lyc.ALGORITHMS["oft"].load(factors("oft", "linear"))
    part = lyc.Part(layer, (0, 5), (0, 5), "x.safetensors", NAME)
    with pytest.raises(lyc.LayerError, match=rf"^x\.safetensors: {NAME}: .*part of its rows"):
        lyc.patch_(torch.zeros(5, 18), [(part, 1.0)])


def test_a_layer_that_enlarges_another_weight_is_named() -> None:
    layer = lyc.ALGORITHMS["lora"].load(
        {
            "lora_up.weight": torch.zeros(6, 2),
            "lora_down.weight": torch.zeros(2, 4),
            "reshape_weight": torch.tensor([6, 4]),
        }
    )
    part = lyc.Part(layer, file="x.safetensors", key=NAME)
    with pytest.raises(lyc.LayerError, match=rf"^x\.safetensors: {NAME}: .*smaller than the weight"):
        lyc.patch_(torch.zeros(12, 18), [(part, 1.0)])


OVERFLOWING = {
    "additive": {
        "lora_up.weight": torch.full((12, 1), 300.0),
        "lora_down.weight": torch.full((1, 18), 600.0),
    },
    "dependent": {"set_weight": torch.full((12, 18), 1.8e5)},
}
"""Changes of 1.8e5, which float32 and bfloat16 hold and float16 does not."""


@pytest.mark.parametrize("case", OVERFLOWING)
def test_a_change_beyond_float16_is_an_error_on_float16_alone(case: str) -> None:
    kind = "lora" if case == "additive" else "full"
    layer = lyc.ALGORITHMS[kind].load(OVERFLOWING[case])
    part = lyc.Part(layer, file="x.safetensors", key=NAME)
    weight = torch.randn(12, 18).half()
    kept = weight.clone()
    with pytest.raises(lyc.LayerError, match=rf"^x\.safetensors: {NAME}: .*6.55e\+04, the largest float16"):
        lyc.patch_(weight, [(part, 1.0)])
    assert torch.equal(weight, kept)
    # At these strengths, and in these dtypes, it fits.
    for strength, dtype in ((0.1, torch.float16), (1.0, torch.bfloat16), (1.0, torch.float32)):
        patched = lyc.patch_(kept.to(dtype, copy=True), [(part, strength)])
        wanted = kept.double() + strength * (1.8e5 - (kept.double() if kind == "full" else 0))
        torch.testing.assert_close(patched.double(), wanted, rtol=5e-3, atol=0)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr-full-low", "lora-dora-out", "glora", "oft", "tlora"])
def test_values_of_a_weight_that_are_not_finite_stay_the_users_own(kind: str) -> None:
    """What the layer does to the other rows is as without the infinity, where rows do not depend on it."""
    weight = torch.randn(12, 18)
    broken = weight.clone()
    broken[11, 0] = math.inf
    layer = lyc.ALGORITHMS[kind.partition("-")[0]].load(factors(kind, "linear", alpha=None))
    if kind == "tlora":
        # It needs the singular vectors of the weight.
        with pytest.raises(lyc.LayerError, match="NaN or infinity"):
            dataclasses.replace(layer, sig_type="last").delta(broken)
        return
    patched, whole = lyc.patch_(broken, [(layer, 1.0)]), lyc.patch_(weight.clone(), [(layer, 1.0)])
    assert not torch.isfinite(patched[11, 0])
    torch.testing.assert_close(patched[:8], whole[:8])


def test_one_layer_of_a_stack_that_overflows_is_the_one_that_is_named() -> None:
    good = lyc.Part(lyc.ALGORITHMS["lora"].load(factors("lora", "linear")), file="good.safetensors", key="a")
    loud = {key: part * 1e25 for key, part in factors("loha", "linear", alpha=None).items()}
    bad = lyc.Part(lyc.ALGORITHMS["loha"].load(loud), file="bad.safetensors", key="b")
    weight = torch.randn(12, 18)
    kept = weight.clone()
    with pytest.raises(lyc.LayerError, match=r"^bad\.safetensors: b: .*overflows"):
        lyc.patch_(weight, [(good, 1.0), (bad, -0.5), (good, 2.0)])
    assert torch.equal(weight, kept)


def test_a_change_that_overflows_is_neither_merged_nor_resized(tmp_path: Path) -> None:
    bad = adapter(tmp_path, {NAME: SAYS["a product that overflows, lora"][0]})
    for make in (
        lambda: lyc.merge_adapters([(bad, 1.0), (bad, 2.0)], "average"),
        lambda: lyc.resize_adapter(bad, lyc.Rank(2)),
    ):
        with pytest.raises(lyc.LayerError, match=f"{NAME}: the change of a layer overflows"):
            make()


def test_a_step_that_overflows_is_an_error_even_if_the_change_would_not() -> None:
    """The scale is multiplied into one of the factors, before the other makes the product small."""
    tensors = {"lora_up.weight": torch.full((12, 1), 1e-30), "lora_down.weight": torch.full((1, 18), 1e30)}
    layer = lyc.ALGORITHMS["lora"].load({**tensors, "alpha": torch.tensor(1e20)})
    with pytest.raises(lyc.LayerError, match="overflows"):
        lyc.patch_(torch.zeros(12, 18), [(layer, 1.0)])
    assert layer.delta(torch.zeros(12, 18)).isfinite().all()


@pytest.mark.parametrize("strength", [math.nan, math.inf, 1e300])
def test_a_strength_that_is_no_usable_number_is_an_error(strength: float) -> None:
    weight = torch.zeros(12, 18)
    with pytest.raises(lyc.LayerError, match="strength of a layer is not a usable number"):
        lyc.patch_(weight, [(lyc.ALGORITHMS["full"](diff=torch.ones(12, 18)), strength)])
    assert not weight.any()


def test_what_is_given_in_place_of_an_adapter_a_layer_or_a_path_is_named(tmp_path: Path) -> None:
    file = str(adapter(tmp_path, {"lora_unet_a": {"lora_down.weight": torch.ones(2, 18)}}).path)
    nan = adapter(tmp_path, {"lora_unet_a": factors("lora", "linear", alpha=math.nan)}, name="nan")
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(18, 12), "b": torch.nn.Embedding(4, 6)})
    none = tmp_path / "none"
    none.mkdir()
    stack = lyc.Stack()
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: lyc.merge_adapters([file], "linear"), "entries alone .found str; expected such as Entry"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.Entry(file), "no adapter .found str; expected what load_adapter returns"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.Entry(nan, "1"), "finite number .found '1'; expected such as 0.8"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.Entry(nan, factors=1.0), "factors are not a list of numbers .found 1.0"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.Entry(nan, rules="a = 1"), "rules of an entry .* expected Rules"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.create_lycoris(model, multiplier="1"), "finite number .found '1'"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.TrainOptions(step=1), r"training .found step; expected steps, .* Is it steps\?"),  # pyright: ignore[reportCallIssue]
        (lambda: lyc.TrainOptions(steps=1, learning_rate=1), "Here it is called lr"),  # pyright: ignore[reportCallIssue]
        (lambda: lyc.create_lycoris(model, linear_dim=4), "Here it is called rank"),  # pyright: ignore[reportCallIssue]
        (lambda: lyc.load_adapter(none), f"{none}: the folder holds no adapter of PEFT, diffusers or mlx-lm"),
        (lambda: lyc.merge_checkpoint(none / "x", stack, none / "y"), "x: there is no such file"),
        (
            lambda: lyc.create_lycoris(model, weights=file, prefix="lora_unet_"),
            f"{file}: lora_unet_a: a layer of the file cannot be read .found a lora layer without lora_up",
        ),
        (lambda: lyc.create_lycoris(model, weights=nan), f"{nan.path}: a: alpha is not a finite number"),
        (
            lambda: lyc.create_lycoris(torch.nn.ModuleDict({"m": model}), include="a"),
            r"whole path: \*\.a matches every path that ends in it",
        ),
        (lambda: lyc.create_lycoris(model.state_dict()), "the model is not a module .found OrderedDict"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.create_lycoris(model, weights=model.state_dict()), "found OrderedDict; expected a path"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.resolve(nan, {}), "no stack of adapters .found Adapter; expected such as Stack"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.merge_checkpoint(none, [], none), "no stack of adapters .found list"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.resolve(stack, torch.nn.Linear(2, 2)), "keys and shapes .*found Linear"),  # pyright: ignore[reportArgumentType]
        (lambda: lyc.create_lycoris(model, tokens=[1]), "a head, which has to be named"),
        (lambda: lyc.create_lycoris(model, include="b", tokens=[1, 1]), "b: .* 1 of them different"),
    ]
    for run, says in wrong:
        with pytest.raises(lyc.LycorisError, match=says):
            run()
    asked = lyc.Stack([lyc.Entry(adapter(tmp_path, {"lora_unet_a": factors("lora", "linear")}))])
    # The tensors of a state dict count as their shapes.
    found = lyc.resolve(asked, model.state_dict())  # pyright: ignore[reportArgumentType]
    assert found.pairs().keys() == {"a.weight"}


def test_a_network_says_that_its_file_has_no_scale(tmp_path: Path) -> None:
    found = adapter(tmp_path, {"base_model.model.a": factors("lora", "linear", alpha=None)})
    network = lyc.create_lycoris(torch.nn.ModuleDict({"a": torch.nn.Linear(18, 12)}), weights=found)
    said = "1 layer of source.safetensors at scale 1, such as base_model.model.a: the file has no alpha"
    assert said in network.report


def test_type_checkers_know_the_options_of_a_network(tmp_path: Path) -> None:
    pytest.importorskip("basedpyright")
    calls = ("dora='output'", "input_droput=0.1", "lora_alpha=4", "dora='sideways'")
    lines = [f"lyc.create_lycoris(nn.Linear(2, 2), rank=4, {call})" for call in calls]
    text = "\n".join(
        ["import lycoris_ops as lyc", "from torch import nn", *lines, "lyc.TrainOptions(step=4)"]
    )
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    command = (sys.executable, "-m", "basedpyright", "--level", "error", "--outputjson", "script.py")
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [one["range"]["start"]["line"] for one in found] == [3, 4, 5, 6], done.stdout


def test_the_typed_options_are_the_fields_of_the_settings() -> None:
    named = {field.name for field in dataclasses.fields(LayerSettings)}
    assert get_type_hints(LayerOptions).items() <= get_type_hints(LayerSettings).items()
    assert named - LayerOptions.__annotations__.keys() == {"algorithm", "rank", "alpha"}
