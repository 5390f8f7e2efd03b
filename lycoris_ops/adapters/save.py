"""Writing an adapter file in the dialect of a tool."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.base import ALPHA, field_of
from ..algorithms.ia3 import PEFT as IA3_FACTOR
from ..algorithms.lora import UP
from ..errors import LayerError, LycorisError, WriteError
from ..files.cache import TensorCache
from ..files.dtypes import DTYPE_NAMES, FLOATS
from ..files.safetensors_file import raw_bytes
from ..files.tensor_file import SAFETENSORS
from ..files.writing import (
    DATA_HASH,
    MODELSPEC_HASH,
    check_free,
    data_hash,
    header_of,
    in_file_order,
    metadata_of,
    staged,
    system_errors,
)
from ..layers.fuse import fuse
from ..layers.same import difference
from ..maths.shapes import Shape
from ..maths.tensors import is_finite
from ..names.dialects import diffusers, split_prefix
from ..names.targets import Targets, shapes_of
from ..names.written import PEFT, WRITTEN, Planned, Written, all_names, plan_names
from .adapter import BUNDLED, NOT_FACTORS, Adapter, load_adapter
from .encode import PEFT_SUFFIXES, ConflictError, Encoded, Member, alpha_of, encode, peft_config
from .network_args import plain_args
from .peft import CONFIG_NAME, METADATA_KEY

PEFT_FILE = "adapter_model.safetensors"
"""The only name under which PEFT looks for an adapter in its folder."""
WITH_EMBEDDINGS: tuple[Written, ...] = ("kohya", "comfy", "lycoris")
DIM, NETWORK_ALPHA, DYNAMIC = "ss_network_dim", "ss_network_alpha", "Dynamic"
"""What kohya-ss' tools write instead of a number once layers differ."""
NEAR = 1e-5
"""How far a layer of other rows may be from the layers it is made of, as a share of their change."""

Progress = Callable[[int, int], None]
"""Called with layers done and layers in all; what it raises ends the work, and nothing is written."""


@dataclass(frozen=True)
class SaveResult:
    """What was written."""

    path: str
    size: int
    dialect: str
    layers: int
    changes: tuple[str, ...]
    """What differs from the source but the name of its tensors, in words."""


def save_adapter(
    adapter: Adapter,
    path: str | os.PathLike[str],
    dialect: Written = "kohya",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str | None] | None = None,
    *,
    model: Mapping[str, Shape] | Collection[str] | None = None,
    drop_unread: bool = False,
    overwrite: bool = True,
    progress: Progress | None = None,
) -> SaveResult:
    """Write an adapter as kohya, comfy, peft, diffusers or lycoris would.

    `model` are the keys and shapes of the model it is for: without them a name is only written where it
    keeps its path. With `dtype` None every factor keeps its dtype; alpha is float32 always. The source's
    metadata is kept but for hashes, `metadata` is added to it, and a value of None takes a key away. For
    peft, `path` is a folder or the adapter_model.safetensors in it, and adapter_config.json goes beside.
    Keys that nothing reads are copied where the dialect stays, else an error, or with `drop_unread` left
    out. The file is held in memory whole; it takes its name when it has been read back and found right, and
    may replace another, its source too, unless `overwrite` is off.

    Raises LayerError for a layer that the dialect cannot hold, MatchError for a name that it has not,
    WriteError where the file cannot be written.
    """
    if dialect not in WRITTEN:
        raise LycorisError("an unknown dialect", got=str(dialect), expected=", ".join(WRITTEN))
    if dtype is not None and DTYPE_NAMES.get(dtype) not in FLOATS:
        raise LycorisError(
            "an adapter cannot be written in this dtype", got=str(dtype), expected=", ".join(FLOATS)
        )
    out = _place(Path(path), dialect)
    if not overwrite:
        check_free(out, *([out.with_name(CONFIG_NAME)] if dialect == "peft" else []))
    writer = _Writer(adapter, dialect, dtype, None if model is None else Targets(shapes_of(model)))
    loose = _loose(adapter, dialect, drop_unread)
    planned = plan_names(adapter, dialect, writer.targets)
    made: list[_Made] = []
    for layer in planned:
        made.append(writer.make(layer))
        if progress:
            progress(len(made), len(planned))
    spell = diffusers.spelled if dialect == "diffusers" else "{}.{}".format
    tensors = {spell(layer.encoded.name, suffix): t for layer in made for suffix, t in layer.tensors.items()}
    tensors = in_file_order(tensors | dict(adapter.file.read(loose, adapter.cache, keep=False)))
    config, configured = writer.configuration(made)
    text = _metadata(adapter, dialect, dtype, made, metadata or {}, configured)
    _add_hashes(text, tensors, adapter.metadata, dialect, metadata or {})
    header = header_of(tensors, text)
    size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    with _folder_of(out, dialect), staged(out, size + len(config or "")) as folder:
        with (folder / out.name).open("xb") as file:
            file.write(header)
            for tensor in tensors.values():
                file.write(raw_bytes(tensor))
        if config:
            (folder / CONFIG_NAME).write_text(config, encoding="utf-8")
        _check_written(folder / out.name, made, loose, out)
    return SaveResult(str(out), size, dialect, len(made), _changes(adapter, made, loose, dtype, dialect))


