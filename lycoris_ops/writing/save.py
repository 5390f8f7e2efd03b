"""Write an adapter file in the format of a tool."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..algorithms import Layer
from ..algorithms.axes import ALPHA
from ..algorithms.base import Sharing
from ..errors import LayerError, LycorisError, located
from ..files.dtypes import DTYPE_NAMES, FLOATS
from ..files.safetensors_file import raw_bytes
from ..files.writing import Progress, header_of, in_file_order, new_files
from ..maths.shapes import Shape
from ..messages import either, number_of, phrase
from ..names.dialects import KEPT, WRITES, own_dialect, write_of
from ..names.layer_name import LayerName
from ..names.relation import LookedUp, Relation
from ..names.targets import known_shapes
from ..names.to_write import plan_names
from ..reading.adapter import BUNDLED, Adapter
from .metadata import add_hashes, alpha_changed, check_text, metadata_for
from .paths import check_output, has_folder
from .verify import check_written
from .writer import Made, Writer


@dataclass(frozen=True)
class SaveResult:
    """The result of writing an adapter."""

    path: str
    size: int
    """Bytes of the file, without the configuration beside it."""
    dialect: str
    layers: int
    """How many layers the file holds."""
    changes: tuple[str, ...]
    """The differences from the source besides the tensors' names, in words, a line for each."""
    in_comfy: tuple[str, ...] = ()
    """The faults of ComfyUI's own loader with these layers, in words, a line for each."""


