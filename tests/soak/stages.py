"""Takes one file through all that a user can do with it, and reports what went wrong."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import traceback
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.commands import main
from lycoris_ops.names.dialects import DIALECTS

from . import containers
from .case import CANARY, Case
from .case import of as case_of
from .limits import BYTES, SECONDS, Limits, OutOfTimeError
from .seeds import CONFIG, MODELS, Seed, base_of

T = TypeVar("T")
NEAR = 2e-5
"""The largest error, relative to the largest value: the rounding of float32 sums of some dozen terms."""
LAYERS = 40
"""How many layers of one file are computed. Files with more are about names and headers."""
LARGE = 1 << 20
"""The largest weight, in values, for which a change is computed."""
BUNDLED = "bundle_emb."
WARM = tuple(
    f"{kind}/safetensors" for kind in ("lora/kohya", "loha/kohya", "lokr-full-low/peft", "tlora/kohya")
)
"""The seeds that are used once before the first file."""


@dataclass(frozen=True)
class Finding:
    """Something that a file must not cause."""

    what: str
    """`exception`, `time`, `memory`, `died`, `wrong`, `not finite`, `lost`, `text`, `rest` or `refused`."""
    stage: str
    kind: str
    """The type of the exception, or a few words for what is wrong."""
    where: str
    """The place in the library that raised it."""
    message: str

    @property
    def group(self) -> tuple[str, str, str]:
        """What findings with one cause share. The stage counts only where no place is known, because several
        stages do the same."""
        return (self.what, self.kind, "" if self.what == "text" else self.where or self.stage)


@dataclass(frozen=True)
class Outcome:
    """What became of a file."""

    name: str
    findings: tuple[Finding, ...] = ()
    refused: str | None = None
    """The first stage that refused the file, None where none did."""
    message: str = ""
    """The beginning of the error with which it was refused."""
    compared: int = 0
    """How many results were compared with what they must be."""
    took: float = 0.0
    """CPU seconds of the library."""


class _RefusedError(Exception):
    """The file has used up its time, and no further stage is tried."""


def text_fault(text: str, *, one_line: bool) -> str | None:
    """What is wrong with a text that is shown, None where nothing is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "a lone surrogate"
    for character in text:
        if unicodedata.category(character) == "Cc" and (one_line or character != "\n"):
            return "a control character"
    if any(line.strip().startswith(CANARY) for line in text.splitlines()):
        return "a line that the file made up"
    return None


class Taker:
    """Takes files through the stages, in a folder of its own."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.bases = {name: base_of(name) for name in MODELS}
        self.base_files: dict[str, Path] = {}
        for name, tensors in self.bases.items():
            self.base_files[name] = folder / f"{name}.safetensors"
            self.base_files[name].write_bytes(containers.packed(tensors, {"format": "pt"}))
        self._pristine: dict[Seed, dict[str, Tensor]] = {}
        self._number = 0

    def warm(self, seeds: list[Seed]) -> None:
        """Use once what is imported or compiled at its first use, so that no file is blamed for it."""
        with self.limits.lifted():
            for seed in seeds:
                if seed.name not in WARM:
                    continue
                self.take(case_of("nothing", seed, seed.blob, same=1.0))
                for dtype in (torch.bfloat16, torch.float16):
                    base = {key: weight.to(dtype) for key, weight in self.bases[seed.model].items()}
                    adapter = lyc.load_adapter(self._written(seed), cache=lyc.TensorCache(0))
                    for key, pairs in (
                        lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), MODELS[seed.model]).pairs().items()
                    ):
                        lyc.patch_(base[key], [(match.read(adapter), 0.1) for _, match in pairs])

    def take(self, case: Case) -> Outcome:
        """Take one file through all stages."""
        self._number += 1
        # Named by process, because one that was killed leaves its folder behind.
        room = self.folder / f"case{os.getpid()}-{self._number}"
        for name, blob in case.files.items():
            path = room / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
            # An old time: for a file that was just written, the library would wait some milliseconds.
            os.utime(path, (1, 1))
        if case.same is not None and case.seed is not None and case.seed not in self._pristine:
            self._pristine[case.seed] = self._changes_of(case.seed)
        took = _Take(self, case, room)
        self.limits.begin()
        with contextlib.suppress(_RefusedError):
            took.run()
        grown = self.limits.end()
        if grown > BYTES:
            took.find("memory", f"{grown >> 20} MB", "", "more memory than a file may take")
        took.check_rest()
        shutil.rmtree(room, ignore_errors=True)
        return Outcome(
            name=case.name,
            findings=tuple(took.findings),
            refused=took.refused,
            message=took.message[:300],
            compared=took.compared,
            took=round(self.limits.used, 3),
        )

    def _changes_of(self, seed: Seed) -> dict[str, Tensor]:
        """The change of each weight by a valid file. The conformance tests check that it is right."""
        adapter = lyc.load_adapter(self._written(seed), cache=lyc.TensorCache(0))
        resolution = lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), MODELS[seed.model])
        base = self.bases[seed.model]
        return {key: change(adapter, pairs, base[key]) for key, pairs in resolution.pairs().items()}

    def _written(self, seed: Seed) -> Path:
        """A file of a seed, with its configuration beside it."""
        self._number += 1
        room = self.folder / f"seed{os.getpid()}-{self._number}"
        room.mkdir()
        path = room / f"adapter_model{seed.ending}"
        path.write_bytes(seed.blob)
        if seed.config is not None:
            (room / CONFIG).write_text(json.dumps(dict(seed.config)))
        return path


def change(adapter: lyc.Adapter, pairs: list[Any], weight: Tensor) -> Tensor:
    """The change of a weight at strength 1, in float64 and in the shape that the weight has afterwards."""
    weight = weight.double()
    patched = lyc.patch_(weight.clone(), [(match.read(adapter), 1.0) for _, match in pairs])
    return patched - enlarged(weight, patched.shape)


def _where(error: BaseException) -> str:
    """The innermost line of the library in an error's stack."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "lycoris_ops" in Path(frame.filename).parts]
    if not own:
        return ""
    last = own[-1]
    parts = Path(last.filename).parts
    file = "/".join(parts[parts.index("lycoris_ops") + 1 :])
    return f"{file}:{last.lineno} {last.name}"


