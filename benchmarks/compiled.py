"""The Triton kernel compiled for cards that are not here: what the compilers say of it.

`python -m benchmarks.compiled [--targets TEXT]` prints a table. It needs Triton, and no GPU. Each row is one
variant of the kernel for one card. "weights" says whether its launches take one weight or many. "registers"
are those of a thread, "spilled" the bytes of a thread that do not fit into them, "shared" the shared memory
of a program in KB. "loads" are the instructions that read global memory, "wide" those of them that read 16
bytes at once. "divisions" are reciprocals, of which each division of whole numbers takes one (of NVIDIA's
code alone).
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.side import Table
from lycoris_ops.patch.paths.triton import Term, launch_options, tabulate

TARGETS = (
    *(("volta", "cuda", 75, 32), *(("ampere", "cuda", arch, 32) for arch in (80, 86, 89, 90, 100, 120))),
    *(("amd", "hip", arch, lanes) for arch, lanes in (("gfx90a", 64), ("gfx942", 64))),
    *(("amd", "hip", arch, 32) for arch in ("gfx1100", "gfx1201")),
)
"""The kind of card, the compiler's backend, the architecture and the threads of a warp."""
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


def variants() -> Iterator[tuple[str, torch.dtype, Term]]:
    """A title, the dtype of the weight, and a term of the kind of factors."""
    for kind, dtype in (("LoRA", torch.bfloat16), ("LoHa", torch.bfloat16), ("LoKr", torch.float32)):
        left, right = torch.zeros(1280, 16, dtype=dtype), torch.zeros(16, 1280, dtype=dtype)
        small, large = torch.zeros(32, 32, dtype=dtype), torch.zeros(40, 40, dtype=dtype)
        if kind == "LoRA":
            yield kind, dtype, Term(1.0, (left, right))
        elif kind == "LoHa":
            yield kind, dtype, Term(1.0, (left, right), (left, right))
        else:
            yield kind, dtype, Term(1.0, (small,), (large,), (40, 40), (40, 40))


def compiled(
    card: str, backend: str, arch: int | str, lanes: int, dtype: torch.dtype, term: Term, *, many: bool
) -> Any:
    triton: Any = importlib.import_module("triton")
    compiler: Any = importlib.import_module("triton.backends.compiler")
    kernel: Any = importlib.import_module("lycoris_ops.patch.paths.triton.kernel").add_terms
    options = launch_options(1280, 1280, dtype, card, tabulate([(term, (0, 1280))], 0))
    constants = {"column_stride": 1, "MANY": many, **options}
    launch = {key: constants.pop(key) for key in ("num_warps", "num_stages", "enable_fp_fusion")}
    kinds = {
        "weight": POINTER[dtype],
        "row_stride": "i32",
        "rows": "i32",
        "columns": "i32",
        "table": "*i64",
        "terms": "i32",
    }
    signature = {one.name: kinds.get(one.name, "constexpr") for one in kernel.params}
    # As Triton finds it of the arguments at a launch.
    aligned = [n for n, one in enumerate(kernel.params) if one.name in kinds and not one.do_not_specialize]
    attributes = {(n,): [["tt.divisibility", 16]] for n in aligned}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=compiler.GPUTarget(backend, arch, lanes), options=launch)


def of_nvidia(found: Any, arch: int) -> tuple[object, ...]:
    """Registers, spilled bytes, loads, wide loads and divisions, by the assembler and the disassembler."""
    nvidia: Any = importlib.import_module("triton.backends.nvidia.compiler")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.ptx"), Path(folder, "a.cubin")
        source.write_text(found.asm["ptx"], encoding="utf-8")
        # The architecture as Triton has written it into the source.
        name = re.search(r"\.target (\w+)", found.asm["ptx"])
        assert name is not None
        ptxas = nvidia.get_ptxas(arch).path
        command = [ptxas, "-v", f"-arch={name[1]}", str(source), "-o", str(target)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        disassembler = Path(ptxas).with_name("nvdisasm")
        listed = subprocess.run(
            [disassembler, "-c", target], capture_output=True, text=True, check=True
        ).stdout
    registers, spilled = (
        re.search(r"Used (\d+) registers", said),
        re.search(r"(\d+) bytes spill stores", said),
    )
    assert registers is not None and spilled is not None
    loads = re.findall(r"LDG\S*", listed)
    return registers[1], spilled[1], len(loads), sum(".128" in one for one in loads), listed.count("MUFU.RCP")


def of_amd(found: Any) -> tuple[object, ...]:
    text = found.asm["amdgcn"]
    registers, spilled = re.search(r"NumVgprs: (\d+)", text), re.search(r"ScratchSize: (\d+)", text)
    assert registers is not None and spilled is not None
    loads = re.findall(r"(?:global|buffer|flat)_load_\S+", text)
    wide = sum(bool(re.search(r"dwordx4|b128", one)) for one in loads)
    return registers[1], spilled[1], len(loads), wide, "-"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--targets", default="", help="only targets whose name has this text")
    options = made.parse_args()
    table = Table(
        *("card", "kind", "dtype", "weights", "registers", "spilled", "shared KB", "loads", "wide"),
        "divisions",
    )
    for card, backend, arch, lanes in TARGETS:
        name = f"sm_{arch}" if backend == "cuda" else str(arch)
        for kind, dtype, term in variants() if options.targets in name else ():
            for many in (False, True):
                found = compiled(card, backend, arch, lanes, dtype, term, many=many)
                told = of_nvidia(found, int(arch)) if backend == "cuda" else of_amd(found)
                registers, spilled, *rest = told
                shared = f"{found.metadata.shared / 1024:.1f}"
                variant = (name, kind, str(dtype).removeprefix("torch."), "many" if many else "one")
                table.row(*variant, registers, spilled, shared, *rest)


if __name__ == "__main__":
    main()