def adapter_tensors(
    adapter: Adapter,
    dialect: str = "comfy",
    *,
    model: Mapping[str, Shape] | Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of an adapter by the keys of a dialect, for programs that take tensors without metadata.

    `dialect` is one that needs no configuration: kohya, comfy or lycoris. `model` is as in `save_adapter`.
    No two tensors share memory.

    Raises LayerError for a layer that its tensors alone do not define and for unread keys that the dialect
    cannot hold, and MatchError for a layer without a name in the dialect.
    """
    writer = Writer(adapter, dialect, None, None if model is None else Relation(known_shapes(model)))
    layers = [writer.make(planned) for planned in writer.plan()]
    for layer in layers:
        if layer.encoded.options:
            raise LayerError(
                "E-layer-needs-options",
                file=adapter.path,
                key=layer.planned.sources[0],
                got=", ".join(f"{name} {value}" for name, value in layer.encoded.options.items()),
            )
    keyed = {f"{m.encoded.name}.{suffix}": t for m in layers for suffix, t in m.encoded.tensors.items()}
    loose = adapter.file.read(
        _loose(adapter, dialect, drop=False, same=adapter.dialect == dialect), adapter.cache, keep=False
    )
    return {key: tensor.clone().contiguous() for key, tensor in (keyed | dict(loose)).items()}


def save_adapter(
    adapter: Adapter,
    path: str | os.PathLike[str],
    dialect: str | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str | None] | None = None,
    *,
    model: Mapping[str, Shape] | Collection[str] | None = None,
    drop_unread: bool = False,
    overwrite: bool = True,
    progress: Progress | None = None,
) -> SaveResult:
    """Write an adapter in a dialect, one of `WRITTEN_DIALECTS`, with its names and tensors.

    With `dialect` None the adapter stays in its own dialect; if that is none of these, its layers keep their
    names. `model` is the model that the adapter is for, as its keys and shapes. Without it a layer can only
    be written where its path is the same in both dialects. With `dtype` None every factor keeps its dtype;
    alpha is always float32. The source's metadata is kept, except for hashes, and `metadata` is added: a
    value of None removes a key. For peft, `path` is a folder or the adapter_model.safetensors in it, and
    adapter_config.json is written beside that, with a model card in README.md unless there is one. For mlx it
    is a folder or the adapters.safetensors in it, and mlx-lm's configuration is written beside that. PEFT's
    `base_model_name_or_path` and `task_type`, which Auto classes need, come from the metadata or from the
    source's configuration. Keys that nothing reads are copied if the dialect stays the same. If it changes
    they are an error, or are left out with `drop_unread`.

    The whole file is built in memory. It gets its final name only after it has been read back and compared.
    It may replace an earlier file, even its own source, unless `overwrite` is off. `progress` is called with
    the number of layers made and the number of all layers.

    Raises LayerError for a layer that the dialect cannot hold, MatchError for a layer without a name in it,
    LycorisError for an unknown dialect or dtype, and WriteError where the file cannot be written.
    """
    if dialect is not None:
        write_of(dialect)
    if dtype is not None and DTYPE_NAMES.get(dtype) not in FLOATS:
        raise LycorisError("E-save-dtype-unknown", got=str(dtype), expected=", ".join(FLOATS))
    check_text(metadata or {})
    named = dialect or own_dialect(adapter.dialect)
    dialect = named or KEPT
    outs = check_output(path, dialect, overwrite=overwrite)
    out = outs[0]
    writer = Writer(adapter, named, dtype, None if model is None else Relation(known_shapes(model)))
    loose = _loose(adapter, dialect, drop_unread, same=named is None or named == adapter.dialect)
    planned = writer.plan()
    if not planned:
        raise LayerError("E-adapter-not-writable", file=adapter.path, count=len(adapter.unreadable))
    layers: list[Made] = []
    for layer in planned:
        layers.append(writer.make(layer))
        if progress:
            progress(len(layers), len(planned))
    configuration = writer.configuration(layers, metadata or {})
    folder = has_folder(dialect)
    write = write_of(dialect)
    with located(file=adapter.path):
        held = write.held([layer.encoded for layer in layers])
        keyed = {write.spelled(name, suffix): t for name, tensors in held for suffix, t in tensors.items()}
    tensors = in_file_order(keyed | dict(adapter.file.read(loose, adapter.cache, keep=False)))
    contents = [configuration.encode()] if configuration and folder else []
    # `outs` has a third path only where a card is to be written.
    if configuration and write.card and len(outs) > 2:
        contents.append(write.card([layer.layer for layer in layers], configuration).encode())
    text = metadata_for(adapter, dialect, dtype, layers, metadata or {}, None if folder else configuration)
    add_hashes(text, tensors, adapter.metadata, dialect, metadata or {})
    header = header_of(tensors, text)
    size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    room = size + sum(map(len, contents))
    with new_files(outs, room, overwrite=overwrite, make_folder=folder) as files:
        files[0].write(header)
        for tensor in tensors.values():
            files[0].write(raw_bytes(tensor))
        for file, content in zip(files[1:], contents, strict=True):
            file.write(content)
        for file in files:
            file.flush()
        wanted = {layer.planned.name: layer.layer for layer in layers}
        check_written([Path(file.name) for file in files], header, tensors, wanted, loose, out)
        # If the source changed meanwhile, the file mixes tensors of two versions.
        adapter.file.check_unchanged()
    dialect_named = dialect if named else adapter.dialect
    changes = _changes(adapter, layers, loose, dtype, dialect_named)
    if writer.copies:
        copies = number_of(len(writer.copies), "layer that repeats others", "layers that repeat others")
        changes += (phrase("R-left-out", copies=copies),)
    return SaveResult(
        str(out),
        size,
        dialect_named,
        len(layers),
        changes,
        faults_in_comfy((m.layer for m in layers), dialect),
    )


def faults_in_comfy(layers: Iterable[Layer], dialect: str) -> tuple[str, ...]:
    """How ComfyUI's own loader misreads layers, one line for each fault."""
    write = write_of(dialect)
    if write.in_comfy:
        return (write.in_comfy,)
    # Layers that share tensors are written as another kind where a file does not hold these.
    own = (layer for layer in layers if write.shares or not isinstance(layer, Sharing))
    faults = Counter((layer.algorithm, layer.fault_in_comfy()) for layer in own)
    return tuple(
        phrase("R-comfyui-s-own-loader-load", fault=fault, count=number_of(count, f"{kind} layer"))
        for (kind, fault), count in faults.items()
        if fault
    )


def check_dialect(adapter: Adapter, dialect: str, model: Mapping[str, Shape]) -> None:
    """Raise LayerError or MatchError, as `save_adapter` would, for a layer that a dialect cannot hold."""
    writer = Writer(adapter, dialect, None, Relation(known_shapes(model)))
    writer.configuration([writer.make(planned) for planned in writer.plan()])


@dataclass(frozen=True)
class Expected:
    """A layer that is yet to be made."""

    algorithm: type[Layer]
    shape: Shape

    @property
    def made_for(self) -> str:
        return str(list(self.shape))

    def fits(self, weight: Shape) -> bool:
        return self.shape == weight


def check_expected(
    layers: Mapping[str, Expected],
    dialect: str,
    *,
    name: str,
    model: Mapping[str, Shape] | Collection[str] | None = None,
) -> None:
    """Raise LayerError or MatchError, before layers are made, where a dialect cannot name or hold one.

    `name` is the adapter's name in errors, and `model` is as in `save_adapter`. Facts that depend on a
    layer's values, such as whether a norm changes at all, are not known yet.
    """
    relation = None if model is None else Relation(known_shapes(model))
    looked_up = LookedUp.of(map(LayerName.of, layers), relation)
    for planned in plan_names(layers, dialect, looked_up, name):
        for layer in planned.sources:
            with located(file=name, key=layer):
                if len(layers[layer].shape) > 1:
                    _check_kind(layers[layer].algorithm, dialect, planned.takes_lokr)


def _check_kind(kind: type[Layer], dialect: str, takes_lokr: bool) -> None:
    if not write_of(dialect).holds(kind, takes_lokr):
        able = [name for name, write in WRITES.items() if write.configuration is None]
        raise LayerError(
            "E-dialect-lora-only", dialect=dialect, algorithm=kind.algorithm, able=able, got=kind.algorithm
        )


def _loose(adapter: Adapter, dialect: str, drop: bool, *, same: bool) -> list[str]:
    """Keys of the source that are copied as they are: those of embeddings, and those that nothing reads.

    Embeddings are copied to dialects that know them, and unread keys where it is the `same` dialect. Raises
    LayerError where some cannot be copied, unless `drop` is on: then they are left out.
    """
    bundled = [key for key in adapter.file.tensors if key.startswith(BUNDLED)]
    kept: list[str] = []
    if write_of(dialect).embeddings:
        kept += bundled
    elif bundled and not drop:
        raise LayerError(
            "E-dialect-without-embeddings",
            file=adapter.path,
            key=bundled[0],
            dialect=dialect,
            count=len(bundled),
            embeddings=adapter.embeddings,
            expected=either([name for name, write in WRITES.items() if write.embeddings]),
        )
    if adapter.unused_keys and same:
        kept += adapter.unused_keys
    elif adapter.unused_keys and not drop:
        raise LayerError(
            "E-dialect-part-unread",
            file=adapter.path,
            key=adapter.unused_keys[0],
            dialect=dialect,
            keys=len(adapter.unused_keys),
            own_dialect=adapter.dialect,
        )
    return kept


def _changes(
    adapter: Adapter, layers: Sequence[Made], loose: Sequence[str], dtype: torch.dtype | None, dialect: str
) -> tuple[str, ...]:
    """`SaveResult.changes`, the most important first."""
    # `planned.shape` is set only for layers that were cut or joined.
    from_many = [layer for layer in layers if len(layer.planned.sources) > 1]
    partial = [layer for layer in layers if layer.planned.shape and len(layer.planned.sources) == 1]
    cut = {layer.planned.sources[0] for layer in partial}
    remarks = Counter(remark for layer in layers for remark in layer.encoded.remarks)
    with_alpha = [layer for layer in layers if layer.source_alpha is None and ALPHA in layer.encoded.tensors]
    # Files with a configuration in the metadata have the scale in a factor instead.
    within = dialect in WRITES and WRITES[dialect].configuration == "within"
    corrected = [layer for layer in layers if not within and alpha_changed(layer)]
    joined = sum(len(m.planned.sources) for m in from_many)
    dropped = _dropped(adapter, loose)
    lines = [
        (adapter.dialect != dialect, phrase("R-names-2", dialect=adapter.dialect, dialect_2=dialect)),
        (dtype is not None, phrase("R-factors", removeprefix=str(dtype).removeprefix("torch."))),
        (
            bool(partial),
            phrase("R-split-or-padded-dialect-s", count=len(cut), count_2=len(partial)),
        ),
        (bool(from_many), phrase("R-joined-into", joined=joined, count=len(from_many))),
        *((True, _counted(remark, count)) for remark, count in remarks.items()),
        (bool(with_alpha), phrase("R-alpha-written-without-one", count=len(with_alpha))),
        (bool(corrected), phrase("R-alpha-corrected", count=len(corrected))),
        (bool(loose), phrase("R-copied-unchanged-embeddings-or-no", count=len(loose))),
        (dropped > 0, phrase("R-left-out-2", dropped=dropped)),
    ]
    return tuple(text for holds, text in lines if holds)


def _counted(remark: str, count: int) -> str:
    """One of `Encoded.remarks` for a number of layers."""
    return remark.format(count=count, layers=number_of(count, "layer"), s="" if count == 1 else "s")


def _dropped(adapter: Adapter, loose: Sequence[str]) -> int:
    bundled = sum(key.startswith(BUNDLED) for key in adapter.file.tensors)
    return bundled + len(adapter.unused_keys) - len(loose)
