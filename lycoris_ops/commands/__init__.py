"""The command line: `python -m lycoris_ops inspect|convert|resize|extract|merge|bake|train`.

Each module in `verbs` is a verb of that name. The first sentence of its docstring is the verb's help. It
defines `add_arguments(parser)`, and `run(options)`, which returns the exit status.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn, cast

from .. import LycorisError, __version__, discover
from ..interrupts import Terminated, raised, status_of
from . import verbs
from .shared import output_state

BAD_INPUT = 2
"""The exit status for wrong arguments and for every LycorisError; `argparse` uses the same."""


class _Parser(argparse.ArgumentParser):
    """A parser that shows its errors on one line, like those of the library."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `arguments`, by default those of this process, as a command line, and return the exit status."""
    options, before = argparse.Namespace(), None
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        # A letter that the terminal's encoding lacks is printed as its code, as Python does on stderr.
        cast("io.TextIOWrapper", stdout).reconfigure(errors="backslashreplace")
    try:
        with raised():
            options = _parser().parse_args(arguments)
            before = output_state(options)
            return int(options.run(options))
    except LycorisError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        # Look at the disk: the interrupt may have come just after the complete file was moved into place.
        unchanged = before is None or output_state(options) == before
        outcome = "nothing was written" if unchanged else f"but {options.out} is written and complete"
        return interrupted(error, outcome)


def interrupted(error: KeyboardInterrupt, outcome: str) -> int:
    """Print how a command ended and what it has written, and return the exit status."""
    ended = "terminated" if isinstance(error, Terminated) else "interrupted"
    print(f"error: {ended}, {outcome}", file=sys.stderr)
    return status_of(error)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lycoris_ops",
        description="Inspect LoRA and LyCORIS files, convert and resize them, merge several as one, extract "
        "them from models, merge them into models, and train them.",
    )
    parser.add_argument("--version", action="version", version=f"lycoris_ops {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for module in discover(verbs.__name__):
        name = module.__name__.rpartition(".")[2]
        # In lower case and without the full stop, as argparse writes its own help.
        help_text = (module.__doc__ or "").partition(".")[0]
        command = commands.add_parser(name, help=f"{help_text[:1].lower()}{help_text[1:]}")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
