"""The command line: `python -m lycoris_ops inspect|convert|bake`.

A module of `verbs` is a verb: its name is the verb's, its first sentence the help, and it defines
`add_arguments(parser)` and `run(options)`, which returns the exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import LycorisError, discover
from . import verbs

BAD_INPUT = 2
INTERRUPTED = 130
"""What shells give a command that Ctrl-C ended."""


class _Parser(argparse.ArgumentParser):
    """Errors on one line, as those of the library are shown."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, this process's own unless given; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except LycorisError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("error: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lycoris_ops",
        description="Look at LoRA and LyCORIS files, write them anew, merge them into models.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for module in discover(verbs.__name__):
        name = module.__name__.rpartition(".")[2]
        help_text = (module.__doc__ or "").partition(".")[0]
        command = commands.add_parser(name, help=f"{help_text[:1].lower()}{help_text[1:]}")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
