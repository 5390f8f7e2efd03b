"""What `resize`, `extract` and `merge` share: the kind and size of the layers, and showing the result."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .. import (
    FITTED,
    KEPT,
    WRITTEN_DIALECTS,
    Adapter,
    Expected,
    Shape,
    check_expected,
    check_output,
    describe_fit,
    describe_saved,
    own_dialect,
    read_shapes,
    save_adapter,
)
from .shared import MODEL, add_dtype, check_spares_models, dtype_of, show


def add_kind(command: argparse.ArgumentParser, *, same: bool, size: str = "auto", also: str = "") -> None:
    """Arguments for the kind and size of layers.

    `size` is the default. `also` adds to the help the sizes that only this verb takes.
    """
    command.add_argument(
        "--size",
        default=size,
        help='"rank 16", a budget ("50MB" or "2000000" parameters), "90%%" of the energy, "1/100" of the '
        f"weights, or auto{also}",
    )
    command.add_argument(
        "--algorithm",
        default="lora",
        choices=(*FITTED, "auto", *(["same"] if same else [])),
        help="the kind of the layers; auto chooses for each layer the kind that keeps most for its bytes"
        + (", same keeps the kind of each layer" if same else ""),
    )
    command.add_argument("--factor", type=int, help="the factor of LoKr; several are tried by default")
    command.add_argument("--tucker", action="store_true", help="give convolutions a Tucker core")
    command.add_argument("--largest", type=int, metavar="RANK", help="the highest rank of a layer")
    command.add_argument("--seed", type=int, default=0, help="the seed of random bases")
    command.add_argument("--device", default="cpu", help="where to compute, such as cuda; cpu by default")


def kind_of(options: argparse.Namespace) -> dict[str, Any]:
    """Those arguments of `add_kind` and `add_result` that the library takes as they are."""
    return {
        "dtype": dtype_of(options),
        "factor": options.factor,
        "tucker": options.tucker,
        "largest": options.largest,
        "seed": options.seed,
        "device": options.device,
    }


def add_result(command: argparse.ArgumentParser, dialect: str, dtype: str = "each keeps its own") -> None:
    command.add_argument("--dialect", choices=WRITTEN_DIALECTS, help=dialect)
    add_dtype(command, "the factors", dtype)


def add_base(command: argparse.ArgumentParser, why: str) -> None:
    command.add_argument("--base", metavar="FILE", help=f"{MODEL}: {why}")


def check_place(options: argparse.Namespace, own: str | None) -> None:
    """Raise WriteError, before the work is done, where the output cannot be written.

    `own` is the dialect to write if the arguments name none.
    """
    check_output(options.out, _dialect(options, own) or KEPT, overwrite=options.overwrite)
    check_spares_models(options)


def checked_names(options: argparse.Namespace, own: str | None) -> Callable[[Mapping[str, Expected]], None]:
    """A check for `prepare`: it raises LycorisError for a layer that the written dialect cannot hold.

    `own` is as for `check_place`.
    """

    def prepare(layers: Mapping[str, Expected]) -> None:
        if dialect := _dialect(options, own):
            check_expected(layers, dialect, name=options.out, model=_model(options))

    return prepare


def _dialect(options: argparse.Namespace, own: str | None) -> str | None:
    """The dialect to write; None where layers keep names that no tool uses."""
    return options.dialect or own_dialect(own or "")


def _model(options: argparse.Namespace) -> dict[str, Shape] | None:
    return read_shapes([options.base]) if options.base else None


def write(options: argparse.Namespace, adapter: Adapter) -> int:
    """Save an adapter as the arguments ask, in its own dialect unless they name one, and show the report."""
    result = save_adapter(
        adapter, options.out, options.dialect, model=_model(options), overwrite=options.overwrite
    )
    assert adapter.report is not None
    data = {**dataclasses.asdict(result), "fit": adapter.report.data()}
    show(options, data, f"{describe_fit(adapter)}\n\n{describe_saved(result)}")
    return 0
