"""The node Load LoRA / LyCORIS (rows)."""

from __future__ import annotations

from functools import partial

from ...lycoris_ops import About, Stack, about, adapter_stamp
from ..files.beside import notes_beside, trigger_words
from ..files.loras import lora_path
from ..host.page import io
from ..schema.checks import check, checked
from ..schema.inputs import LOAD, stack_input, stack_output
from ..schema.report import valid
from ..stacks.entries import check_row, entry_of
from ..stacks.presets import own_presets
from ..stacks.rows import EMPTY, live, parse_rows, row_tables


class LycorisAdapterRows(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisAdapterRows",
            display_name="Load LoRA / LyCORIS (rows)",
            category=LOAD,
            description="Adds any number of LoRA or LyCORIS files to a stack, one in each row, with a "
            "switch, strengths and block rules of its own. A row that is off costs nothing and is not read.",
            search_aliases=[
                *("power lora loader", "multi lora", "lora stack", "lora loader stack", "load lora", "lora"),
                *("lycoris", "trigger words", "lora rows", "loha", "lokr"),
            ],
            inputs=[
                io.String.Input(
                    "rows",
                    default=EMPTY,
                    multiline=True,
                    tooltip="The rows as JSON, in their order, or as the tags of a prompt. The node shows "
                    "them as a list; this is the same as text, for the API and for other nodes.",
                ),
                stack_input("A stack to add these rows to; empty starts a new one."),
            ],
            outputs=[
                stack_output("The stack with the rows that are on added at its end."),
                io.String.Output(
                    "trigger_words",
                    display_name="trigger words",
                    tooltip="The trigger words of the rows that are on, with commas between them, as far as "
                    "the files say them.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, rows: str | None = None) -> bool | str:
        # None when another node gives the rows: that node has not run yet.
        return True if rows is None else _check(rows)

    @classmethod
    def fingerprint_inputs(cls, rows: str | None = None, **_: object) -> str:
        return "" if rows is None else _stamp(rows)

    @classmethod
    @checked
    def execute(cls, rows: str, stack: Stack | None = None) -> io.NodeOutput:
        own = own_presets()
        on = live(parse_rows(rows))
        added = [entry_of(index, row, own) for index, row in on]
        words = dict.fromkeys(
            word
            for entry, (_, row) in zip(added, on, strict=True)
            for adapter, file in zip(entry.adapters, row.files, strict=True)
            for word in _words(about(adapter), file)
        )
        return io.NodeOutput((stack or Stack()) + Stack(added), ", ".join(words))


def _check(rows: str) -> bool | str:
    """True, or what is wrong with the rows, one line for each."""
    verdict = valid(lambda: check("rows", "STRING", rows), lambda: row_tables(rows))
    if isinstance(verdict, str):
        return verdict
    own = own_presets()
    answers = [valid(partial(check_row, index, table, own)) for index, table in enumerate(row_tables(rows))]
    return "\n".join(text for text in answers if isinstance(text, str)) or True


def _stamp(rows: str) -> str:
    """A text that changes with the file of any active row, with the trigger words beside it, and with
    the presets that its rules may name."""
    on = [row for _, row in live(parse_rows(rows))]
    presets = repr(own_presets().presets) if any(row.rules.strip() for row in on) else ""
    paths = [lora_path(file) for row in on for file in row.files]
    words = repr([notes_beside(path).words for path in paths])
    return ";".join([*(adapter_stamp(path) for path in paths), presets, words])


def _words(said: About, file: str) -> tuple[str, ...]:
    return trigger_words(said.triggers, said.stated, notes_beside(lora_path(file)))
