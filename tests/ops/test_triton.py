"""The Triton path: its kernel in Triton's interpreter, and what happens where the path cannot run.

Tests that need Triton imported in a certain way start a process of their own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import children
import pytest
import torch
from layers import KINDS, WEIGHTS, load
from rounding import assert_one_rounding
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.patch import registry
from lycoris_ops.patch.paths import triton as triton_fused

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: it has no wheel here"
)


def python(*arguments: str, interpret: bool) -> str:
    """Run a new Python interpreter, and return what it prints.

    TRITON_INTERPRET must be set before Triton is imported.
    """
    return children.python(
        *arguments, PYTHONPATH=f"{ROOT}{os.pathsep}{HERE}", TRITON_INTERPRET=str(int(interpret))
    )


SMALL_TILES = "TestSmallTiles and not (fused or strides or kronecker)"
"""Many cases that differ little from those of the usual tiles."""
ONE_FORM = "small_beside and (low-rank or hadamard or kronecker or full or sparse or dependent)"
"""The kernel adds layers of all forms to one sum, and a case with all forms at once is run as well."""
LEFT_OUT = f"({SMALL_TILES}) or ({ONE_FORM})"


# The interpreter is slow.
@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("chosen", [f"not ({LEFT_OUT})", pytest.param(LEFT_OUT, marks=pytest.mark.soak)])
def test_the_kernel_in_the_interpreter(chosen: str) -> None:
    arguments = ("-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py"), "-k", chosen)
    assert " passed" in python("-m", "pytest", *arguments, interpret=True)


PATCHED = """
import sys
import torch, lycoris_ops as lyc
from layers import load
base, pairs = torch.randn(12, 18), [(load(kind, "linear"), 0.5) for kind in ("lora", "loha", "oft")]
lyc.patch_(base.clone(), pairs)
print(lyc.patch_report(base, pairs))
print("triton" in sys.modules, torch.cuda.is_initialized())
"""


def test_importing_and_patching_on_the_cpu_load_no_triton() -> None:
    printed = python("-c", PATCHED, interpret=False)
    assert "not triton: for cuda, and the weight is on cpu" in printed
    assert printed.splitlines()[-1] == "False False"


NEEDS: Callable[[], str | None] = triton_fused._needs.__wrapped__  # pyright: ignore[reportPrivateUsage]
"""What the path lacks on this machine, found anew in each call."""


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, needs: Callable[[], str | None]) -> None:
    """Put the Triton path first, with these needs, and let it take weights on the CPU."""
    path = dataclasses.replace(triton_fused.PATH, devices=("cpu",), needs=needs)
    others = tuple(one for one in registry.PATHS if one.name != "triton")
    monkeypatch.setattr(registry, "PATHS", (path, *others))
    monkeypatch.setattr(registry, "_FAILED", {})


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        # With None in sys.modules an import fails as if the package were not installed.
        (None, "triton is not installed"),
        (types.SimpleNamespace(__version__="2.3.1"), "triton 2.3.1 is too old, 3.4 is needed"),
    ],
    ids=["none", "old"],
)
def test_without_a_triton_of_today_the_next_path_runs_and_the_report_says_why(
    monkeypatch: pytest.MonkeyPatch, found: Any, reason: str
) -> None:
    if found:
        found.__spec__ = importlib.util.find_spec("json")
    monkeypatch.setitem(sys.modules, "triton", found)
    on_the_cpu(monkeypatch, NEEDS)
    base, pairs = mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
    assert f"not triton: {reason}" in lyc.patch_report(base, pairs)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU driver")
def test_without_a_driver_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path says so when it is asked for what it needs.

    If the lack shows only at the launch, another path patches the weight.
    """
    assert "0 active drivers" in (NEEDS() or "")
    base, pairs = mixed()
    on_the_cpu(monkeypatch, lambda: None)
    said = "it failed: RuntimeError: 0 active drivers"
    with pytest.warns(
        UserWarning, match=f"^Weights are patched by another path, because 'triton' is left out: {said}"
    ) as caught:
        for _ in range(2):
            assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
    assert len(caught) == 1
    assert f"not triton: {said}" in lyc.patch_report(base, pairs)


class CompilationError(Exception):
    """An error like Triton's own: the source comes first, then what is wrong."""

    def __str__(self) -> str:
        return "at 3:4:\n    value = tl.dot(a, b)\n            ^\nfirst input shape must be at least 16"