def enlarged(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """A weight with zeros around it, in a larger shape."""
    whole = weight.new_zeros(shape)
    whole[tuple(slice(size) for size in weight.shape)] = weight
    return whole


def _short(text: str) -> str:
    return repr(text if len(text) < 200 else f"{text[:200]}...")[1:-1]


class _Take:
    """One file on its way through the stages."""

    def __init__(self, taker: Taker, case: Case, room: Path) -> None:
        self.taker, self.case, self.room = taker, case, room
        self.findings: list[Finding] = []
        self.refused: str | None = None
        self.message = ""
        self.reported = False
        self.compared = 0
        self.patched: dict[str, Tensor] = {}
        """The weights of the model with their changes at half strength, as far as they could be computed."""
        self.stage = "load"
        self.kept = {str(path.relative_to(room)) for path in room.rglob("*")}

    def find(self, what: str, kind: str, where: str, message: str) -> None:
        self.findings.append(Finding(what, self.stage, kind, where, _short(message)))

    def call(self, stage: str, action: Callable[[], T]) -> T | None:
        """The result of one action within the limits; None where it raises."""
        self.stage = stage
        try:
            with self.taker.limits.spending():
                return action()
        except lyc.LycorisError as error:
            if self.refused is None:
                self.refused, self.message = stage, str(error)
            if fault := text_fault(str(error), one_line=True):
                self.find("text", fault, _where(error), str(error))
            return None
        except OutOfTimeError as error:
            self.find("time", f"over {SECONDS:g} s", _where(error), "")
            raise _RefusedError from None
        except BaseException as error:  # noqa: BLE001 - any of them is a finding
            self.find("exception", type(error).__name__, _where(error), str(error))
            return None

    def show(self, text: str) -> None:
        if fault := text_fault(text, one_line=False):
            self.find("text", fault, "", text)

    def run(self) -> None:
        case = self.case
        path = self.room / case.adapter
        cache = lyc.TensorCache(64 << 20)
        adapter = self.call("load", lambda: lyc.load_adapter(path, cache=cache))
        if adapter is not None:
            self._info(adapter)
            self._layers(adapter)
            self._resolved(adapter)
        if not case.says:
            # The command opens the file itself, even if it cannot be read.
            self._inspect(path)
        if adapter is not None:
            self._save(adapter)
            self._merge(adapter)
        if case.same is not None and self.refused is not None:
            self.stage = self.refused
            self.find("refused", "an honest file", "", self.message)
        if case.refused and self.refused is None and not self.reported:
            self.stage = "all"
            self.find("wrong", "nothing was refused", "", "a file without a right reading was read")
        named = self.refused == "load" and case.adapter in self.message
        if case.says and not (named and re.search(case.says, self.message, re.DOTALL)):
            self.stage = "load"
            self.find("wrong", "not the error that was expected", case.says, self.message)

    @property
    def base_file(self) -> Path:
        name = self.case.base
        return self.room / name if name else self.taker.base_files[self.case.model]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return MODELS[self.case.model]

    def _info(self, adapter: lyc.Adapter) -> None:
        found = self.call("info", lambda: lyc.summary(adapter))
        if found is None:
            return
        if (words := self.call("info", lambda: lyc.in_words(found))) is not None:
            self.show(words)
        self.call("info", lambda: json.dumps(found))
        self.call("info", lambda: lyc.adapter_stamp(self.room / self.case.adapter))
        self.reported = bool(adapter.unused_keys)
        used = {key for info in adapter.info.values() for key in info.keys.values()}
        used |= set(adapter.unused_keys)
        # A tensor without values holds nothing that could be lost.
        held = [key for key, tensor in adapter.file.tensors.items() if 0 not in tensor.shape]
        if lost := [key for key in held if key not in used and not key.startswith(BUNDLED)]:
            self.find("lost", "a key", "", f"neither used nor reported: {lost[0]}")

    def _layers(self, adapter: lyc.Adapter) -> None:
        """Each layer on a weight of its own shape."""
        for name in list(adapter.info)[:LAYERS]:
            layer = self.call("layer", lambda name=name: adapter.layer(name))
            if layer is None:
                continue
            extent = self.call("layer", lambda layer=layer: layer.extent)
            if not extent:
                continue
            # Of SingLoRA only the larger side is known.
            larger = max(size for shape in layer.shapes.values() for size in shape or (1,))
            shape = tuple(larger if size is None else size for size in extent)
            if math.prod(shape) > LARGE:
                continue
            for dtype in (torch.float64, torch.float32):
                weight = torch.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape)
                change = self.call("change", lambda w=weight, layer=layer: layer.change(w))
                if change is None:
                    continue
                for part in (change.delta, change.bias):
                    if part is not None and not torch.isfinite(part).all():
                        self.find("not finite", "of finite factors", type(layer).__name__, name)
                if change.delta is not None and change.delta.shape != weight.shape and not layer.enlarged():
                    self.find("wrong", "another shape", type(layer).__name__, f"{name}: {change.delta.shape}")
                if dtype is torch.float32 or change.delta is None or change.delta.shape != weight.shape:
                    continue
                added = self.call(
                    "patch", lambda w=weight, layer=layer: lyc.patch_(w.clone(), [(layer, 0.5)])
                )
                if added is not None:
                    self.compare(added, weight + 0.5 * change.delta, f"{name} added to a weight")

    def _resolved(self, adapter: lyc.Adapter) -> None:
        stack = lyc.Stack([lyc.Entry(adapter, 0.5)])
        self.call("resolve", lambda: lyc.resolve(stack, list(self.shapes)))
        shapes = self.shapes
        if self.case.base is not None:
            found = self.call("model", lambda: lyc.read_shapes([self.base_file]))
            if found is None:
                return
            shapes = found
        resolution = self.call("resolve", lambda: lyc.resolve(stack, shapes))
        if resolution is None:
            return
        (entry,) = resolution.entries
        self.reported = self.reported or bool(entry.mismatches or entry.unmatched)
        # What does not fit is an error here, and a line of the report below.
        self.call("resolve", resolution.check)
        if (report := self.call("describe", lambda: lyc.describe(resolution))) is not None:
            self.show(report)
        if self.case.base is None:
            self._patch(adapter, resolution)

    def _patch(self, adapter: lyc.Adapter, resolution: lyc.Resolution) -> None:
        """Each weight of the model with its change. For an honest file the change is known."""
        case, base = self.case, self.taker.bases[self.case.model]
        known = {} if case.same is None or case.seed is None else self.taker._pristine[case.seed]
        for key, pairs in list(resolution.pairs().items())[:LAYERS]:

            def patched(key: str = key, pairs: list[Any] = pairs) -> Tensor:
                parts = [(match.read(adapter), match.strength) for _, match in pairs]
                return lyc.patch_(base[key].clone(), parts)

            found = self.call("patch", patched)
            if found is None:
                continue
            self.patched[key] = found
            if not torch.isfinite(found).all():
                self.find("not finite", "a patched weight", "", key)
            elif key in known:
                before = enlarged(base[key].double(), found.shape)
                self.compare(found, before + 0.5 * case.same * known[key], f"patched {key}")
        self.stage = "resolve"
        for key in known.keys() - self.patched.keys():
            self.find("lost", "a layer", "", f"{key} is no longer changed")

    def compare(self, found: Tensor, wanted: Tensor, what: str) -> None:
        self.compared += 1
        if found.shape != wanted.shape:
            self.find("wrong", "shape", "", f"{what}: {list(found.shape)}, not {list(wanted.shape)}")
            return
        if not torch.isfinite(found).all():
            self.find("not finite", "a change", "", what)
            return
        error, size = (found.double() - wanted).abs().max(), wanted.abs().max()
        if not error <= NEAR * size.clamp_min(1e-3):
            self.find("wrong", "values", "", f"{what}: off by {error:.3g} of {size:.3g}")

    def _inspect(self, path: Path) -> None:
        for more in (["--model", str(self.base_file)], ["--json"]):
            out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in "12")

            def shown(more: list[str] = more, out: Any = out, err: Any = err) -> int:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    status = main(["inspect", str(path), *more])
                    out.flush()
                    err.flush()
                return status

            status = self.call("inspect", shown)
            if status is None:
                continue
            said, wrong = (stream.buffer.getvalue().decode() for stream in (out, err))
            if status == 0 and "--json" in more:
                self.call("inspect", lambda said=said: json.loads(said))
            self.show(said)
            if status not in (0, 2) or (status == 2) != wrong.startswith("error: "):
                self.find("wrong", f"status {status}", "", wrong)
            if fault := text_fault(wrong.removesuffix("\n"), one_line=True):
                self.find("text", fault, "", wrong)

    def _save(self, adapter: lyc.Adapter) -> None:
        case = self.case
        dialect = (
            case.dialect
            or lyc.WRITTEN_DIALECTS[
                zlib.crc32(case.name.encode("utf-8", "replace")) % len(lyc.WRITTEN_DIALECTS)
            ]
        )
        folder = self.room / "saved"
        folder.mkdir()
        out = folder / f"{DIALECTS[dialect].file or 'adapter_model'}.safetensors"
        saved = self.call(
            "save", lambda: lyc.save_adapter(adapter, out, dialect, model=self.shapes, drop_unread=True)
        )
        self.kept |= {"saved"}
        if saved is None:
            # Whatever other dialects cannot hold is no fault of the file.
            if case.same is not None and self.refused == "save":
                self.refused = None
            return
        self.kept |= {f"saved/{out.name}", f"saved/{CONFIG}", "saved/README.md"}
        self._open_plainly(out)
        again = self.call("save", lambda: lyc.load_adapter(out, cache=lyc.TensorCache(0)))
        if again is None:
            self.find("wrong", "what was saved is refused", "", dialect)
            return
        before, after = (self._all_patched(one) for one in (adapter, again))
        if before is None or after is None:
            return
        for key, weight in before.items():
            if key in after:
                self.compare(after[key], weight, f"{key} saved as {dialect}")
            else:
                self.find("lost", "a change in the saved file", dialect, key)

    def _all_patched(self, adapter: lyc.Adapter) -> dict[str, Tensor] | None:
        """Each weight of the model with its change, in float64; None where the library refuses one."""
        resolution = self.call("save", lambda: lyc.resolve(lyc.Stack([lyc.Entry(adapter)]), self.shapes))
        if resolution is None:
            return None
        found: dict[str, Tensor] = {}
        base = self.taker.bases[self.case.model]
        for key, pairs in list(resolution.pairs().items())[:LAYERS]:
            weight = base[key].double()
            changed = self.call("save", lambda pairs=pairs, weight=weight: change(adapter, pairs, weight))
            if changed is None:
                return None
            if changed.shape == weight.shape:
                found[key] = weight + changed
        return found

    def _merge(self, adapter: lyc.Adapter) -> None:
        out = self.room / "merged.safetensors"
        stack = lyc.Stack([lyc.Entry(adapter, 0.5)])
        merged = self.call("merge", lambda: lyc.merge_checkpoint(self.base_file, stack, out))
        if merged is None:
            return
        self.kept |= {"merged.safetensors"}
        written = self._open_plainly(out)
        if written is None:
            return
        before = self._read(self.base_file.read_bytes())
        changed = merged.resolution.pairs()
        for key, tensor in written.items():
            if key not in changed:
                # Tensors of dtypes that torch lacks are not read.
                if key in before and containers.raw(tensor) != containers.raw(before[key]):
                    self.find("wrong", "a tensor that nothing changes", "", key)
            elif not torch.isfinite(tensor.double()).all():
                self.find("not finite", "a merged weight", "", key)
            elif key in self.patched:
                self.compared += 1
                if not torch.equal(tensor, self.patched[key]):
                    self.find("wrong", "a merged weight is not the patched one", "", key)

    def _read(self, blob: bytes) -> dict[str, Tensor]:
        """The tensors that the plain reader finds in a checkpoint which the library has read."""
        try:
            return containers.read(blob)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's file makes the plain reader raise
            self.find("wrong", "a file that cannot be read was read", type(error).__name__, str(error))
            return {}

    def _open_plainly(self, path: Path) -> dict[str, Tensor] | None:
        """The tensors of a written file, as the safetensors package reads them."""
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except Exception as error:  # noqa: BLE001 - whatever that package raises
            # It lacks a few dtypes that are copied as bytes.
            if not re.search("dtype|not supported", str(error), re.IGNORECASE):
                self.find(
                    "wrong", "a written file that safetensors refuses", type(error).__name__, str(error)
                )
            return None

    def check_rest(self) -> None:
        """Find what the library left behind."""
        self.stage = "all"
        there = {str(path.relative_to(self.room)) for path in self.room.rglob("*")}
        for name in sorted(there - self.kept):
            self.find("rest", "a file", "", name)
