"""Open an adapter file. Its header gives the kind and shape of every layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from ..algorithms import explain
from ..algorithms.lora import RESHAPE, check_enlargement
from ..errors import FileFormatError, LayerError, LycorisError, UnsupportedError
from ..files.cache import DEFAULT_CACHE, TensorCache
from ..files.memory_file import MemoryFile
from ..files.pickle_file import PickleFile
from ..files.safetensors_file import SafetensorsFile
from ..files.tensor_file import PICKLES, SAFETENSORS, DerivedFile, Fingerprint, TensorFile
from ..files.writing import set_aside
from ..messages import Phrase, phrase
from ..names.dialects import GENERIC_NAMES, Opened, config_of, opened, unread
from ..names.layer_name import LayerName
from ..names.network_args import network_options
from ..peft import CONFIG_NAME, Config, ConfigFile
from .adapter import BUNDLED, Adapter, LayerInfo, Outline, check_options, options_of, outline_of, spoken_in
from .grouping import group

HEADERS = 64
"""How many opened files are remembered. The header of a large adapter takes about 1 MB."""


def load_adapter(
    path: str | os.PathLike[str], *, cache: TensorCache = DEFAULT_CACHE, **options: Any
) -> Adapter:
    """Open an adapter: .safetensors or .sft, or a pickle of plain tensors (.pt, .pth, .ckpt, .bin), or the
    folder in which PEFT, diffusers or mlx-lm wrote one.

    Only the header of a safetensors file is read. A later call with the same options returns the same adapter
    without reading again, as long as the file's size and modification time stay the same. `options` give what
    a file does not state: `dora` ("paper" or "host", see `algorithms.factored`), `sig_type` of T-LoRA,
    `start` of PEFT's LoRA, `product_of` of LoKr, `terms`, `last` and `constraint` of OFTv2, `feedforward` of
    IA3. They take precedence over the file's metadata and PEFT's configuration.

    Raises FileFormatError for a file that is damaged or holds no adapter, LayerError where the shapes of
    a layer contradict each other, LycorisError for an unknown option or value.
    """
    check_options(options, str(path))
    return _load(*_fingerprints(path), cache, tuple(sorted(options.items())))


def peek_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Open an adapter like `load_adapter`, but always anew and without remembering it.

    For scanning many files: adapters that are in use are not evicted from memory.
    """
    file, config = _fingerprints(path)
    return read_adapter(_open(file.path), config, DEFAULT_CACHE)


def adapter_of_tensors(
    tensors: Mapping[str, Tensor], *, name: str, metadata: Mapping[str, str] | None = None
) -> Adapter:
    """The adapter that a file with these tensors and metadata would hold. Reports call it `name`.

    Raises the same errors as `load_adapter`, and LycorisError for a value that is no tensor.
    """
    for key, value in tensors.items():
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LycorisError(
                "E-adapter-holds-other-values", file=name, key=str(key), got=type(value).__name__
            )
    # Detached, so that the adapter keeps no graph of a training.
    held = {key: value.detach() for key, value in tensors.items()}
    return read_adapter(MemoryFile.of(name, held, metadata or {}), None, DEFAULT_CACHE)


def adapter_stamp(path: str | os.PathLike[str]) -> str:
    """A short text that changes with the adapter's file or the configuration beside it.

    Raises FileFormatError where there is no such file.
    """
    return "+".join(fingerprint.stamp for fingerprint in _fingerprints(path) if fingerprint)


def _fingerprints(path: str | os.PathLike[str]) -> tuple[Fingerprint, Fingerprint | None]:
    """Fingerprints of an adapter's file, and of the configuration beside it, if there is one."""
    path = _file_of(path)
    _check_whole(Path(path))
    # The file first: `with_name` fails on a path without a name, which is no file.
    own = Fingerprint.of(path)
    config = Path(path).with_name(CONFIG_NAME)
    return own, Fingerprint.of(config) if config.is_file() else None