class OutOfResources(Exception):  # noqa: N818 - Triton's name
    def __str__(self) -> str:
        return "out of resource: shared memory, Required: 131072, Hardware limit: 101376."


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the Triton path take weights on the CPU, and let its launch raise this error."""

    def launch(*arguments: Any, **options: Any) -> NoReturn:
        raise error

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return launch

    monkeypatch.setattr(triton_fused, "INTERPRETED", False)
    monkeypatch.setattr(triton_fused, "_kernel", Kernel)
    on_the_cpu(monkeypatch, lambda: None)


class Recorded:
    """A kernel that launches nothing, and notes the grid of each launch. Launch `fails` raises an error."""

    def __init__(self, fails: int | None = None) -> None:
        self.grids: list[tuple[int, int]] = []
        self.fails = fails

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launch(*arguments: Any, MANY: bool, **options: Any) -> None:
            assert (grid[1] > 1) is MANY
            if len(self.grids) == self.fails:
                raise CompilationError
            self.grids.append(grid)

        return launch


def recorded(monkeypatch: pytest.MonkeyPatch, kernel: Recorded) -> list[tuple[int, torch.device]]:
    """Let the path take weights on the CPU, and launch this kernel.

    Returns a list that gets the bytes and the device of each transfer.
    """
    transfers: list[tuple[int, torch.device]] = []
    moved = triton_fused.moved

    def counted(packed: bytes, device: torch.device) -> Tensor:
        transfers.append((len(packed), device))
        return moved(packed, torch.device("cpu"))

    monkeypatch.setattr(triton_fused, "INTERPRETED", False)
    monkeypatch.setattr(triton_fused, "_kernel", lambda: kernel)
    monkeypatch.setattr(triton_fused, "moved", counted)
    monkeypatch.setattr(triton_fused, "card_of", lambda device: "ampere")
    on_the_cpu(monkeypatch, lambda: None)
    return transfers


def test_a_merge_launches_once_for_all_weights_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch for each size, as far as a launch can take the weights, with one transfer in all.

    A layer whose change depends on the weight is launched alone, because the sum that torch forms of it is as
    large as the weight.
    """
    kernel = Recorded()
    transfers = recorded(monkeypatch, kernel)
    monkeypatch.setattr(triton_fused, "MOST", 3)
    module = nn.Sequential(*(nn.Linear(32, 32 + 16 * (n % 2)) for n in range(7)), nn.Linear(16, 16))
    lyc.create_lycoris(module, rank=4, overrides={"7": {"dora": "output"}}).merge_to()
    assert sorted(count for _, count in kernel.grids) == [1, 1, 3, 3]
    assert sorted(size for size, _ in transfers) == [triton_fused.FIELDS.size, 7 * triton_fused.FIELDS.size]


def test_the_weights_of_each_device_have_a_launch_and_a_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Recorded()
    transfers = recorded(monkeypatch, kernel)
    real = torch.zeros(32, 32)
    plan = lyc.PatchPlan.build(real.shape, "cpu", [(loaded("lora", real), 1.0)])
    devices = [torch.device("cuda", n) for n in (0, 1, 0, 1, 0)]
    patches = []
    for device in devices:
        # A stand-in for a weight on a GPU.
        names = ("dtype", "data_ptr", "numel", "stride", "is_contiguous", "shape")
        same = {name: getattr(real, name) for name in names}
        weight: Any = types.SimpleNamespace(device=device, is_cuda=False, **same)
        patches.append(registry.Patch(plan, weight, plan.tensors, plan.strengths))
    triton_fused.PATH.apply(patches)
    assert [count for _, count in kernel.grids] == [3, 2]
    size = triton_fused.FIELDS.size
    assert transfers == [(3 * size, devices[0]), (2 * size, devices[1])]


def test_only_weights_that_are_not_patched_yet_are_left_to_the_next_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded(monkeypatch, Recorded(fails=1))
    base = [torch.randn(size, 32) for size in (32, 48, 32, 48, 64)]
    pairs = [[(loaded("lora", weight), 0.5)] for weight in base]
    weights = [weight.clone() for weight in base]
    work = [
        (lyc.PatchPlan.build(weight.shape, "cpu", own), weight, str(n))
        for n, (weight, own) in enumerate(zip(weights, pairs, strict=True))
    ]
    with pytest.warns(UserWarning, match="'triton' is left out: it failed: CompilationError") as caught:
        lyc.PatchPlan.apply_all(work)
    assert len(caught) == 1
    for size, weight, before, own in zip((32, 48, 32, 48, 64), weights, base, pairs, strict=True):
        if size == 32:
            # The first launch, which does nothing here.
            assert torch.equal(weight, before)
        else:
            assert_one_rounding(weight, before, own)


def loaded(kind: str, weight: Tensor) -> lyc.Layer:
    """A layer of rank 4 for a weight."""
    return ALGORITHMS[kind].load(KINDS[kind].make(tuple(weight.shape), 4))


