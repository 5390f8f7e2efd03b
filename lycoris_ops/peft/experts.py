"""PEFT's LoRA files with `target_parameters`, read with one layer for each expert, and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FileFormatError, LayerError
from ..files.tensor_file import DerivedFile, TensorFile, TensorInfo
from .config import PREFIX, Config
from .kinds.lora import LoraConfig
from .parameters import DOWN, UP, WEIGHT, declared, expert_of, of_expert, parameter_of

INNER = ".base_layer"


@dataclass(frozen=True)
class _Piece:
    """One expert's slice of a tensor of the file."""

    key: str
    expert: int | None
    """None for the whole tensor."""
    experts: int

    def of(self, tensor: Tensor) -> Tensor:
        if self.expert is None:
            return tensor
        if self.key.endswith(DOWN):
            return tensor.reshape(self.experts, -1, tensor.shape[1])[self.expert].contiguous()
        return tensor.reshape(len(tensor), -1, self.experts)[..., self.expert].contiguous()


def parameters_of(file: TensorFile, config: Config[Any]) -> tuple[TensorFile, frozenset[str]]:
    """The file with a layer for each expert, and the names of the layers that are on parameters.

    Without `target_parameters` the file is returned as it is.

    Raises FileFormatError where the factors do not divide into whole experts, and where the configuration
    names other parameters of a module than the file has.
    """
    if not isinstance(config, LoraConfig) or not config.target_parameters:
        return file, frozenset()
    pieces = dict(_pieces(file, config))
    taken = {piece.key for piece in pieces.values()}
    tensors = {key: info for key, info in file.tensors.items() if key not in taken}
    for key, piece in pieces.items():
        stored = file.tensors[piece.key]
        rows, columns = stored.shape
        count = 1 if piece.expert is None else piece.experts
        shape = (rows // count, columns) if piece.key.endswith(DOWN) else (rows, columns // count)
        tensors[key] = TensorInfo(stored.dtype, shape)
    names = frozenset(key.removesuffix(f".{DOWN}") for key in pieces if key.endswith(DOWN))
    return DerivedFile(file, tensors, {name: (piece.key, piece.of) for name, piece in pieces.items()}), names


def _pieces(file: TensorFile, config: LoraConfig) -> Iterator[tuple[str, _Piece]]:
    """The keys of single experts' tensors, each with its slice of the file."""
    depths: dict[str, dict[int, str]] = {}
    for key in file.tensors:
        if key.startswith(PREFIX) and key.endswith(DOWN):
            name = key.removesuffix(f".{DOWN}")
            module = name.replace(INNER, "")
            depths.setdefault(module, {})[name.count(INNER)] = name
    bare = [target for target in config.target_parameters if "." not in target]
    for module, names in depths.items():
        path = module.removeprefix(PREFIX)
        own = [
            target.rpartition(".")[2]
            for target in config.target_parameters
            if f".{path}".endswith(f".{target.rpartition('.')[0]}")
        ]
        if bare and _on_parameters(file, config, path, list(names.values())):
            own += bare
        if not own:
            continue
        try:
            # One parameter may be named twice: by its full path and by the end of it.
            inner = declared(sorted(set(own)))
        except LayerError as error:
            raise FileFormatError(
                "E-peft-field",
                file=file.path,
                key=module,
                fault=error.problem,
                got=error.got,
                expected=error.expected,
            ) from None
        if names.keys() != set(range(len(inner))):
            raise FileFormatError(
                "E-peft-parameters-differ",
                file=file.path,
                key=module,
                count=len(names),
                path=path,
                inner=inner[0],
                expected=", ".join(inner),
            )
        for depth, parameter in enumerate(reversed(inner)):
            yield from _of_parameter(file, config, names[depth], f"{module}.{parameter}")


def _on_parameters(file: TensorFile, config: LoraConfig, path: str, names: Sequence[str]) -> bool:
    """Whether the layers of a module are on its parameters, by the tensors alone.

    A parameter may be named without its module: PEFT itself does so where it replaces the names of experts'
    linear layers by those of their parameters. Only layers on parameters are nested, and only theirs have the
    ranks of all experts.
    """
    return len(names) > 1 or file.tensors[f"{names[0]}.{DOWN}"].shape[:1] != (config.rank_at(path),)


def _of_parameter(
    file: TensorFile, config: LoraConfig, name: str, parameter: str
) -> Iterator[tuple[str, _Piece]]:
    down, up = f"{name}.{DOWN}", f"{name}.{UP}"
    rank = config.rank_at(parameter.removeprefix(PREFIX))
    rows = file.tensors[down].shape
    columns = file.tensors[up].shape if up in file.tensors else tuple[int, ...]()
    if not len(rows) == len(columns) == 2 or rows[0] != columns[1] or rows[0] % rank:
        raise FileFormatError(
            "E-experts-not-whole", file=file.path, key=down, rows=list(rows), columns=list(columns), rank=rank
        )
    count = rows[0] // rank
    whole = count == 1 and parameter.endswith(WEIGHT)
    for number in range(count):
        layer = parameter.removesuffix(WEIGHT) if whole else of_expert(parameter, number)
        for key, end in ((down, DOWN), (up, UP)):
            yield f"{layer}.{end}", _Piece(key, None if whole else number, count)


def joined(layers: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of layers on parameters as PEFT's files hold them: for each parameter a name and a pair.

    layers: their tensors, which are `DOWN` and `UP`, by the layers' names. Every expert of a parameter, from
    0 on, must have a layer, and all of them the same rank. Raises LayerError where an expert is missing, and
    where the order of a module's parameters is not known.
    """
    modules: dict[str, dict[str, dict[int, Mapping[str, Tensor]]]] = {}
    for layer, tensors in layers.items():
        module, _, parameter = parameter_of(layer).rpartition(".")
        modules.setdefault(module, {}).setdefault(parameter, {})[expert_of(layer) or 0] = tensors
    for module, parameters in modules.items():
        for depth, parameter in enumerate(reversed(declared(list(parameters)))):
            experts = parameters[parameter]
            if missing := sorted(set(range(max(experts))) - experts.keys()):
                raise LayerError(
                    "E-peft-expert-layer-missing", key=f"{module}.{parameter}", missing=missing[0]
                )
            ordered = [experts[number] for number in sorted(experts)]
            # With E experts, the columns of one expert are E apart.
            up = torch.stack([pair[UP] for pair in ordered], dim=-1).flatten(1)
            yield (
                f"{module}{INNER * depth}",
                {DOWN: torch.cat([pair[DOWN] for pair in ordered]), UP: up.contiguous()},
            )
