"""Names that need no table: the parts of a fused projection, and the fusions of split projections.

They are tried for a name that is neither a path of the model nor in a table. This works for every model whose
layers have the usual names, text encoders included. The shapes decide which rows a name means; where they
cannot, the name matches no layer. The names are those of the attention modules of diffusers and transformers
(both Apache-2.0) and of the models' original code.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..maths.shapes import Shape
from .architectures.notation import Slice, Slices, qkv_ends

PROJECTIONS = (
    ("q", "k", "v"),
    ("to_q", "to_k", "to_v"),
    ("q_proj", "k_proj", "v_proj"),
    ("wq", "wk", "wv"),
    ("query", "key", "value"),
    ("to_query", "to_key", "to_value"),
)
"""Names of query, key and value in one attention."""
QKV = ("qkv", "to_qkv", "qkv_proj", "in_proj", "in_proj_weight", "Wqkv", "wqkv")
"""Names of query, key and value in one layer.

`query_key_value` is left out: in some models its rows are ordered head by head.
"""
KV = ("kv", "to_kv", "kv_proj", "Wkv", "wkv")
"""Names of key and value in one layer."""
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
ADDED_QKV = ("to_added_qkv",)
ADDED_KV = ("to_added_kv",)
OUTPUTS = ("to_out.0", "to_out", "out_proj", "o_proj", "out", "o", "proj", "wo", "out_layer")
"""Names of the projection after an attention. It has as many inputs as the query has outputs."""
GATES = (("gate_proj", "up_proj"), ("gate", "up"))
GATE_UP = ("gate_up_proj", "gate_up")

FUSIONS = (
    *((family, QKV) for family in PROJECTIONS),
    *((family[1:], KV) for family in PROJECTIONS),
    (ADDED, ADDED_QKV),
    (ADDED[1:], ADDED_KV),
    *((gates, GATE_UP) for gates in GATES),
)
"""The names of parts in the order of their rows, and the possible names of the layer that fuses them."""
IN_LIST = "to_out.0"
"""The output layer of attention where it is in a list with a dropout."""


def fallback(shapes: Mapping[str, Shape]) -> dict[str, Slices]:
    """The usual names of a model's fused and split layers, with their slices.

    Paths that the model has itself are left out, and so are names with two meanings.
    """
    names: dict[str, set[Slices]] = {}
    for parent, children in _families(shapes).items():
        for projections, fusions in FUSIONS:
            if children.issuperset(projections):
                _join(shapes, parent, projections, fusions, names)
            elif children.isdisjoint(projections):
                _split(shapes, parent, projections, [name for name in fusions if name in children], names)
        if ("to_out" in children) != (IN_LIST in children):
            # Both names mean one layer. diffusers has it in a list with a dropout; some tools leave out the
            # index.
            written, other = ("to_out", IN_LIST) if "to_out" in children else (IN_LIST, "to_out")
            names.setdefault(f"{parent}{other}", set()).add((Slice(f"{parent}{written}"),))
    return {
        name: next(iter(meanings))
        for name, meanings in names.items()
        if len(meanings) == 1 and name not in shapes
    }


def _families(shapes: Mapping[str, Shape]) -> dict[str, set[str]]:
    """For each parent's path, with its dot: the names of its layers. `to_out.0` counts as one of them."""
    children: dict[str, set[str]] = {}
    for path in shapes:
        parent, dot, name = path.rpartition(".")
        children.setdefault(parent + dot, set()).add(name)
        if name == "0" and parent.endswith("to_out"):
            attention = parent.removesuffix("to_out")
            if not attention or attention.endswith("."):
                children.setdefault(attention, set()).add(IN_LIST)
    return children


def _join(
    shapes: Mapping[str, Shape],
    parent: str,
    projections: tuple[str, ...],
    fusions: tuple[str, ...],
    names: dict[str, set[Slices]],
) -> None:
    """Enter the fused names of layers that the model has separately."""
    targets = tuple(Slice(f"{parent}{projection}") for projection in projections)
    # In cross-attention keys and values can have other inputs than queries. Such layers cannot be fused.
    columns = {shapes[target.path][1:] for target in targets}
    if len(columns) > 1 or () in columns:
        return
    for fused in fusions:
        names.setdefault(f"{parent}{fused}", set()).add(targets)


def _split(
    shapes: Mapping[str, Shape],
    parent: str,
    projections: tuple[str, ...],
    fused: list[str],
    names: dict[str, set[Slices]],
) -> None:
    """Enter the names of the parts of the one fused layer below a parent."""
    # With two fused layers it is ambiguous which one a part belongs to.
    if len(fused) != 1:
        return
    path = f"{parent}{fused[0]}"
    ends = _ends(shapes, parent, path, len(projections))
    for projection, first, end in zip(projections, (0, *ends), ends, strict=False):
        names.setdefault(f"{parent}{projection}", set()).add((Slice(path, (first, end)),))


def _ends(shapes: Mapping[str, Shape], parent: str, path: str, count: int) -> tuple[int, ...]:
    """The end of each part's rows in a fused layer; () where the shapes do not show it."""
    shape = shapes[path]
    if len(shape) < 2:
        return ()
    if count == 2:
        return (shape[0] // 2, shape[0]) if shape[0] % 2 == 0 else ()
    outputs = [shapes[f"{parent}{name}"] for name in OUTPUTS if f"{parent}{name}" in shapes]
    # With two candidates it is ambiguous which one follows the attention.
    if len(outputs) > 1:
        return ()
    if outputs:
        return qkv_ends(shape, outputs[0])
    # Without an output layer, take the parts as equal only if each has as many outputs as inputs.
    return (shape[1], 2 * shape[1], 3 * shape[1]) if shape[0] == 3 * shape[1] else ()
