"""The process that takes files through the stages: `python -m tests.soak.worker FOLDER TRACES`.

Each line of standard input is a job, a JSON table: {"seed": S, "number": N} is a file of a campaign,
{"pristine": N} a valid file, and {"crafted": NAME} one made by hand. Each is answered on standard output by
a line of JSON.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import torch

from lycoris_ops import commands
from lycoris_ops.files import tensor_file
from lycoris_ops.reading import load

from .limits import Limits
from .source import Source
from .stages import Taker

AGAIN = 75
"""The status of a process that has answered, and is to be followed by a fresh one."""


def _serve(source: Source, taker: Taker, answers: TextIO) -> None:
    """Answer jobs until there are no more, or until a file was stopped in the middle."""
    for line in sys.stdin:
        job = json.loads(line)
        outcome = taker.take(source.case(job))
        # Adapters that the library remembers would count as the next files' memory.
        load._load.cache_clear()
        print(json.dumps(asdict(outcome)), file=answers, flush=True)
        # After a file that was stopped, or that took much memory, the process may be in any state.
        if any(finding.what in ("time", "memory") for finding in outcome.findings):
            os._exit(AGAIN)


def main() -> None:
    folder, traces = Path(sys.argv[1]), Path(sys.argv[2])
    # What the library prints, if anything, must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    warnings.simplefilter("ignore")
    # One thread also because processes are forked below.
    torch.set_num_threads(1)
    # For speed alone: waiting for the clock, and a parser made anew for every command.
    tensor_file.TICK = 0
    commands._parser = functools.cache(commands._parser)
    source = Source()
    with traces.open("a") as stacks:
        taker = Taker(folder, Limits(stacks))
        taker.warm(source.seeds)
        print("ready", file=answers, flush=True)
        while True:
            # A child costs milliseconds, and a new process seconds.
            child = os.fork()
            if not child:
                status = 1
                try:
                    _serve(source, taker, answers)
                    status = 0
                except BaseException:  # noqa: BLE001 - shown by the process that started this one
                    traceback.print_exc()
                finally:
                    os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                return
            if status != AGAIN:
                print(json.dumps({"died": status}), file=answers, flush=True)


if __name__ == "__main__":
    main()
