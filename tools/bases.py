"""The page `docs/bases.md`: which kinds act on which sorts of weights, beside them, rebuilt and merged.

    python3 tests/harness/environment.py -- python -m tools.bases [--write]

prints the page; with --write it writes the file instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import lycoris_ops as lyc
from lycoris_ops.algorithms import declaring
from lycoris_ops.algorithms.training import Trained
from tests.harness.facts import ROOT
from tests.ops import meeting
from tests.ops.networks import unattached

PAGE = ROOT / "docs" / "bases.md"
HEAD = """# Which kinds act on which weights

Each cell is a linear layer with a network of one kind, on a weight of one sort. Its output was compared with
the output of the whole changed weight W + delta(W), in float64. `beside` is the form "bypass", `rebuilt`
forms the changed weight in each pass, and `merged` is `merge_to`. A form that a cell does not name is
refused, in the first pass at the latest; the letters give the reasons. The page is written by
`python -m tools.bases --write`, and a test compares it.
"""
SIDE = 32
KINDS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"algorithm": name} for name in declaring(Trained) if name != "norm"},
    "lora, DoRA": {"dora": "output"},
    "lokr, DoRA": {"algorithm": "lokr", "dora": "output"},
}
FORMS = {"beside": "bypass", "rebuilt": "rebuilt", "merged": "auto"}
"""What a cell names, with the form of the network."""


class Cast(nn.Linear):
    """A linear layer that widens its weight in each pass, as ComfyUI's do."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


Cast.__name__ = "Linear"


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIDE, SIDE))


def narrow(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = Cast(SIDE, SIDE)
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(dtype)
    return nn.Sequential(layer)


def packed(kind: str) -> nn.Module:
    """A layer whose weight torchao or bitsandbytes has packed."""
    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        base = plain()
        quantize_(base, Int8WeightOnlyConfig())
        return base
    import bitsandbytes

    kinds: dict[str, Callable[[], nn.Module]] = {
        "nf4": lambda: bitsandbytes.nn.LinearNF4(SIDE, SIDE, compute_dtype=torch.float32),
        "int8": lambda: bitsandbytes.nn.Linear8bitLt(SIDE, SIDE, has_fp16_weights=False),
    }
    found = nn.Sequential(kinds[kind]())
    found.load_state_dict(plain().state_dict())
    return found.to("cpu")


def offloaded() -> nn.Module:
    import accelerate

    return accelerate.cpu_offload(plain(), execution_device="cpu")


@cache
def both() -> Any:
    """The mesh of two processes."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2,))


def sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    base: Any = plain()
    return fully_shard(base, mesh=both())


def divided(way: str) -> nn.Module:
    """A layer. Each of two processes has some of its columns or rows."""
    from torch.distributed.tensor import Replicate, parallel

    base, whole = plain(), Replicate()
    ways = {
        "columns": parallel.ColwiseParallel(output_layouts=whole),
        "rows": parallel.RowwiseParallel(input_layouts=whole),
    }
    parallel.parallelize_module(base, both(), {"0": ways[way]})
    return base


ALONE: Mapping[str, Callable[[], nn.Module]] = {
    "float32": plain,
    "bfloat16": lambda: narrow(torch.bfloat16),
    "float8": lambda: narrow(torch.float8_e4m3fn),
    "int8, bitsandbytes": lambda: packed("int8"),
    "nf4, bitsandbytes": lambda: packed("nf4"),
    "int8, torchao": lambda: packed("torchao"),
    "offloaded by accelerate": offloaded,
}
TOGETHER: Mapping[str, Callable[[], nn.Module]] = {
    "`fully_shard` (FSDP2)": sharded,
    "tensor parallel, by columns": lambda: divided("columns"),
    "tensor parallel, by rows": lambda: divided("rows"),
}
"""Bases that two processes share in parts."""
NEAR = {"int8, bitsandbytes": 0.02, "bfloat16": 0.005, "float8": 0.04}
"""How far an output may be from the exact one, as a share of it: these round changed weights, or inputs."""


def outcome(make: Callable[[], nn.Module], kind: Mapping[str, Any], form: str, near: float) -> str | None:
    """None where a network of a kind gives the changed weight's output, else why it is refused."""
    base = make()
    x = torch.randn(5, SIDE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        none = base(torch.zeros(1, SIDE))
        weight = (base(torch.eye(SIDE)) - none).T
        try:
            network = unattached(base, **{"form": FORMS[form], **kind})
            if form == "merged":
                network.merge_to()
            else:
                network.apply_to()
            found = base(x)
        except lyc.LycorisError as error:
            return error.problem
        (member,) = network.members.values()
        delta = member.layer.delta(weight.double())
    wanted = x.double() @ (weight.double() + delta).T + none.double()
    apart = float((found.double() - wanted).norm() / wanted.norm())
    assert apart < near, f"{kind}, {form}: {apart:.3g} of the output apart"
    return None


def outcomes(bases: Mapping[str, Callable[[], nn.Module]]) -> dict[str, dict[str, dict[str, str | None]]]:
    """What comes of each kind and form on each base."""
    return {
        base: {
            kind: {form: outcome(make, options, form, NEAR.get(base, 1e-4)) for form in FORMS}
            for kind, options in KINDS.items()
        }
        for base, make in bases.items()
    }


def in_one_of_two(rank: int, folder: str) -> None:
    """A task for `tests.ops.meeting`."""
    found = outcomes(TOGETHER)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found), encoding="utf-8")


def everything() -> dict[str, dict[str, dict[str, str | None]]]:
    with TemporaryDirectory() as folder:
        meeting.run(2, folder, "tools.bases.in_one_of_two")
        together = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    return {**outcomes(ALONE), **together}


def page(found: Mapping[str, Mapping[str, Mapping[str, str | None]]]) -> str:
    reasons: dict[str, str] = {}

    def cell(forms: Mapping[str, str | None]) -> str:
        right = ", ".join(form for form, why in forms.items() if why is None)
        refused = sorted({letter(why) for why in forms.values() if why is not None})
        return " ".join(filter(None, (right, f"({', '.join(refused)})" if refused else "")))

    def letter(why: str) -> str:
        return reasons.setdefault(why, "abcdefghijklmnop"[len(reasons)])

    rows = [["kind", *found], ["---"] * (len(found) + 1)]
    rows += [[kind, *(cell(kinds[kind]) for kinds in found.values())] for kind in KINDS]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([HEAD, *lines, "", *(f"- {name}: {why}" for why, name in reasons.items()), ""])


def main() -> None:
    text = page(everything())
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        print(PAGE.relative_to(ROOT))
    else:
        print(text)


if __name__ == "__main__":
    main()