def _file_of(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The adapter's file in a folder that PEFT, diffusers or mlx-lm wrote; any other path unchanged."""
    if not isinstance(path, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LycorisError("E-path-not-an-adapter", got=type(path).__name__)
    if not os.path.isdir(path):
        return path
    folder = Path(path)
    paths = [folder / f"{name}{ending}" for name in GENERIC_NAMES for ending in (".safetensors", ".bin")]
    file = next((candidate for candidate in paths if candidate.is_file()), None)
    if file is None:
        for each in paths:
            _check_whole(each)
        raise FileFormatError(
            "E-folder-holds-no-adapter",
            file=str(path),
            expected=" or ".join(candidate.name for candidate in paths),
        )
    return file


def _check_whole(path: Path) -> None:
    """Raise FileFormatError where a process was killed while it replaced the adapter in a folder."""
    if path.stem not in GENERIC_NAMES or os.path.lexists(path):
        return
    if earlier := set_aside(path):
        raise FileFormatError(
            "E-adapter-set-aside", file=str(path), earlier=earlier.name, name=path.name, config=CONFIG_NAME
        )


# By fingerprints, so that a file that changed is read again.
@lru_cache(maxsize=HEADERS)
def _load(
    fingerprint: Fingerprint,
    config: Fingerprint | None,
    cache: TensorCache,
    options: tuple[tuple[str, Any], ...],
) -> Adapter:
    return read_adapter(_open(fingerprint.path), config, cache, **dict(options))


def read_adapter(file: TensorFile, config: Fingerprint | None, cache: TensorCache, **options: Any) -> Adapter:
    """The adapter in an open file; `config` is the configuration beside it. See `load_adapter`."""
    beside = ConfigFile(config.path) if config else None
    read = opened(file, beside)
    file = read.file
    grouped, unused = group(read)
    options_given = {**network_options(file.metadata), **options}
    info: dict[str, LayerInfo] = {}
    unreadable: dict[str, str] = {}
    names = [LayerName.of(name) for name in grouped]
    for named, (name, keys) in zip(names, grouped.items(), strict=True):
        shapes = tuple([(suffix, file.tensors[key].shape) for suffix, key in keys.items()])
        try:
            outline = outline_of(shapes)
            if outline is not None:
                info[name] = _describe(named, outline, keys, read, options_given)
                continue
        except UnsupportedError as error:
            unreadable[name] = error.problem
            unused.extend(keys.values())
            continue
        except LayerError as error:
            # Tensors of a known kind that contradict each other are an error; an unknown kind is reported.
            raise error.within(file=file.path, key=name) from None
        unreadable[name] = _why_not(frozenset(keys))
        unused.extend(keys.values())
    if unused:
        # A layer that is not read may share tensors with others that are.
        used = {key for each in info.values() for key in each.keys.values()}
        # Once each: layers that are not read may share tensors too.
        unused = [key for key in dict.fromkeys(unused) if key not in used]
    if unused and isinstance(file, DerivedFile):
        # What nothing reads is told and copied as it is in the file.
        file = file.restored(unused)
        unused = [key for key in unused if key in file.tensors]
    if not grouped:
        raise _no_layer(file, unused, beside)
    return Adapter(
        file,
        _name(Path(file.path)),
        read.dialect.name if read.dialect else spoken_in(names, file.metadata),
        info,
        unreadable,
        tuple(key for key in unused if not key.startswith(BUNDLED)),
        tuple(sorted({key.split(".")[1] for key in unused if key.startswith(BUNDLED)})),
        config.path if config else None,
        cache,
    )


# Remembered, because thousands of layers of a file can have the same suffixes.
@lru_cache(maxsize=HEADERS)
def _why_not(suffixes: frozenset[str]) -> str:
    """Why tensors with these suffixes are no readable layer."""
    return unread(suffixes) or explain(suffixes)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.stem in GENERIC_NAMES else path.name


def title_of(name: str) -> str:
    """An adapter's name without the ending; the folder's name where a tool names all its files alike."""
    path = PurePath(name)
    return (path.stem in GENERIC_NAMES and path.parent.name) or path.stem


def _no_layer(file: TensorFile, keys: list[str], config: ConfigFile | None) -> FileFormatError:
    if held := unread(keys, config):
        return FileFormatError("E-file-holds-something-else", file=file.path, held=held, got=_sample(keys))
    return FileFormatError("E-file-holds-no-adapter", file=file.path, got=_sample(keys))


def _options(
    outline: Outline, path: str, config: Config[Any] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of the algorithm's options: those given, else those of the layer's configuration."""
    if config is None and not options:
        return {}
    wanted = options_of(outline.algorithm)
    said = config.options(outline.algorithm, path, outline.shapes) if config else {}
    values = {**said, **options}
    return {option: value for option, value in values.items() if option in wanted}


def _open(path: str) -> TensorFile:
    suffix = Path(path).suffix.lower()
    if suffix in SAFETENSORS:
        return SafetensorsFile.open(path)
    if suffix in PICKLES:
        return PickleFile.open(path)
    raise FileFormatError(
        "E-file-kind-unknown",
        file=path,
        got=suffix or Phrase("R-no-ending"),
        expected=", ".join(SAFETENSORS + PICKLES),
    )


def _describe(
    named: LayerName, outline: Outline, keys: dict[str, str], read: Opened, options_given: Mapping[str, Any]
) -> LayerInfo:
    config = config_of(read, named, outline.algorithm, keys, outline.rank)
    options = _options(outline, named.path, config, options_given)
    enlarges = RESHAPE in keys or (read.dialect is not None and named.text in read.dialect.enlarged)
    if enlarges:
        check_enlargement(outline.shape)
    on_parameter = named.text in read.on_parameters
    doubled = not read.doubled.isdisjoint(keys.values())
    return LayerInfo(named, keys, outline, options, enlarges, config, on_parameter, doubled)


def _sample(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:3])
    return phrase("R-other-keys-such", count=len(keys), shown=shown) if keys else phrase("R-no-key-at-all")
