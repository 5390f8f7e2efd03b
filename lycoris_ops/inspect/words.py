"""Describe an examination: tables of blocks, layers and pairs of adapters."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from statistics import median
from typing import Any

from torch import Tensor

from ..algorithms.checks import of_rank
from ..errors import printable
from ..messages import phrase
from ..report.words import few, paragraph, plain_name, unmeasured
from .measure import Examination, LayerMeasure

STRONGEST = 5
"""How many of the strongest layers are named."""
UNRELATED, SAME = 0.1, 0.5
"""Below the first cosine changes do not affect each other; from the second on they do much the same."""
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")


def describe_examination(found: Examination) -> str:
    """The examination as a report: what it shows, each adapter with its blocks, all pairs, and the sum."""
    texts = [examination_verdict(found), *(_adapter(found, entry) for entry in range(len(found.entries)))]
    if len(found.entries) > 1:
        texts.append(_pairs(found))
    if found.left_out:
        texts.append(phrase("R-no-place-model-not-measured", left=len(found.left_out)))
    return "\n\n".join(texts)


def examination_verdict(examined: Examination) -> str:
    """What an examination shows: whether adapters affect each other, and whose ranks are needlessly high."""
    first = _meeting(examined) if len(examined.entries) > 1 else _where(examined)
    spare: dict[int, list[str]] = {}
    for entry, name in enumerate(examined.names):
        ranks = [layer.rank for layer in examined.layers if layer.entry == entry and layer.rank]
        enough = examined.enough(entry)
        if ranks and enough and 2 * enough <= median(ranks):
            spare.setdefault(enough, []).append(plain_name(name))
    return printable(
        " ".join(
            [first, *(phrase("R-rank-enough", rank=rank, names=few(names)) for rank, names in spare.items())]
        )
    )


def _meeting(examined: Examination) -> str:
    cosines = examined.cosines()
    pairs = list(combinations(range(len(examined.entries)), 2))
    strongest = max(pairs, key=lambda pair: abs(float(cosines[pair])))
    value = float(cosines[strongest])
    if abs(value) < UNRELATED:
        count = len(examined.entries)
        number = NUMBERS[count - 2] if count - 2 < len(NUMBERS) else str(count)
        return phrase("R-these-do-not-disturb-each", number=number)
    names = " and ".join(plain_name(examined.names[entry]) for entry in strongest)
    near = _nearest(examined, *strongest)
    most = phrase("R-most-2", near=near) if near else ""
    if value < 0:
        return phrase("R-work-against-each-other-cosine", names=names, value=value, most=most)
    if value < SAME:
        return phrase("R-overlap-cosine", names=names, value=value, most=most)
    return phrase("R-do-much-same-cosine-together", names=names, value=value)


def _where(examined: Examination) -> str:
    norms = examined.norms(0)
    total = sum(norm**2 for norm in norms.values())
    changed = phrase("R-changes", names=plain_name(examined.names[0]), count=len(examined.layers))
    block = max(norms, key=lambda name: norms[name], default="")
    if len(norms) < 2 or not total:
        return f"{changed}."
    return phrase("R-most", changed=changed, block=block, norms=norms[block] ** 2 / total)


def _adapter(examined: Examination, entry: int) -> str:
    own = [layer for layer in examined.layers if layer.entry == entry]
    norms = examined.norms(entry)
    total = sum(norm * norm for norm in norms.values()) ** 0.5
    kinds = Counter(of_rank(layer.algorithm, layer.rank) for layer in own)
    lines = [
        phrase("R-changed-norm", names=examined.names[entry], count=len(own), total=total),
        "  " + ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()),
        *unmeasured(examined.entries[entry]),
    ]
    if ranked := [layer for layer in own if layer.spectrum]:
        middle = median(layer.effective for layer in ranked)
        ninety, most = (median(layer.rank_of(share) for layer in ranked) for share in (0.9, 0.99))
        lines.append(
            f"  {phrase('R-medians-effective-rank-90-energy', middle=middle, ninety=ninety, most=most)}"
        )
    related = any(layer.weight for layer in own)
    wide = max(map(len, examined.blocks), default=0)
    lines.append(
        f"  {'block':{wide}}  {'norm':>9}  {'share':>6}" + (f"  {phrase('R-weights')}" if related else "")
    )
    for block in examined.blocks:
        norm = norms.get(block, 0.0)
        if norm == 0.0:
            continue
        share = norm**2 / total**2 if total else 0.0
        line = f"  {block:{wide}}  {norm:9.4g}  {share:6.1%}"
        lines.append(line + (f"  {_relative(own, block):14.3%}" if related else ""))
    strongest = sorted(own, key=_strength, reverse=True)[:STRONGEST]
    lines.append("  strongest: " + ", ".join(f"{layer.layer} ({_shown(layer)})" for layer in strongest))
    return paragraph(lines)


def _relative(own: list[LayerMeasure], block: str) -> float:
    """||w D|| / ||W|| of a block: roots of sums of squares over its weights."""
    here = [layer for layer in own if layer.block == block and layer.weight]
    weights = sum((layer.weight or 0.0) ** 2 for layer in here) ** 0.5
    return sum(layer.norm**2 for layer in here) ** 0.5 / weights if weights else 0.0


def _strength(layer: LayerMeasure) -> float:
    return layer.norm if layer.relative is None else layer.relative


def _shown(layer: LayerMeasure) -> str:
    return f"{layer.norm:.3g}" if layer.relative is None else phrase("R-weight", relative=layer.relative)


def _pairs(examined: Examination) -> str:
    cosines = examined.cosines()
    lines = [phrase("R-pairs-adapters")]
    signs = examined.disagreement() if examined.conflicts else None
    for first in range(len(examined.entries)):
        for other in range(first + 1, len(examined.entries)):
            names = phrase("R-and", names=examined.names[first], names_2=examined.names[other])
            line = f"  {phrase('R-cosine', names=names, cosines=float(cosines[first, other]))}"
            if signs is not None:
                line += phrase("R-values-opposite-directions", signs=float(signs[first, other]))
            near = _nearest(examined, first, other)
            lines.append(line + (phrase("R-most-3", near=near) if near else ""))
    keeping = f"  {phrase('R-strengths-times', keeping=examined.keeping())}"
    lines.append(phrase("R-sum-large-largest-change-alone", keeping=keeping))
    return paragraph(lines)


def _nearest(examined: Examination, first: int, other: int) -> str:
    """The block where two adapters are most alike, or most opposed."""
    values = {block: float(examined.cosines(block)[first, other]) for block in examined.blocks}
    block = max(values, key=lambda name: abs(values[name]), default=None)
    return f"{block} ({values[block]:.3f})" if block and values[block] else ""


def examination_data(found: Examination) -> dict[str, Any]:
    """The examination as plain data for JSON."""
    return {
        "adapters": list(found.names),
        "blocks": {
            block: {name: found.norms(at)[block] for at, name in enumerate(found.names)}
            for block in found.blocks
        },
        "cosines": _table(found.cosines()),
        "opposite": _table(found.disagreement()) if found.conflicts else None,
        "keeping": found.keeping(),
        "layers": [
            {
                "layer": layer.layer,
                "adapter": found.names[layer.entry],
                "block": layer.block,
                "algorithm": layer.algorithm,
                "rank": layer.rank,
                "strength": layer.strength,
                "norm": layer.norm,
                "relative": layer.relative,
                "effective_rank": layer.effective,
                "rank_90": layer.rank_of(0.9),
                "rank_99": layer.rank_of(0.99),
            }
            for layer in found.layers
        ],
        "left_out": dict(found.left_out),
    }


def _table(matrix: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in matrix]