def describe_saved(result: SaveResult) -> str:
    """The report of what was written."""
    name = Path(result.path)
    shown = f"{name.parent.name}/{name.name}" if result.dialect == "peft" else name.name
    lines = [f"{shown}: {result.layers} layers in the dialect {result.dialect}, {result.size / 1e6:.2f} MB"]
    lines += [f"  {change}" for change in result.changes]
    return "\n".join([*lines, "  read back: every layer is what was to be written", result.path])


def _place(path: Path, dialect: Written) -> Path:
    """The file to write. Raises WriteError for a name that readers would not take."""
    if dialect == "peft":
        with system_errors(path):
            return _peft_place(path)
    if path.suffix.lower() not in SAFETENSORS:
        raise WriteError(
            "adapters are written as safetensors alone",
            file=str(path),
            got=path.suffix or "no ending",
            expected=" or ".join(SAFETENSORS),
        )
    return path


def _peft_place(path: Path) -> Path:
    if not path.suffix and not path.is_file():
        path = path / PEFT_FILE
    if path.name != PEFT_FILE:
        raise WriteError(
            "PEFT finds an adapter only under one name, in a folder of its own",
            file=str(path),
            got=path.name,
            expected=f"a folder, or {PEFT_FILE} in one",
        )
    others = [file.name for file in path.parent.glob("*") if file.suffix.lower() in SAFETENSORS]
    if set(others) - {PEFT_FILE}:
        raise WriteError(
            f"the folder holds other adapters, and {CONFIG_NAME} would be for all of them",
            file=str(path),
            got=", ".join(sorted(set(others) - {PEFT_FILE})[:3]),
            expected="a folder of its own",
        )
    return path


@contextmanager
def _folder_of(path: Path, dialect: Written) -> Generator[None]:
    """PEFT's file is a folder, which is made for it, and taken away if nothing came of it."""
    new = dialect == "peft" and not path.parent.exists() and path.parent.parent.is_dir()
    if new:
        with system_errors(path):
            path.parent.mkdir()
    try:
        yield
    except BaseException:
        if new:
            path.parent.rmdir()
        raise


def _loose(adapter: Adapter, dialect: Written, drop: bool) -> list[str]:
    """Keys that are copied as they are: embeddings, and what nothing reads where the dialect stays."""
    bundled = [key for key in adapter.file.tensors if key.startswith(BUNDLED)]
    kept: list[str] = []
    if dialect in WITH_EMBEDDINGS:
        kept += bundled
    elif bundled and not drop:
        raise LayerError(
            f"{dialect} has no place for embeddings",
            file=adapter.path,
            key=bundled[0],
            got=f"{len(bundled)} keys of the embeddings {', '.join(adapter.embeddings)}",
            expected=_listed(WITH_EMBEDDINGS),
            hint="Write it as one of these, or leave out what is not read (drop_unread, --drop-unread)",
        )
    if adapter.unused_keys and adapter.dialect == dialect:
        kept += adapter.unused_keys
    elif adapter.unused_keys and not drop:
        raise LayerError(
            f"a part of the file is not read, so it cannot be written as {dialect}",
            file=adapter.path,
            key=adapter.unused_keys[0],
            got=f"{len(adapter.unused_keys)} keys that are of no known kind",
            expected=f"the dialect {adapter.dialect}, where they are copied as they are",
            hint="Leave them out with drop_unread (--drop-unread) if they are not needed",
        )
    return kept


