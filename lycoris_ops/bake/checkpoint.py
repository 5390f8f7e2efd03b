"""Merging a stack into a checkpoint file, tensor by tensor."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import (
    FileFormatError,
    LayerError,
    LycorisError,
    MatchError,
    WriteError,
    located,
)
from ..files.dtypes import DTYPE_NAMES, DTYPES, FLOAT8, FLOATS, ITEM_BITS
from ..files.model_file import ModelFile
from ..files.quantised import (
    Codec,
    Quantised,
    plain_floats,
    quantised_in,
    round_to_float8,
    seed_of,
    stored_as,
)
from ..files.safetensors_file import SafetensorsFile, encode_header, raw_bytes, read_exactly
from ..files.tensor_file import TensorInfo, open_file
from ..files.writing import Progress, check_other, metadata_of, new_files
from ..maths.shapes import Shape
from ..maths.tensors import is_finite
from ..messages import phrase
from ..patch.plan import patch_
from ..stack.resolve import Resolution, resolve
from ..stack.stack import Stack
from .destination import Destination, destination_of
from .saved_names import shared_in, views_of
from .views import FileSlot, FileView, Pairs, placed, slots_of, views_in

COPY_BYTES = 4 << 20
"""The most bytes copied at once, and so between two calls of `progress` while copying."""


@dataclass(frozen=True)
class MergeResult:
    """The result of a merge."""

    path: str
    size: int
    """Bytes of the file."""
    merged: int
    """How many weights and biases the stack changed."""
    copied: int
    """How many tensors of the base it did not change. Their dtype may still have changed."""
    resolution: Resolution
    strange: tuple[str, ...] = ()
    """The changed weights of the base whose values differ from those that an adapter was trained on, as far
    as its file holds these: see `Adapter.base_weights`."""
    shared: Mapping[str, str] = field(default_factory=dict[str, str])
    """The changed weights that several modules of the model share, each with the path of another module that
    changes too. A layer that was trained beside one module should change it alone: then use
    `merge_to(untie=True)`."""

    def __str__(self) -> str:
        """What was written, in words. `describe(resolution)` reports on the adapters."""
        left = sum(entry.left_out for entry in self.resolution.entries if not entry.entry.off)
        return (
            f"{phrase('R-merged-kept', name=Path(self.path).name, merged=self.merged, copied=self.copied)} "
            + (f"{phrase('R-adapters-left-out', left=left)} " if left else "")
            + phrase("R-mb", size=self.size / 1000000.0, path=self.path)
            + "".join(f"\n{phrase('R-has-other-values-than-adapter', key=key)}" for key in self.strange)
            + "".join(
                f"\n{phrase('R-weight-too-changes', key=key, other=other)}"
                for key, other in self.shared.items()
            )
        )


def merge_checkpoint(
    base_path: str | os.PathLike[str],
    stack: Stack,
    out_path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    codec: Codec | None = None,
    strict: bool = False,
    overwrite: bool = True,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Write the base checkpoint with the stack merged into it: W + sum of strength * delta.

    The base is a safetensors file, the index of a model in several files, or the folder of either;
    `destination_of` says which files are written. The base is streamed: at most one of its weights is in
    memory at a time, and adapter layers are read when they are needed. With `dtype` None every tensor keeps
    its dtype: merged weights are one rounding away from the exact sum, and all other tensors are copied byte
    by byte. A float dtype converts every float tensor. The base's metadata is kept, `metadata` is added, and
    the recipe is recorded. The files appear under their names only when they are complete. They may replace
    earlier ones unless `overwrite` is off, but never the base or an adapter of the stack. `progress` is
    called with bytes written.

    Weights in plain float8 are rounded at random, so that small changes are not lost (see
    `round_to_float8`). `views_in` and `views_of` find weights that the file holds as a slice of a tensor,
    transposed, or under another name than the model does. `codec` reads and writes quantised weights, which
    keep their format, whatever the `dtype`. A quantised weight that `codec` does not know cannot be merged
    into.

    Raises MatchError where the stack does not fit (see `Resolution.check`) and where a layer fits a weight
    but adds to a bias that is not there, FileFormatError for a
    base that is damaged or quantised in an unknown way, LayerError where an adapter would enlarge a
    quantised weight or an expert, or change a complex weight, LycorisError for a dtype that weights cannot
    have, and WriteError where the file cannot be written.
    """
    Stack.check(stack)
    stack.check_constant(phrase("R-be-merged-into-file"))
    base = ModelFile.open(base_path)
    destination = destination_of(base, out_path)
    destination.check(base, overwrite=overwrite)
    for path in (entry.adapter.path for entry in stack if os.path.isabs(entry.adapter.path)):
        for file in destination.files:
            check_other(file, path, phrase("R-adapter-stack"))
    quantised, unread = quantised_in(base, codec)
    shapes = {key: info.shape for key, info in base.tensors.items()}
    views = views_in({key: shape for key, shape in shapes.items() if key not in quantised}, stack)
    shapes |= {key: weight.shape for key, weight in quantised.items()}
    resolution = _resolved(stack, shapes, views)
    if any(
        resolved.unmatched or resolved.mismatches for resolved in resolution.entries if not resolved.entry.off
    ):
        views |= views_of(base, shapes)
        resolution = _resolved(stack, shapes, views)
    merge = _Merge(base, destination, placed(resolution.pairs(), views), quantised, unread, codec)
    # Check formats before shapes: packed data do not have the shape of their weight, so the error would be
    # about shapes. A layer at strength 0 changes nothing, so its weight may be in any form.
    misfits = (mismatch for entry in resolution.entries for mismatch in entry.mismatches if mismatch.strength)
    misfit = (slot for misfit_layer in misfits for slot in slots_of(misfit_layer.target.key, views))
    for slot in (*merge.pairs, *misfit):
        merge.check_known(slot.key)
    resolution.check(strict=strict)
    _check_whole(resolution)
    changed = {slot.key: base.tensors[slot.key].shape for slot in merge.pairs}
    shared = shared_in(base, {key: shape[0] for key, shape in changed.items() if shape})
    tensors = merge.outputs(dtype)
    heads = [
        encode_header(
            {name: info for name, info in tensors.items() if destination.shard_of[name] == number},
            metadata_of(shard.metadata, metadata or {}, _recipe(base, stack), "base_recipe"),
        )
        for number, shard in zip(range(len(destination.weights)), base.shards, strict=False)
    ]
    index = [destination.index_text(base, tensors)] if destination.index else []
    others = [file.stat().st_size for file in destination.copied]
    done = sum(map(len, (*heads, *index))) + sum(others)
    size = done + sum(info.end - info.start for info in tensors.values())
    folder = destination.path != destination.weights[0]
    with (
        new_files(destination.files, size, overwrite=overwrite, make_folder=folder) as files,
        ExitStack() as opened,
    ):
        for file, start in zip(files, (*index, *heads), strict=False):
            file.write(start)
        for source, file in zip(
            destination.copied, files[len(files) - len(destination.copied) :], strict=True
        ):
            with open_file(str(source)) as data:
                shutil.copyfileobj(data, file)
        weights = files[len(index) :]
        data = [opened.enter_context(shard.data()) for shard in base.shards]

        def seek(name: str) -> BinaryIO:
            number = destination.shard_of[name]
            weights[number].seek(len(heads[number]) + tensors[name].start)
            return weights[number]

        for run in merge.runs(tensors):
            if isinstance(run, _Copied):
                file = seek(run.first)
                for count in _copy(data[run.shard], file, base.shards[run.shard], run.start, run.end):
                    done += count
                    if progress:
                        progress(done, size)
                continue
            for name, tensor in merge.rewritten(data, run, tensors).items():
                # The tensors of one quantised weight need not follow each other.
                seek(name).write(raw_bytes(tensor))
                done += tensor.nbytes
            if progress:
                progress(done, size)
        # If a source changed meanwhile, the output mixes two versions of it.
        for source in (base, *(entry.adapter.file for entry in stack)):
            source.check_unchanged()
    return MergeResult(
        str(destination.path),
        size,
        len(merge.pairs),
        len(tensors) - len(merge.changed),
        resolution,
        tuple(merge.strange),
        shared,
    )


