"""Regular expressions out of files: the matches of Python's `re` under PEFT's rule, and no hang."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from children import python
from safetensors.torch import save_file

from lycoris_ops import BLOCK_PRESETS, create_lycoris
from lycoris_ops.errors import RuleError, ScheduleError
from lycoris_ops.expressions import MOST_TEXT, ExpressionError, Expressions, search
from lycoris_ops.peft.patterns import alone, one_of
from lycoris_ops.rules.rules import Rules
from lycoris_ops.rules.scene import Scene
from lycoris_ops.rules.schedule import Schedule
from lycoris_ops.stack.survey import blocks_of

PATHS = [
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.10.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "single_transformer_blocks.7.proj_mlp",
    "blocks.12.self_attn.q",
    "blocks.1.ffn.2",
    "q",
    "to_q",
    "a.to_q.lora",
    "x_blocks.1.ffn.2",
]
HONEST = [
    *(alone(path) for path in PATHS),
    *PATHS,
    "to_q",
    r"to_(q|k|v)",
    r".*attn1.*",
    r"^down_blocks\.\d+\..*to_q$",
    r"blocks\.(?:0|1|12)\.ffn\.[02]",
    r"(^|.*\.)to_out\.0",
    r"blocks\.\d{1,2}\.self_attn\.[a-z]+",
    r"[^.]+\.\d+?\.proj_(mlp|out)",
    r"(down|up)_blocks\.[0-9]+\.attentions\.\w*\.transformer_blocks.*",
    one_of(PATHS[:4]),
    r"blocks.{3}ffn.2",
    r"[]q]",
    r"a\-b|q{,2}|\S+_q",
    "",
]


@pytest.mark.parametrize("expression", ["(", "a)(b", "[a", "*", "(" * 5000])
def test_an_expression_of_a_user_that_cannot_be_read_is_named(expression: str) -> None:
    with pytest.raises(RuleError, match=re.escape(f"/{expression[:9]}")):
        search(expression)


def test_whole_paths_are_matched_as_by_re() -> None:
    for expression in HONEST:
        matcher = Expressions([expression], full=True)
        for path in PATHS:
            found = re.match(f"^({expression})$", path)
            assert matcher.first(path) == (None if found is None else 0), (expression, path)


def test_pefts_own_function_gives_the_first() -> None:
    from peft.utils.other import get_pattern_key

    shuffled = random.Random(0).sample(HONEST, len(HONEST))
    for expressions in (HONEST, shuffled, *([one] for one in HONEST)):
        matcher = Expressions(expressions)
        for path in PATHS:
            number = matcher.first(path)
            assert get_pattern_key(expressions, path) == (path if number is None else expressions[number])


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(", "missing )"),
        ("a)(b", "unbalanced"),
        ("[a", "unterminated"),
        ("*a", "nothing to repeat"),
        ("(" * 5000 + ")" * 5000, "recursion"),
        ("(a{100}){200}", "copies"),
        ("a{99999999}", "copies"),
        ("a?" * 9000, "not paths"),
        ("a" * (MOST_TEXT + 1), "characters"),
    ],
)
def test_an_expression_that_is_not_read_says_why(expression: str, why: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(why)) as caught:
        Expressions(["to_q", expression])
    assert len(str(caught.value)) < 400


HOSTILE = [
    {r"(a+)+!": 1},
    {r"(a|a)*!": 1},
    {r"(a*)*(a*)*!": 1},
    {r"(.*a){20}!": 1},
    {"a?" * 30 + "a" * 30 + "!": 1},
    {r"(\w+\w+)+!": 1},
    {r".*.*.*.*.*!": 1},
    {f".*{'a?' * n}!": 1 for n in range(60)},
    {f"(a|b)*a(a|b){{{n}}}!": 1 for n in range(1, 60)},
    {f"(.*a){{{n}}}.*!": 1 for n in range(1, 60)},
    {"".join((".", "[ab]")[n >> bit & 1] for bit in range(8)) + "!": 1 for n in range(256)},
]

LOAD = """
import sys, time
import lycoris_ops as lyc
lyc.load_adapter(sys.argv[1]).alphas()
for path in sys.argv[1:]:
    spent = time.process_time()
    try:
        print(len(set(lyc.load_adapter(path).alphas().values())))
    except lyc.FileFormatError as error:
        assert "adapter_config.json" in str(error) and "pattern" in str(error), error
        print(str(error)[:200].replace(chr(10), " "))
    # One look at each of the two fields, and 300 layers read.
    assert time.process_time() - spent < 3, path