def mixed() -> tuple[Tensor, list[tuple[lyc.Layer, float]]]:
    """A weight and layers of three forms."""
    return torch.randn(WEIGHTS["conv2d"]).bfloat16(), [
        (load(k, "conv2d"), 0.5) for k in ("lora", "loha", "oft")
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CompilationError(), "CompilationError: first input shape must be at least 16"),
        (OutOfResources(), "OutOfResources: out of resource: shared memory, Required: 131072"),
        (RuntimeError("Failed to find C compiler."), "RuntimeError: Failed to find C compiler."),
        (ImportError(""), "ImportError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_kernel_that_fails_is_left_out_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    failing(monkeypatch, error)
    base, pairs = mixed()
    assert "path triton" in lyc.patch_report(base, pairs)
    with pytest.warns(UserWarning, match=f"'triton' is left out: it failed: {reason}") as caught:
        patched = lyc.patch_(base.clone(), pairs)
    assert len(caught) == 1
    assert_one_rounding(patched, base, pairs)
    assert f"not triton: it failed: {reason}" in lyc.patch_report(base, pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["torch", "triton"],
)
def test_a_device_without_memory_is_no_reason_to_leave_the_path_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, error)
    base, pairs = mixed()
    weight = base.clone()
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"):
        lyc.patch_(weight, pairs)
    assert torch.equal(weight, base)
    assert "path triton" in lyc.patch_report(base, pairs)


def test_a_card_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for a weight on a GPU, because this machine may have none.
    weight = types.SimpleNamespace(is_contiguous=lambda: True, is_cuda=True, device="cuda:0")
    plan: Any = None
    for found, reason in (((6, 1), "7.0 and newer, the card has 6.1"), ((7, 0), None), ((12, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=found: found)
        refusal = triton_fused.PATH.refuses(plan, weight)  # type: ignore[arg-type]
        assert refusal is None if reason is None else reason in (refusal or "")


COMPILED = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lycoris_ops.patch.paths import triton as triton_fused
from lycoris_ops.patch.paths.triton import Term, launch_options, tabulate
from lycoris_ops.patch.paths.triton.kernel import add_terms

card, backend, arch = sys.argv[1:4]
lanes, shared, count = map(int, sys.argv[4:])
target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, lanes)
POINTER = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
halves, floats = torch.zeros(4, 4).half(), torch.zeros(4, 4)
one = Term(1.0, (halves, halves))
pair = Term(1.0, (floats, floats), (floats, floats))
both = Term(1.0, (halves, floats), (floats, halves))
assert {"rows", "terms"} == {one.name for one in add_terms.params if one.do_not_specialize}
weights = (
    (both, torch.bfloat16, (1280, 1280)),
    (pair, torch.float32, (1280, 1280)),
    (one, torch.bfloat16, (1280, 1280)),
    (both, torch.float16, (8, 1280)),
    (both, torch.bfloat16, (1280, 9)),
)
for number, (term, dtype, shape) in enumerate(weights[:count]):
    options = launch_options(*shape, dtype, card, tabulate([(term, (0, 4))], 0))
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages", "enable_fp_fusion")}
    # Both variants, in turn.
    constants = {"column_stride": 1, "MANY": number % 2 == 0, **options}
    kinds = {
        "weight": POINTER[dtype], "row_stride": "i32", "rows": "i32", "columns": "i32",
        "table": "*i64", "terms": "i32",
    }
    signature = {one.name: kinds.get(one.name, "constexpr") for one in add_terms.params}
    source = ASTSource(add_terms, signature, {key: constants[key] for key in constants})
    compiled = triton.compile(source, target=target, options=launch)
    assert compiled.metadata.shared <= shared, (dtype, shape, compiled.metadata.shared)
    print(dtype, shape, compiled.metadata.shared)
"""
"""A program that compiles the kernel for a card, for several weights and dtypes, and asserts that the card's
shared memory is enough. Its arguments are those of the test below."""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "backend", "arch", "lanes", "shared", "count"),
    [
        # `shared` is what a program has on every card of the family, in bytes.
        ("ampere", "cuda", "90", 32, 99 << 10, 1),
        pytest.param("ampere", "cuda", "90", 32, 99 << 10, 5, marks=pytest.mark.soak),
        pytest.param("volta", "cuda", "75", 32, 64 << 10, 5, marks=pytest.mark.soak),
        pytest.param("amd", "hip", "gfx942", 64, 64 << 10, 5, marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_the_kernel_compiles_for_cards_that_are_not_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    card: str,
    backend: str,
    arch: str,
    lanes: int,
    shared: int,
    count: int,
) -> None:
    """The kernel is compiled down to machine code, which needs no GPU.

    Only a GPU of that kind can test whether the code computes the right values.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    printed = python("-c", COMPILED, card, backend, arch, *map(str, (lanes, shared, count)), interpret=False)
    # One line for every weight and dtype that was compiled.
    assert len(printed.splitlines()) == count