@dataclass(frozen=True)
class _Copied:
    """Neighbouring tensors of one file of the base that are copied unchanged."""

    first: str
    """The name of the first one."""
    shard: int
    """Which of the base's files they are in."""
    start: int
    """Where their bytes begin in its data section."""
    end: int


@dataclass(frozen=True)
class _Merge:
    """A stack being merged into a base: which tensors change, and how each is read and written."""

    base: ModelFile
    destination: Destination
    pairs: Mapping[FileSlot, Pairs]
    """The layers that change each weight or bias."""
    quantised: Mapping[str, Quantised]
    """All quantised weights of the base that the codec knows, by key."""
    unread: Mapping[str, str]
    """The formats of further ones, see `quantised_in`."""
    codec: Codec | None
    strange: list[str] = field(default_factory=list[str])
    """`MergeResult.strange`, so far."""

    @cached_property
    def plain(self) -> set[str]:
        """Names of the float tensors that hold plain values, see `plain_floats`."""
        return plain_floats(self.base.tensors, {*self.quantised, *self.unread})

    @cached_property
    def changed(self) -> dict[str, str]:
        """The key of the weight that each rewritten tensor belongs to."""
        changed = {key: key for key in self.slots}
        for key in self.slots:
            if key in self.quantised:
                changed |= dict.fromkeys(self.quantised[key].parts, key)
        return changed

    @cached_property
    def slots(self) -> Mapping[str, list[FileSlot]]:
        """The changed slots of each tensor, by its key."""
        slots: dict[str, list[FileSlot]] = {}
        for slot in self.pairs:
            slots.setdefault(slot.key, []).append(slot)
        return slots

    def outputs(self, dtype: torch.dtype | None) -> dict[str, TensorInfo]:
        """The tensors to write, in the base's order, with their new dtypes, shapes and offsets in each file.

        Raises LycorisError for a `dtype` that weights cannot have, LayerError where a layer would enlarge a
        quantised weight or a slot that is not a whole tensor.
        """
        if dtype is not None and DTYPE_NAMES.get(dtype) not in FLOATS:
            raise LycorisError("E-checkpoint-dtype-unknown", got=str(dtype), expected=", ".join(FLOATS))
        for slot in self.pairs:
            if not slot.whole:
                held = self.quantised.get(slot.key) or self.base.tensors[slot.key]
                self._check_size(slot, slot.shape(held.shape), "a parameter")
        outputs: dict[str, TensorInfo] = {}
        ends = [0] * len(self.destination.weights)
        for name, info in self.base.tensors.items():
            written, shape = info.dtype, info.shape
            weight = self.quantised.get(self.changed.get(name, ""))
            if weight is not None:
                self._check_size(FileSlot(weight.key), weight.shape, phrase("R-quantised-weight"))
                written = weight.parts[name]
            elif name in self.plain:
                written = DTYPE_NAMES[dtype] if dtype else info.dtype
                shape = _enlarged(info.shape, self.pairs.get(FileSlot(name), ()))
            size = (math.prod(shape) * ITEM_BITS[written] + 7) // 8
            number = self.destination.shard_of[name]
            outputs[name] = TensorInfo(written, shape, ends[number], ends[number] + size)
            ends[number] += size
        return outputs

    def check_known(self, key: str) -> None:
        """Raise FileFormatError where neither torch nor the codec reads a weight's form, and LayerError where
        it is complex."""
        if key in self.plain or key in self.quantised:
            return
        if self.base.tensors[key].dtype == "C64":
            raise LayerError("E-weight-complex", file=self.base.path, key=key, expected=", ".join(FLOATS))
        raise FileFormatError(
            "E-checkpoint-weight-unread" if self.codec else "E-checkpoint-weight-quantised",
            file=self.base.path,
            key=key,
            got=stored_as(self.base.tensors[key].dtype, self.unread.get(key)),
            expected=", ".join((*FLOATS, *(phrase("R-without-scales", name=name) for name in FLOAT8))),
        )

    def _check_size(self, slot: FileSlot, shape: Shape, what: str) -> None:
        enlarged = _enlarged(shape, self.pairs.get(slot, ()))
        if enlarged != shape:
            raise LayerError(
                "E-checkpoint-quantised-not-enlarged"
                if slot.key in self.quantised
                else "E-checkpoint-tensor-not-enlarged",
                file=self.base.path,
                key=slot.name,
                what=what,
                got=str(list(enlarged)),
                expected=str(list(shape)),
            )

    def runs(self, tensors: Mapping[str, TensorInfo]) -> Iterator[_Copied | str]:
        """What to write, in the base's order: keys of weights to change or convert, and tensors to copy.

        A weight stored as several tensors appears once, where its first tensor is.
        """
        copied: _Copied | None = None
        begun: set[str] = set()
        for name, info in self.base.tensors.items():
            shard = self.base.shard_of[name]
            if copied is not None and copied.shard != shard:
                yield copied
                copied = None
            if name not in self.changed and tensors[name].dtype == info.dtype:
                # Neighbours are copied together, which needs fewer reads and writes.
                copied = (
                    replace(copied, end=info.end) if copied else _Copied(name, shard, info.start, info.end)
                )
                continue
            if copied is not None:
                yield copied
                copied = None
            owner = self.changed.get(name, name)
            if owner not in begun:
                begun.add(owner)
                yield owner
        if copied is not None:
            yield copied

    def rewritten(
        self, data: Sequence[BinaryIO], key: str, tensors: Mapping[str, TensorInfo]
    ) -> Mapping[str, Tensor]:
        """The tensors to write for a changed or converted weight, by name.

        Raises WriteError where values do not fit their format, or where the codec returns tensors of other
        dtypes or shapes than it announced.
        """
        weight = self.quantised.get(key) if key in self.slots else None
        if weight is None or self.codec is None:
            return {key: self._converted(data, key, DTYPES[tensors[key].dtype])}
        stored = {name: self._read(data, name) for name in weight.parts}
        values = self._patched(key, self.codec.decode(weight, stored))
        if not is_finite(values):
            raise self._unfit(key, weight.format)
        encoded = self.codec.encode(weight, values, stored)
        # The header is written already, so other dtypes or shapes would damage the file.
        for name in weight.parts:
            dtype = DTYPE_NAMES.get(encoded[name].dtype)
            if (dtype, tuple(encoded[name].shape)) != (tensors[name].dtype, tensors[name].shape):
                raise WriteError(
                    "E-codec-changed-form",
                    file=self.base.path,
                    key=name,
                    new_dtype=str(encoded[name].dtype),
                    new_shape=list(encoded[name].shape),
                    dtype=tensors[name].dtype,
                    shape=list(tensors[name].shape),
                )
        return {name: encoded[name] for name in weight.parts}

    def _read(self, data: Sequence[BinaryIO], name: str) -> Tensor:
        number = self.base.shard_of[name]
        return self.base.shards[number].read_one(data[number], name)

    def _patched(self, key: str, weight: Tensor) -> Tensor:
        """The weight with the stack's change, which may have been added in place."""
        for slot in self.slots.get(key, ()):
            with located(weight=slot.name):
                # Formats of eight bits and less round by more than `trained_on` allows.
                compared = self.pairs[slot] if self.base.tensors[slot.key].dtype in FLOATS else ()
                if not all(
                    match.parameter == "bias" or entry.adapter.trained_on(match.layer, slot.of(weight))
                    for entry, match in compared
                ):
                    self.strange.append(slot.name)
                layers = [match.read(entry.adapter, keep=False) for entry, match in self.pairs[slot]]
                strengths = (match.strength for _, match in self.pairs[slot])
                patched = patch_(slot.of(weight), list(zip(layers, strengths, strict=True)))
            # Only a whole tensor may have been enlarged.
            weight = patched if slot.whole else weight
        return weight

    def _converted(self, data: Sequence[BinaryIO], key: str, dtype: torch.dtype) -> Tensor:
        """A plain weight of the base, changed where the stack changes it, in `dtype`."""
        weight = self._read(data, key)
        # In float32 where the dtype changes, so that the sum is not rounded to the base's dtype in between.
        eight_bit = weight.itemsize == 1
        if eight_bit or (weight.dtype != dtype and weight.dtype != torch.float64):
            weight = weight.to(torch.float32)
        weight = self._patched(key, weight)
        merged = round_to_float8(weight, dtype, seed_of(key)) if dtype.itemsize == 1 else weight.to(dtype)
        # An unchanged tensor may hold infinity in the base: some masks do.
        if not is_finite(merged) and (key in self.changed or is_finite(weight)):
            raise self._unfit(key, str(dtype))
        return merged

    def _unfit(self, key: str, form: str) -> WriteError:
        return WriteError("E-merged-weight-overflows-dtype", file=self.base.path, key=key, form=form)