"""


def test_no_pattern_of_a_file_hangs(tmp_path: Path) -> None:
    """Each file either gives its alphas or an error with its field, within a few seconds of the processor."""
    paths: list[str] = []
    random_ = random.Random(0)
    names = ["a" * 60, *("".join(random_.choices("ab", k=60)) for _ in range(300))]
    tensors: dict[str, Any] = {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(1, 2)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(2, 1)
    for number, patterns in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        folder.mkdir()
        said = {"r": 1, "lora_alpha": 8, "rank_pattern": patterns, "alpha_pattern": patterns}
        (folder / "adapter_config.json").write_text(json.dumps(said))
        save_file(tensors, folder / "adapter_model.safetensors")
        paths.append(str(folder / "adapter_model.safetensors"))
    assert len(python("-c", LOAD, *paths).splitlines()) == len(HOSTILE)


SLOW = [r"(\w+\.?)+!", r"(\w|\w\.?)+[!?]", r"(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3[!?]"]
RULES = [
    *(f"/{slow}/ = 1" for slow in SLOW),
    "\n".join(f"/{SLOW[1]}{{{n}}}/ = 1" for n in range(1, 400)),
    "\n".join(f"/{'(a{9})' * n}/ = 1" for n in range(400)),
    *("[" * size + " = 0.5" for size in (900, 60_000)),
    "[a* " * 10_000 + "= 0.5",
    "\n".join(f"block.{n}.out = 0.5" for n in range(4_000)),
    "in.1 = 0.5\n" * 100_000,
    "ALL\n" * 4_000,
    "%" + ",".join(["in1=1"] * 10_000),
]


@pytest.mark.parametrize("number", range(len(RULES)))
def test_no_rules_of_a_workflow_hang(number: int) -> None:
    """Rules give weights or an error within two seconds of the processor, however they are written."""
    shapes = {
        f"diffusion_model.input_blocks.{n}.1.attn{k}.to_q.weight": (8, 8) for n in range(99) for k in "12"
    }
    blocks = blocks_of(shapes)
    scene = Scene(blocks, {named.paths[0]: named for named in blocks.layers})
    for parse in (lambda text: Rules.parse(text, BLOCK_PRESETS), Schedule.parse):
        spent = time.thread_time()
        with suppress(RuleError, ScheduleError):
            parse(RULES[number]).on(scene)
        assert time.thread_time() - spent < 2


@pytest.mark.parametrize("pattern", SLOW[1:])
def test_an_expression_that_takes_too_long_is_named(pattern: str) -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("a" * 60, "attn1_" * 10)})
    for options in ({"include": f"/{pattern}/"}, {"overrides": {f"/{pattern}/": {"rank": 2}}}):
        with pytest.raises(RuleError, match=r"takes too long.*more than 0.4 s"):
            create_lycoris(model, **options)


def test_many_quick_look_ups_are_never_refused() -> None:
    """Their time does not add up over the runs of a long session, nor does that of other texts count."""
    fits = search(r"blocks\.\d+\.(attn|mlp)")
    for slow in range(3):
        with suppress(RuleError):
            search(SLOW[1])("a" * 60 + f"{slow}")
    assert sum(fits(f"double_blocks.{number}.attn.qkv") for number in range(300_000)) == 300_000


def test_a_quick_look_up_does_not_read_the_clock_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes longer than the look-up, and rules of a large model take 100,000."""
    read: list[float] = []
    clock = time.thread_time
    monkeypatch.setattr(time, "thread_time", lambda: read.append(clock()) or read[-1])
    fits, other = search(r"blocks\.\d+\.(attn|mlp)"), Expressions([r"blocks\.\d+\.(attn|mlp)"])
    for number in range(1000):
        assert fits(f"double_blocks.{number}.attn.qkv") and other.first(f"blocks.{number}.attn") == 0
    assert len(read) < 100
    with pytest.raises(RuleError, match="takes too long"):
        search(SLOW[1])("a" * 60)
    assert len(read) > 2


def test_without_the_package_regex_a_files_expression_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    assert Expressions([*PATHS, alone("a.b")]).first("x.a.to_q") == PATHS.index("to_q")
    with pytest.raises(ExpressionError, match="pip install regex"):
        Expressions(["to_(q|k)"])
    for act in (search, lambda text: Rules.parse(f"/{text}/ = 0.5")):
        with pytest.raises(RuleError, match=r"needs the package regex.*pip install regex, or write a glob"):
            act("to_(q|k)")
