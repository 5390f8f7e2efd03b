"""Layers whose weight a model uses without calling them, so that hooks on them would not run."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..host.weights import layer_of


def used_uncalled(patcher: Any, path: str) -> bool:
    """Whether the model uses a layer's weight without calling the layer, so that no hook would run.

    This is read from the source of the class that holds the layer, see `_Uncalled`. The head of a language
    model (`lm_head`) always counts as uncalled: the host reads its weight through a variable, which is not
    followed here.
    """
    parent, _, name = path.rpartition(".")
    if name == "lm_head":
        return True
    int8 = getattr(layer_of(patcher, path), "layout_type", None) == "TensorWiseINT8Layout"
    uses = _Uncalled.of(type(layer_of(patcher, parent)))
    # Without the source, assume that an int8 layer is used uncalled: merging it is right in any case.
    return int8 if uses is None else name in uses.always or (int8 and name in uses.int8)


DESCRIBES = frozenset({"device", "dtype", "is_cuda", "ndim", "numel", "requires_grad", "shape", "size"})
"""Attributes of a weight that can be read without multiplying by it."""


@dataclass(frozen=True)
class _Uncalled:
    """The layers whose weights a class uses without calling them, by attribute name."""

    always: frozenset[str]
    """Layers whose `weight` is read, or that are passed to `cast_bias_weight`."""
    int8: frozenset[str]
    """Layers that are passed to `linear_input_act`, which uses the weight of an int8 layer itself, and
    calls all others."""

    @staticmethod
    @cache
    def of(kind: type) -> _Uncalled | None:
        """None where the source of the class or of a base class is not available."""
        always: set[str] = set()
        int8: set[str] = set()
        for base in kind.__mro__:
            if base is torch.nn.Module or not _USES & _names_in(base):
                continue
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            except (OSError, TypeError, SyntaxError):
                return None
            for method in ast.walk(tree):
                # `__init__`, `init_weights` and the like run before the model is used.
                if isinstance(method, ast.FunctionDef) and not method.name.strip("_").startswith("init"):
                    always |= _weights_read(method)
                    always |= _layers_given(method, _CAST)
                    int8 |= _layers_given(method, _FUSED)
        return _Uncalled(frozenset(always), frozenset(int8))


_CAST, _FUSED = "cast_bias_weight", "linear_input_act"
_USES = {"weight", _CAST, _FUSED}


def _names_in(kind: type) -> set[str]:
    """The attributes and global names in the methods of a class. Parsing its source would take 20 ms."""
    methods = (getattr(value, "fget", value) for value in vars(kind).values())
    codes = [inspect.unwrap(method).__code__ for method in methods if inspect.isfunction(method)]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [inner for inner in code.co_consts if inspect.iscode(inner)]
    return names


def _weights_read(method: ast.FunctionDef) -> set[str]:
    """Each X where a method uses the values of `self.X.weight`, not only attributes that describe them."""
    reads: dict[ast.AST, str] = {
        node: layer
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and node.attr == "weight" and (layer := _own(node.value))
    }
    for node in ast.walk(method):
        described = isinstance(node, ast.Attribute) and node.attr in DESCRIBES
        if described or isinstance(node, ast.Compare):
            for child in ast.iter_child_nodes(node):
                reads.pop(child, None)
    return set(reads.values())


def _layers_given(method: ast.FunctionDef, function: str) -> set[str]:
    """Each X where a method passes `self.X` to a function of this name."""
    return {
        layer
        for node in ast.walk(method)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function
        for argument in (*node.args, *(keyword.value for keyword in node.keywords))
        if (layer := _own(argument))
    }


def _own(node: ast.AST) -> str | None:
    """X of `self.X`."""
    return node.attr if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" else None