def _resolved(stack: Stack, shapes: Mapping[str, Shape], views: Mapping[str, FileView]) -> Resolution:
    known = {**shapes, **{name: view.shape for name, view in views.items()}}
    return resolve(stack, known, absent_because=phrase("R-file-does-not-hold"), oriented=True)


def _check_whole(resolution: Resolution) -> None:
    """Raise MatchError for a layer that would be merged without its change of a bias."""
    for entry in resolution.entries:
        merged = {match.layer: match for match in entry.matches if match.strength != 0.0}
        for left in entry.unmatched:
            if (match := merged.get(left.layer)) is not None:
                raise MatchError(
                    "E-model-bias-absent",
                    file=entry.entry.adapter.path,
                    key=left.layer,
                    weight=match.key,
                    name=match.target.name,
                )


def _enlarged(shape: Shape, pairs: Pairs) -> Shape:
    """The shape of a weight after the layers that enlarge it."""
    for entry, match in pairs:
        info = entry.adapter.info[match.layer]
        if info.enlarges and match.parameter == "weight":
            shape = tuple(max(old, new or 0) for old, new in zip(shape, info.shape, strict=True))
    return shape


def _copy(data: BinaryIO, out: BinaryIO, base: SafetensorsFile, start: int, end: int) -> Iterator[int]:
    """Copy the bytes from `start` to `end` of the base's data section, and yield the size of each chunk."""
    data.seek(base.data_start + start)
    buffer = memoryview(bytearray(min(COPY_BYTES, end - start)))
    left = end - start
    while left:
        chunk = buffer[: min(len(buffer), left)]
        read_exactly(data, chunk, base.path)
        out.write(chunk)
        left -= len(chunk)
        yield len(chunk)


def _recipe(base: ModelFile, stack: Stack) -> dict[str, object]:
    """The recipe: the names of base and adapters, with strengths and rules."""
    adapters = [
        {
            "file": entry.adapter.name,
            "strength": entry.strength,
            "strength_clip": entry.strength_of("te"),
            "rules": str(entry.rules) if entry.rules else "",
        }
        for entry in stack
    ]
    return {"base": (base.folder or Path(base.path)).name, "adapters": adapters}