@dataclass(frozen=True)
class _Made:
    """A layer that is ready to be written."""

    planned: Planned
    layer: Layer
    """What the file is to hold, as it is to be read back."""
    encoded: Encoded
    tensors: Mapping[str, Tensor]
    source_alpha: float | None
    """The alpha of the one layer that it is made of, as its file has it."""


class _Writer:
    """What one adapter's layers become in one dialect."""

    def __init__(
        self,
        adapter: Adapter,
        dialect: Written,
        dtype: torch.dtype | None,
        targets: Targets | None,
        *,
        explain: bool = True,
    ) -> None:
        self.adapter = adapter
        # Whether an error names the dialects that can hold the layer: to tell is to try them.
        self.explain = explain
        self.dialect: Written = dialect
        self.dtype = dtype
        self.targets = targets
        self._shapes = {} if targets is None else _source_shapes(adapter, targets)
        # A fused layer is read once for all the layers it is cut into.
        self._layer = lru_cache(maxsize=4)(self._read)
        self._change = lru_cache(maxsize=4)(self._change_of)

    def _read(self, name: str) -> Layer:
        return self.adapter.layer(name, keep=False)

    def make(self, planned: Planned) -> _Made:
        """The layer with its tensors. Raises LayerError where the dialect cannot hold it."""
        try:
            layer = self._regrouped(planned)
        except LayerError as error:
            problem = f"{self.dialect} has other rows, and {error.problem}"
            raise self._not_held(planned, error, problem) from error
        if self.dtype is not None:
            layer = self._cast(layer, planned)
        info = self.adapter.info[planned.sources[0]]
        try:
            encoded = encode(layer, info.options, self.dialect, planned.name)
        except LayerError as error:
            raise self._not_held(planned, error) from error
        tensors = {suffix: self._in_dtype(t) for suffix, t in encoded.tensors.items()}
        known = None
        if ALPHA in info.keys and len(planned.sources) == 1:
            key = info.keys[ALPHA]
            known = float(self.adapter.file.read((key,), self.adapter.cache)[key].flatten()[0])
        return _Made(planned, layer, encoded, tensors, known)

    def _in_dtype(self, tensor: Tensor) -> Tensor:
        """A factor that took a wider dtype for its scale, in the one that was asked for after all."""
        wide = self.dialect == "diffusers" and self.dtype is not None and tensor.dtype != self.dtype
        return tensor.to(self.dtype) if wide else tensor

    def _regrouped(self, planned: Planned) -> Layer:
        if planned.shape is None:
            return self._layer(planned.sources[0])
        rows = planned.shape[0]
        if len(planned.sources) == 1:
            ranges = [piece.rows for piece in planned.pieces if piece.rows is not None]
            if sum(stop - start for start, stop in ranges) == rows:
                made = self._layer(planned.sources[0]).rows(*ranges)
                made.dump()
                self._check_rows(planned, made)
                return made
        pieces: list[tuple[Layer, tuple[int, int]]] = []
        for piece in planned.pieces:
            source, whole = self._layer(piece.layer), self._shapes[piece.layer]
            start, stop = piece.rows or (0, whole[0])
            part = source if (start, stop) == (0, whole[0]) else source.rows((start, stop))
            pieces.append((part, (piece.at, piece.at + stop - start)))
        made = fuse(pieces, rows)
        self._check_rows(planned, made)
        return made

    def _check_rows(self, planned: Planned, made: Layer) -> None:
        """A layer of other rows must change a weight as the layers that it is made of."""
        assert planned.shape is not None
        weight = torch.zeros(planned.shape)
        wanted = torch.zeros(planned.shape)
        bias = torch.zeros(planned.shape[0])
        for piece in planned.pieces:
            met, delta, beside = self._change(piece.layer)
            start, stop = piece.rows or (0, len(met))
            here = slice(piece.at, piece.at + stop - start)
            weight[here] = met[start:stop].reshape(weight[here].shape)
            wanted[here] = delta[start:stop].reshape(weight[here].shape)
            if beside is not None:
                bias[here] = beside[start:stop]
        change = made.change(weight)
        found = torch.zeros(planned.shape) if change.delta is None else change.delta
        own_bias = torch.zeros(planned.shape[0]) if change.bias is None else change.bias
        for ours, theirs in ((found, wanted), (own_bias, bias)):
            error = (ours - theirs).abs().max().item()
            if not error <= NEAR * theirs.abs().max().item():
                raise WriteError(
                    "a layer of other rows is not what it was made of; please report this",
                    file=self.adapter.path,
                    key=planned.name,
                    got=f"an error of {error:.2e}",
                    expected=f"at most {NEAR:g} of {theirs.abs().max().item():.2e}",
                )

    def _change_of(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """A weight for one of the adapter's layers, and its change of that and of the bias."""
        layer, shape = self._layer(name), self._shapes[name]
        if layer.additive() is not None:
            weight = torch.zeros(1).expand(shape)
        else:
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
        change = layer.change(weight)
        return weight, torch.zeros(shape) if change.delta is None else change.delta, change.bias

    def _cast(self, layer: Layer, planned: Planned) -> Layer:
        """The layer with its factors in the dtype that was asked for."""
        dtype = self.dtype
        assert dtype is not None
        cast: dict[str, Tensor] = {}
        held = {field_of(suffix): suffix for suffix in layer.suffixes()}
        for field, suffix in held.items():
            value = getattr(layer, field)
            if suffix in NOT_FACTORS or not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            cast[field] = value.to(dtype)
            if not is_finite(cast[field]):
                raise WriteError(
                    "a factor does not fit the dtype it is to be written in",
                    file=self.adapter.path,
                    key=f"{planned.sources[0]}.{suffix}",
                    got=f"values up to {value.abs().max().item():.3g}",
                    expected=f"at most {torch.finfo(dtype).max:.3g}, the largest {dtype}",
                    hint="Write it in bfloat16 or float32",
                )
        return replace(layer, **cast)

    def _not_held(self, planned: Planned, error: LayerError, problem: str | None = None) -> LayerError:
        able = self._able(planned.sources) if self.explain else []
        return LayerError(
            problem or f"{self.dialect} {error.problem}",
            file=self.adapter.path,
            key=planned.sources[0],
            got=error.got,
            expected=error.expected,
            hint=f"It can be written as {_listed(able)}" if able else "No dialect can hold it as it is",
        )

    def _able(self, layers: Collection[str]) -> list[str]:
        """The dialects that can hold these layers, and those they are one with there."""
        able: list[str] = []
        for dialect in WRITTEN:
            if dialect == self.dialect:
                continue
            other = _Writer(self.adapter, dialect, None, self.targets, explain=False)
            try:
                plans = plan_names(self.adapter, dialect, self.targets)
                other.configuration(
                    [other.make(planned) for planned in plans if not set(layers).isdisjoint(planned.sources)]
                )
            except LycorisError:
                continue
            able.append(dialect)
        return able

    def configuration(self, made: Sequence[_Made]) -> tuple[str | None, str | None]:
        """PEFT's configuration: as the file beside, and as diffusers has it in the metadata."""
        if self.dialect not in ("peft", "diffusers"):
            return None, None
        if self.dialect == "peft":
            self._check_one_part(made)
        groups: dict[str, list[_Made]] = {}
        for layer in made:
            groups.setdefault(_root(layer.planned.name), []).append(layer)
        tables: dict[str, Any] = {}
        for root, group in groups.items():
            members = [
                Member(layer.planned.name, split_prefix(layer.planned.name)[2], layer.encoded.config)
                for layer in group
            ]
            known, kernels = self._module(group[0].planned.part)
            try:
                table = peft_config(members, known, kernels)
            except ConflictError as error:
                planned = next(layer.planned for layer in group if layer.planned.name == error.member.name)
                raise self._not_held(planned, error) from error
            if self.dialect == "diffusers":
                table = {key: value for key, value in table.items() if key not in ("inference_mode",)}
            tables |= {f"{root}.{key}" if root else key: value for key, value in table.items()}
        text = json.dumps(tables, indent=2, sort_keys=True)
        return (text, None) if self.dialect == "peft" else (None, text)

    def _check_one_part(self, made: Sequence[_Made]) -> None:
        parts = Counter(layer.planned.part for layer in made if layer.planned.part is not None)
        if len(parts) > 1:
            first = parts.most_common(1)[0][0]
            other = next(layer for layer in made if layer.planned.part not in (None, first))
            raise self._not_held(
                other.planned,
                LayerError(
                    "writes a file for one part of a model alone",
                    got=" and ".join(f"{count} layers of {part}" for part, count in parts.items()),
                ),
            )

    def _module(self, part: str | None) -> tuple[list[str], dict[str, int]]:
        """All paths of a part of the model that is known, and the sizes of its kernels."""
        if self.targets is None or part is None:
            return [], {}
        kernels = {
            split_prefix(name)[2]: math.prod(shape[2:])
            for name, shape in all_names(self.targets, self.dialect, part).items()
        }
        return list(kernels), kernels


def _source_shapes(adapter: Adapter, targets: Targets) -> dict[str, Shape]:
    """The shape of the weight, or of the rows of weights, that each layer meets."""
    shapes: dict[str, Shape] = {}
    for name in adapter.info:
        for places in targets.find(name)[:1]:
            found = [targets.shape_of(place) for place in places]
            if all(found):
                shapes[name] = (sum(shape[0] for shape in found), *found[0][1:])
    return shapes


def _root(name: str) -> str:
    return "" if name.startswith(PEFT) else name.partition(".")[0]


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# What the metadata say.


def _metadata(
    adapter: Adapter,
    dialect: Written,
    dtype: torch.dtype | None,
    made: Sequence[_Made],
    added: Mapping[str, str | None],
    configured: str | None,
) -> dict[str, str]:
    kept = {key: value for key, value in adapter.metadata.items() if key != METADATA_KEY}
    kept |= plain_args(kept, {key: str(v) for layer in made for key, v in layer.encoded.options.items()})
    ranks = {layer.layer.rank for layer in made} - {None}
    if DIM in kept and kept[DIM] != DYNAMIC and ranks - {i.rank for i in adapter.info.values()}:
        kept |= {DIM: DYNAMIC, NETWORK_ALPHA: DYNAMIC}
    if NETWORK_ALPHA in kept and any(_alpha_changed(layer) for layer in made):
        kept[NETWORK_ALPHA] = DYNAMIC
    if configured:
        kept[METADATA_KEY] = configured
    recipe = {
        "source": adapter.name,
        "dialect": dialect,
        "dtype": "as in the source" if dtype is None else str(dtype).removeprefix("torch."),
    }
    return metadata_of(kept, added, recipe, "source_recipe")


def _alpha_changed(made: _Made) -> bool:
    """Whether the alpha that is written is not that of the source's file."""
    if made.source_alpha is None or not made.layer.scaled_by_alpha:
        return False
    return not math.isclose(_written_alpha(made), made.source_alpha, rel_tol=1e-3)


def _written_alpha(made: _Made) -> float:
    if "alpha" in made.encoded.config:
        return float(made.encoded.config["alpha"])
    return alpha_of(made.layer) or 0.0


def _add_hashes(
    text: dict[str, str],
    tensors: Mapping[str, Tensor],
    before: Mapping[str, str],
    dialect: Written,
    given: Mapping[str, str | None],
) -> None:
    wanted = {
        DATA_HASH: DATA_HASH in before or dialect == "kohya",
        MODELSPEC_HASH: MODELSPEC_HASH in before or (dialect == "kohya" and _has_modelspec(text)),
    }
    if any(wanted[key] and key not in given for key in wanted):
        digest = data_hash(tensors)
        values = {DATA_HASH: digest, MODELSPEC_HASH: f"0x{digest}"}
        text |= {key: values[key] for key in wanted if wanted[key] and key not in given}


def _has_modelspec(text: Mapping[str, str]) -> bool:
    return any(key.startswith("modelspec.") for key in text)


# Whether the file is what was to be written.


def _check_written(path: Path, made: Sequence[_Made], loose: Sequence[str], out: Path) -> None:
    try:
        found = load_adapter(path, cache=TensorCache(0))
        wanted = {layer.planned.name: layer for layer in made}
        if set(found.info) != set(wanted) or not set(loose) <= set(found.file.tensors):
            strange = sorted(set(found.info).symmetric_difference(wanted))
            raise LayerError("it holds other layers", got=", ".join(strange[:3]) or "other keys")
        for name, layer in wanted.items():
            if wrong := difference(layer.layer, found.layer(name, keep=False)):
                raise LayerError("a layer is another", got=f"{name}: {wrong}")
    except LycorisError as error:
        raise WriteError(
            f"the file that was written is not what it should be: {error.problem}; please report this",
            file=str(out),
            key=error.key,
            got=error.got,
            hint="Nothing was left behind, and an earlier file of that name is untouched",
        ) from error


def _changes(
    adapter: Adapter, made: Sequence[_Made], loose: Sequence[str], dtype: torch.dtype | None, dialect: Written
) -> tuple[str, ...]:
    """What a user may want to know, most weighty first."""
    from_many = [layer for layer in made if len(layer.planned.sources) > 1]
    partial = [layer for layer in made if layer.planned.shape and len(layer.planned.sources) == 1]
    cut = {layer.planned.sources[0] for layer in partial}
    folded = [layer for layer in made if dialect == "diffusers" and alpha_of(layer.layer) != layer.layer.rank]
    wider = [m for m in folded if m.tensors[PEFT_SUFFIXES[UP]].dtype != m.layer.dump()[UP].dtype]
    factors = [m for m in made if IA3_FACTOR in m.tensors and IA3_FACTOR not in m.layer.dump()]
    given = [m for m in made if m.source_alpha is None and ALPHA in m.tensors and m.layer.scaled_by_alpha]
    corrected = [layer for layer in made if dialect != "diffusers" and _alpha_changed(layer)]
    lines = [
        (adapter.dialect != dialect, f"dialect {adapter.dialect} to {dialect}"),
        (dtype is not None, f"factors in {str(dtype).removeprefix('torch.')}"),
        (bool(partial), f"{len(cut)} layers of other rows written as {len(partial)}"),
        (
            bool(from_many),
            f"{sum(len(m.planned.sources) for m in from_many)} layers joined to {len(from_many)}",
        ),
        (bool(folded), f"alpha / rank multiplied into a factor of {len(folded)} layers"),
        (bool(wider), f"{len(wider)} of these in float32, as their dtype does not hold the product"),
        (bool(factors), f"1 + w written for the w of {len(factors)} ia3 layers of inputs"),
        (bool(given), f"alpha written for {len(given)} layers that had none in the file"),
        (bool(corrected), f"alpha corrected for {len(corrected)} layers"),
        (bool(loose), f"{len(loose)} keys copied as they are (embeddings, or of no known kind)"),
        (_dropped(adapter, loose) > 0, f"{_dropped(adapter, loose)} keys that nothing reads left out"),
    ]
    return tuple(text for holds, text in lines if holds)


def _dropped(adapter: Adapter, loose: Sequence[str]) -> int:
    bundled = sum(key.startswith(BUNDLED) for key in adapter.file.tensors)
    return bundled + len(adapter.unused_keys) - len(loose)
