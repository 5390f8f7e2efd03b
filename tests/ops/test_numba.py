"""The numba path, against the sum of deltas in float64.

It must also be left out, with a reason in the report, where it cannot run.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from layers import WEIGHTS, load, rand
from path_cases import DTYPES, PathCases, applied, by_three_threads, check, loaded
from rounding import assert_one_rounding
from test_memory import check as check_memory
from test_memory import halved
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.patch import registry
from lycoris_ops.patch.paths import bfloat16, numba
from lycoris_ops.patch.paths.numba import packing

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

needs_numba = pytest.mark.skipif(
    numba.PATH.needs() is not None, reason=f"the numba path cannot run: {numba.PATH.needs()}"
)


@pytest.fixture
def no_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave numba as the only path, and let it take every weight.

    What the kernel cannot do must raise an error. Layers that numba would leave to faster paths are tested,
    too.
    """
    path = dataclasses.replace(numba.PATH, refuses=lambda plan, weight: None)
    monkeypatch.setattr(registry, "PATHS", (path,))


@pytest.fixture(params=[False, True], ids=["whole", "small"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch a weight as a whole, or a few rows at a time on three threads."""
    if request.param:
        by_three_threads(monkeypatch)


@needs_numba
@pytest.mark.usefixtures("no_other_path")
class TestKernel(PathCases):
    """The tests of every path and some of its own, for the kernel compiled for this processor."""

    @pytest.mark.parametrize("shape", [(16, 512), (17, 513), (33, 1100), (5, 1024)], ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.usefixtures("tile")
    def test_more_than_a_block(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """The blocks of a Kronecker product end inside blocks of the kernel, or the other way round."""
        rows, columns = shape
        ones = {"lokr_w1": rand(rows, 1), "lokr_w2": rand(1, columns)}
        thin = {"lokr_w1": rand(1, columns), "lokr_w2": rand(rows, 1)}
        left, right = rand(rows, 4), rand(4, columns)
        hada = {
            "hada_w1_a": left,
            "hada_w1_b": right,
            "hada_w2_a": rand(rows, 2),
            "hada_w2_b": rand(2, columns),
        }
        pairs = [(loaded("lokr", **ones), 0.4), (loaded("lokr", **thin), 0.3), (loaded("loha", **hada), 1.0)]
        check(torch.randn(shape).to(dtype), pairs)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.usefixtures("tile")
    def test_layers_for_rows_that_overlap(self, dtype: torch.dtype) -> None:
        """Rows that several layers change are rounded once, as all others."""
        base = torch.randn(36, 18).to(dtype)
        kinds = ("loha", "lokr-full-full", "lora")
        layers = [(load(kind, "linear"), 0.3 + n) for n, kind in enumerate(kinds)]
        rows = [(0, 12), (6, 18), (6, 18)]
        wide = loaded(
            "loha", hada_w1_a=rand(36, 2), hada_w1_b=rand(2, 18), hada_w2_a=rand(36, 3), hada_w2_b=rand(3, 18)
        )
        parts = [
            (lyc.Part(one, place), strength) for (one, strength), place in zip(layers, rows, strict=True)
        ]
        patched = lyc.patch_(base.clone(), [*parts, (wide, 0.5)])
        change = 0.5 * wide.delta(base.double())
        for (one, strength), (start, stop) in zip(layers, rows, strict=True):
            change[start:stop] += strength * one.delta(base[start:stop].double())
        assert_one_rounding(patched, base, [(loaded("full", diff=change), 1.0)])

    def test_channels_last(self) -> None:
        base = torch.randn(WEIGHTS["conv2d"])
        pairs = [(load(kind, "conv2d"), 0.5) for kind in ("loha", "lokr-full-low", "lora", "oft")]
        weight = base.to(memory_format=torch.channels_last)
        assert_one_rounding(lyc.patch_(weight, pairs), base, pairs)

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_every_value_of_a_short_dtype_stays_as_it_is(self, dtype: torch.dtype) -> None:
        """A change of zero changes no value, and a NaN stays NaN whatever its bits are."""
        every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)[None]
        nothing = loaded("lokr", lokr_w1=torch.zeros(1, 1), lokr_w2=torch.zeros(1, 1 << 16))
        patched = lyc.patch_(every.clone(), [(nothing, 1.0)])
        torch.testing.assert_close(patched, every, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_values_of_any_size_are_rounded_as_torch_rounds(self, dtype: torch.dtype) -> None:
        """The values are random bits.

        Some of the values are subnormal in the dtype, and some are beyond its largest number.
        """
        values = torch.randint(-(1 << 31), 1 << 31, (1, 1 << 16)).to(torch.int32).view(torch.float32)
        values = values.where(values.abs() >= torch.finfo(torch.float32).smallest_normal, 0.0)
        one = loaded("lokr", lokr_w1=torch.ones(1, 1), lokr_w2=values)
        patched = applied(torch.zeros(1, 1 << 16, dtype=dtype), [(one, 1.0)])
        torch.testing.assert_close(patched, values.to(dtype), rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        "kinds", [("loha", "lokr-low-low", "lora"), ("loha", "lokr-full-low", "full", "oft")]
    )
    def test_a_weight_is_patched_wholly_or_not_at_all(
        self, kinds: tuple[str, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layers = [(halved(load(kind, "linear")), 0.7) for kind in kinds]
        check_memory(torch.randn(12, 18).to(dtype), layers, monkeypatch)
        thirds = [
            (lyc.Part(one, (12 * n, 12 * n + 12)), strength) for n in range(3) for one, strength in layers
        ]
        check_memory(torch.randn(36, 18).to(dtype), thirds, monkeypatch)

    def test_weights_patched_by_several_threads_at_once(self) -> None:
        base = torch.randn(200, 700)
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        pairs = [
            (loaded("loha", **dict(zip(names, (rand(200, 4), rand(4, 700)) * 2, strict=True))), 0.5)
            for _ in range(8)
        ]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda pair: lyc.patch_(base.clone(), [pair]), pairs * 4))
        for n, patched in enumerate(found):
            assert_one_rounding(patched, base, [pairs[n % 8]])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_threads_make_what_one_makes(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = [(load(kind, "linear-odd", rank=16), 0.3) for kind in ("lora", "loha", "lokr-full-low")]
        bases = [torch.randn(WEIGHTS["linear-odd"]).to(dtype) for _ in range(100)]
        alone = [lyc.patch_(base.clone(), pairs) for base in bases]
        by_three_threads(monkeypatch)
        for base, wanted in zip(bases, alone, strict=True):
            assert torch.equal(lyc.patch_(base.clone(), pairs), wanted)

    def test_after_an_interrupt_the_next_weights_are_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The user may even interrupt a second time, during the wait for the other threads."""
        by_three_threads(monkeypatch)
        pairs = [(load("loha", "linear-odd", rank=16), 0.3)]
        base = torch.randn(WEIGHTS["linear-odd"])
        wanted = lyc.patch_(base.clone(), pairs)
        kernel, go_on = packing.kernel_for(torch.float32), threading.Event()
        real = packing._pool(os.getpid())

        # The first interrupt ends this thread's share; the others are held up until later weights are done.
        def interrupted(*arguments: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            go_on.wait()
            kernel(*arguments)

        # The second interrupt ends the wait for another thread.
        class Impatient(Future):  # type: ignore[type-arg]
            def result(self, timeout: float | None = None) -> NoReturn:
                raise KeyboardInterrupt

        class Pool:
            def submit(self, work: Any, block: Any) -> Future[None]:
                future = real.submit(work, block)
                future.__class__ = Impatient
                return future

        with monkeypatch.context() as broken:
            broken.setattr(packing, "kernel_for", lambda dtype: interrupted)
            broken.setattr(packing, "_pool", lambda process: Pool())
            with pytest.raises(KeyboardInterrupt):
                lyc.patch_(base.clone(), pairs)
        # Before the other threads go on with the first weight, and after.
        found = [lyc.patch_(base.clone(), pairs) for _ in range(5)]
        go_on.set()
        found += [lyc.patch_(base.clone(), pairs) for _ in range(5)]
        assert all(torch.equal(one, wanted) for one in found)

    def test_a_plan_that_was_applied_can_be_pickled(self) -> None:
        base, pairs = torch.randn(12, 18), [(load("loha", "linear"), 0.5)]
        plan = lyc.PatchPlan.build(base.shape, base.dtype, "cpu", pairs)
        patched = plan.apply_(base.clone(), plan.tensors, plan.strengths)
        again = pickle.loads(pickle.dumps(plan))
        assert torch.equal(again.apply_(base.clone(), again.tensors, again.strengths), patched)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    def test_a_process_that_forked_has_threads_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        by_three_threads(monkeypatch)
        base, pairs = torch.randn(12, 18), [(load("loha", "linear"), 0.5)]
        wanted = lyc.patch_(base.clone(), pairs)
        with warnings.catch_warnings():
            # Newer Pythons warn of every fork beside threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            # The child has a copy of the pool, but none of its threads.
            child = os.fork()
        if not child:
            # Not by an exception or sys.exit: the tests would go on in the child.
            os._exit(0 if torch.equal(lyc.patch_(base.clone(), pairs), wanted) else 1)
        assert os.waitpid(child, 0)[1] == 0


def python(code: str, **environment: str) -> list[str]:
    """The lines that a new interpreter prints."""
    added = {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **added},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_numba_is_imported_only_for_weights_that_are_for_it() -> None:
    printed = python(
        "import sys, torch, lycoris_ops as lyc\n"
        "from layers import load\n"
        "base, pairs = torch.zeros(12, 18), [(load('lora', 'linear'), 1.0), (load('oft', 'linear'), 1.0)]\n"
        "lyc.patch_(base, pairs)\n"
        "print(lyc.patch_report(base, pairs))\n"
        "print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    )
    assert printed[-1] == "False False"
    assert "path torch" in printed[-2]


PATCHED = """
import sys, torch, lycoris_ops as lyc
from layers import load
from rounding import assert_one_rounding
base, pairs = torch.randn(12, 18), [(load(kind, "linear"), 0.5) for kind in ("lora", "loha", "lokr-full-low")]
assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
print(lyc.patch_report(base, pairs).splitlines()[-1])
print("numba" in sys.modules)
"""
"""A program that patches, and prints the path and whether numba was imported."""


@needs_numba
def test_loha_and_lokr_on_the_cpu_go_by_numba() -> None:
    line, imported = python(PATCHED)
    assert line.startswith("path numba") and imported == "True"


HALVES = """
def half(one):
    return type(one).load({key: value.half() for key, value in one.dump().items() if key != "alpha"})
pairs = [(half(one), 0.5) for one, _ in pairs]
assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
print(lyc"""
"""Code that takes the place of the first `print(lyc` in PATCHED: it patches with factors in float16 first."""


@needs_numba
@pytest.mark.slow
def test_a_processor_without_float16_reads_factors_that_are(tmp_path: Path) -> None:
    """LLVM ends the process if code needs a conversion that neither the processor nor a library has."""
    halves = PATCHED.replace("print(lyc", HALVES, 1)
    line, _ = python(halves, NUMBA_CPU_NAME="generic", NUMBA_CACHE_DIR=str(tmp_path))
    assert line.startswith("path numba")


@needs_numba
def test_a_numba_that_is_told_not_to_compile_is_left_out() -> None:
    line, _ = python(PATCHED, NUMBA_DISABLE_JIT="1")
    assert line.startswith("path torch") and "numba's compiler is switched off" in line


def test_without_numba_the_next_path_runs_and_the_report_says_why() -> None:
    # With None in sys.modules an import fails as if the package were not installed.
    line, _ = python(f"import sys\nsys.modules['numba'] = None\n{PATCHED}")
    assert line.startswith("path torch") and "not numba: numba is not installed" in line


@pytest.mark.parametrize(
    ("missing", "version", "reason"),
    [
        ("numba", "0.61.0", "numba is not installed"),
        ("llvmlite", "0.61.0", "llvmlite is not installed"),
        ("", "0.60.2", "numba 0.60.2 is too old, 0.61 is needed"),
        ("", "0.61.0rc1", None),
        ("", "1.2", None),
    ],
)
def test_what_is_installed(
    missing: str, version: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    found = numba.needs.__wrapped__()
    assert found is None if reason is None else (found or "").startswith(reason)


def chosen(base: Tensor, kinds: tuple[str, ...], rank: int = 3) -> str:
    """The line of the report that names the path for a stack of these kinds."""
    report = lyc.patch_report(base, [(load(kind, "linear", rank=rank), 1.0) for kind in kinds])
    return report.splitlines()[-1]


@needs_numba
def test_what_is_left_to_other_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    single, short = torch.zeros(12, 18), torch.zeros(12, 18, dtype=torch.bfloat16)
    monkeypatch.setattr(numba, "_halves", lambda: True)
    assert "not numba: no LoHa and no LoKr layers" in chosen(single, ("lora", "full", "oft"))
    assert "not numba: not for float64" in chosen(single.double(), ("loha",))
    # Without bfloat16 products, with slow ones, and with fast ones (AMX).
    for able, product in (((), False), (("avx512_bf16",), False), (("avx512_bf16", "amx_bf16"), True)):
        monkeypatch.setattr(bfloat16, "able", lambda one, able=able: one in able)
        assert chosen(short, ("loha", "lora")).startswith("path numba")
        assert chosen(short, ("loha",), rank=9).startswith("path numba")
        assert chosen(short, ("loha", "lokr-full-low")).startswith("path numba")
        assert chosen(single, ("loha",)).startswith("path numba")
        assert "not numba: LoKr alone is faster by plain torch" in chosen(single, ("lokr-full-low",))
        assert chosen(short, ("lora",)).startswith("path bfloat16 product" if product else "path numba")
        assert chosen(single.half(), ("lora",)).startswith("path numba")
        assert "not numba: LoRA alone is one product in float32" in chosen(single, ("lora",))
        # For LoRA alone on float32 the kernel is faster from rank 32 on.
        assert chosen(single, ("lora",), rank=32).startswith("path numba")
        assert not chosen(single, ("lora",), rank=31).startswith("path numba")
        assert chosen(short.T.contiguous().T, ("lora",)).startswith("path numba")
    monkeypatch.setattr(numba, "_halves", lambda: False)
    assert "not numba: the processor does not convert float16" in chosen(single.half(), ("loha",))


@needs_numba
def test_a_weight_that_is_not_aligned_is_refused() -> None:
    # The weight begins two bytes behind a multiple of four.
    raw = torch.zeros(12 * 18 * 4 + 2, dtype=torch.uint8).numpy()[2:]
    weight = torch.frombuffer(raw, dtype=torch.float32).view(12, 18)
    assert "not numba: the weight is not aligned" in chosen(weight, ("loha",))


class Elsewhere(Tensor):
    """A tensor of a class of its own that has no memory to which a pointer could point."""

    @staticmethod
    def __new__(cls, dtype: torch.dtype) -> Elsewhere:
        return Tensor._make_wrapper_subclass(cls, (12, 18), dtype=dtype)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise NotImplementedError(function)


@needs_numba
def test_a_weight_without_memory_is_refused() -> None:
    assert "not numba: the weight has no memory" in chosen(Elsewhere(torch.float32), ("loha",))


@needs_numba
def test_other_tensors_than_the_last_time() -> None:
    """A plan keeps data that were made from its tensors. It must not use them for other tensors."""
    base, pairs = torch.randn(12, 18), [(load("loha", "linear"), 0.5), (load("lora", "linear"), 1.0)]
    plan = lyc.PatchPlan.build(base.shape, base.dtype, "cpu", pairs)
    bare = dataclasses.replace(plan, tensors=(), strengths=())
    for factor in (1.0, 2.0, 3.0, 1.0):
        tensors = tuple(factor**0.5 * one for one in plan.tensors)
        wanted = base.double() + 0.5 * factor**2 * pairs[0][0].delta(base.double())
        wanted += factor * pairs[1][0].delta(base.double())
        for strength in (1.0, 0.5):
            patched = bare.apply_(base.clone(), tensors, tuple(strength * one for one in plan.strengths))
            change = strength * (wanted - base.double())
            torch.testing.assert_close(patched.double(), base.double() + change, rtol=1e-5, atol=1e-5)


class TypingError(Exception):
    """An error like numba's own, whose last line says what is wrong."""

    def __str__(self) -> str:
        return "Failed in nopython mode pipeline (step: nopython frontend)\nInvalid use of Function(<x>)"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TypingError(), "TypingError: Invalid use of Function"),
        (RuntimeError("symbol not found"), "RuntimeError: symbol not found"),
        (ImportError("DLL load failed"), "ImportError: DLL load failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_kernel_that_fails_is_left_out_once(
    error: Exception, reason: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    base = torch.randn(WEIGHTS["conv2d"]).to(dtype)
    pairs = [(load(kind, "conv2d"), 0.5) for kind in ("lora", "loha", "lokr-low-low", "oft")]
    assert "path numba" in lyc.patch_report(base, pairs)
    with pytest.warns(UserWarning, match=f"'numba' is left out: it failed: {reason}") as caught:
        assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)
    assert len(caught) == 1
    report = lyc.patch_report(base, pairs)
    assert f"not numba: it failed: {reason}" in report and "path torch" in report
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_one_rounding(lyc.patch_(base.clone(), pairs), base, pairs)


def test_compiling_without_memory_is_no_reason_to_leave_the_path_out(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, MemoryError())
    base, pairs = torch.randn(12, 18), [(load("loha", "linear"), 0.5)]
    weight = base.clone()
    with pytest.raises(MemoryError):
        lyc.patch_(weight, pairs)
    assert torch.equal(weight, base)
    assert "path numba" in lyc.patch_report(base, pairs)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the numba path run, and let its compiler raise this error."""

    def compiled(dtype: torch.dtype) -> NoReturn:
        raise error

    path = dataclasses.replace(numba.PATH, needs=lambda: None)
    others = tuple(one for one in registry.PATHS if one.name != "numba")
    monkeypatch.setattr(registry, "PATHS", tuple(sorted((path, *others), key=lambda one: one.priority)))
    monkeypatch.setattr(registry, "_FAILED", {})
    monkeypatch.setattr(numba, "kernel_for", compiled)


KEPT = """
import importlib, sys
sys.path.insert(0, {parent!r})
kernel = importlib.import_module({module!r}).compiled("float32")
print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""
"""A program that prints how many kernels it found on disk, and how many it compiled."""


@needs_numba
@pytest.mark.slow
def test_what_is_compiled_is_kept_on_disk(tmp_path: Path) -> None:
    """A compiled kernel is kept for every name under which the package is imported.

    The host imports the package under the name of its folder. A broken file on disk is no error.
    """
    package = tmp_path / "pack" / "ops"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for file in ("kernel.py", "vectors.py"):
        shutil.copy(ROOT / "lycoris_ops/patch/paths/numba" / file, package)
    names = [
        {"parent": str(tmp_path / "pack"), "module": "ops.kernel"},
        {"parent": str(tmp_path), "module": "pack.ops.kernel"},
    ]
    # Nothing may be found that another run has kept.
    environment = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "user")}
    for name in names:
        assert python(KEPT.format(**name), **environment) == ["0 1"]
    for name in names:
        assert python(KEPT.format(**name), **environment) == ["1 0"]
    stored = list(package.glob("__pycache__/*.nbc"))
    assert stored
    for file in stored:
        file.write_bytes(b"not what numba wrote")
    # By one name, since each compiles the kernel again, which takes seconds.
    assert len(python(KEPT.format(**names[0]), **environment)) == 1


@needs_numba
def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = packing.compiler("kernel")
    from numba.core import caching

    # numba then finds no folder that it could write to.
    monkeypatch.setattr(caching.FunctionCache, "_locator_classes", (), raising=False)
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert len(kernel.compiled("float32").signatures) == 1
