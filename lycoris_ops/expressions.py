"""Regular expressions out of files and workflows, matched in linear time.

PEFT's configurations and block rules name layers by regular expressions. Python's `re` can take for ever on
a crafted one, and keeps only a few hundred compiled ones. Here an expression that is a plain path is found in
a trie, and any other one is simulated as an automaton, so that no expression costs more than its length times
that of the text. Backreferences, lookaround and flags are refused: no automaton has them, and nobody needs
them to name layers.
Source: Thompson, "Regular expression search algorithm" (1968); the syntax is that of Python's `re`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .errors import RuleError

MOST_TEXT = 1 << 20
"""The most characters that the expressions of one field may have together. 800 layers of SDXL, each with an
expression of its own, have about 60,000."""
MOST_PARSED = 1 << 17
"""The most characters of those expressions that have more than characters and dots. Parsing these takes half
a second. Where each makes a state, they are 13 times as many as there may be states."""
MOST_STATES = 10_000
"""The most states that the automata of one field may have together: about one for each character of an
expression, and repeated ones (`a{9}`) count as often as they repeat. An honest file has a few dozen."""
MOST_DEPTH = 50
"""The most groups that may be nested. Each takes a few calls on Python's stack."""
MOST_WORK = 4_000_000
"""The most steps that all look-ups in one field may take together, which is about a second. 10,000 layers
with an expression each take about 1,000,000."""
COLD = 4
"""The steps that one state counts for while a transition is made, which is later only looked up."""

Test = Callable[[str], bool]
"""Whether a character is one that an expression has at some place."""


def search(text: str) -> Callable[[str], bool]:
    """The test whether a user's regular expression matches somewhere in a name, as `re.search` has it.

    Workflows come from strangers, as files do. Raises RuleError where the expression cannot be read; the test
    raises it where all names together take too long.
    """

    def unread(error: ExpressionError) -> RuleError:
        return RuleError(
            "a pattern is not a regular expression that can be read",
            got=f"/{text}/: {error}",
            expected="characters, sets, groups, repeats, |, ^ and $",
        )

    try:
        if len(text) > MOST_PARSED:
            raise ExpressionError(f"more than {MOST_PARSED} characters")
        # Alone first: with something around it, a ) too many would close the wrong group.
        _Parser(text).parse()
        found = Expressions([f".*(?:{text}).*"], whole=True)
    except ExpressionError as error:
        raise unread(error) from None

    def matches(name: str) -> bool:
        try:
            return found.first(name) is not None
        except ExpressionError as error:
            raise unread(error) from None

    return matches


class ExpressionError(ValueError):
    """An expression that cannot be matched, or not in time."""


def _any(char: str) -> bool:
    return char != "\n"


def _word(char: str) -> bool:
    return char.isalnum() or char == "_"


CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "w": _word,
    "s": str.isspace,
    "D": lambda char: not char.isdecimal(),
    "W": lambda char: not _word(char),
    "S": lambda char: not char.isspace(),
}
"""The classes of characters by the letter after the backslash."""
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
"""The control characters by the letter after the backslash."""


# The syntax tree. A `str` is a character that stands for itself.


@dataclass(frozen=True)
class Chars:
    """One character that passes a test."""

    test: Test


ANY = Chars(_any)


@dataclass(frozen=True)
class Begin:
    """The start of the text."""


@dataclass(frozen=True)
class End:
    """The end of the text."""


@dataclass(frozen=True)
class Repeat:
    """An item at least `least` times, and at most `most` times or, if that is None, without end."""

    item: Item
    least: int
    most: int | None


@dataclass(frozen=True)
class Group:
    """Alternatives, each a sequence of items."""

    alternatives: tuple[tuple[Item, ...], ...]


Item = str | Chars | Begin | End | Repeat | Group


class _Parser:
    """Reads one expression into its tree."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def parse(self) -> Group:
        found = self._group(0)
        if self.at < len(self.text):
            raise ExpressionError("a ) without its (")
        return found

    def _take(self, wanted: str) -> bool:
        if self.text.startswith(wanted, self.at):
            self.at += len(wanted)
            return True
        return False

    def _next(self) -> str:
        if self.at >= len(self.text):
            raise ExpressionError("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def _group(self, depth: int) -> Group:
        if depth > MOST_DEPTH:
            raise ExpressionError(f"more than {MOST_DEPTH} groups in each other")
        alternatives: list[tuple[Item, ...]] = []
        items: list[Item] = []
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self._take("|"):
                alternatives.append(tuple(items))
                items = []
            else:
                items.append(self._repeated(self._item(depth)))
        return Group((*alternatives, tuple(items)))

    def _item(self, depth: int) -> Item:
        char = self._next()
        if char == "(":
            if self._take("?") and not self._take(":"):
                raise ExpressionError("groups that begin with (? are not read, except (?:")
            group = self._group(depth + 1)
            if not self._take(")"):
                raise ExpressionError("a ( without its )")
            return group
        if char == "[":
            return self._set()
        if char == "\\":
            return self._escape()
        if char in "*+?":
            raise ExpressionError(f"a {char} with nothing before it")
        return {".": ANY, "^": Begin(), "$": End()}.get(char, char)

    def _escape(self) -> Item:
        char = self._next()
        if char in CLASSES:
            return Chars(CLASSES[char])
        if char in "AZ":
            return Begin() if char == "A" else End()
        return self._character(char)

    def _character(self, char: str) -> str:
        """The character that a backslash and `char` stand for."""
        if char in CONTROLS:
            return CONTROLS[char]
        if char.isascii() and char.isalnum():
            raise ExpressionError(f"\\{char} is not read")
        return char

    def _repeated(self, item: Item) -> Item:
        bounds = self._bounds()
        if bounds is None:
            return item
        if isinstance(item, Begin | End):
            raise ExpressionError("an anchor that is repeated")
        # `a*?` matches the same texts as `a*`. Only what it captures differs, and nothing is captured.
        self._take("?")
        if self.text[self.at : self.at + 1] in ("*", "+") or self._bounds() is not None:
            raise ExpressionError("one repetition right after another")
        return Repeat(item, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        """The bounds of a repetition that begins here; None where none does."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        # Before the search for its end, which would take the rest of the text for every item.
        if self.text[self.at : self.at + 1] != "{":
            return None
        stop = self.text.find("}", self.at)
        if stop < 0:
            return None
        least, comma, most = self.text[self.at + 1 : stop].partition(",")
        # As in `re`, a brace around anything but numbers stands for itself.
        if not all(part == "" or (part.isascii() and part.isdigit()) for part in (least, most)):
            return None
        if not comma and not least:
            return None
        if max(len(least), len(most)) > len(str(MOST_STATES)):
            raise ExpressionError(f"a repetition of more than {MOST_STATES} times")
        self.at = stop + 1
        first = int(least or 0)
        last = first if not comma else int(most) if most else None
        if last is not None and last < first:
            raise ExpressionError("a repetition that ends before it begins")
        return first, last

    def _set(self) -> Chars:
        """A set of characters: `[a-z_]`, `[^.]`."""
        negated = self._take("^")
        singles: set[str] = set()
        ranges: list[tuple[str, str]] = []
        tests: list[Test] = []
        first = True
        while first or self.text[self.at : self.at + 1] != "]":
            first = False
            found = self._member()
            if not isinstance(found, str):
                tests.append(found.test)
                continue
            # A dash right before the end stands for itself.
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                last = self._member()
                if not isinstance(last, str) or last < found:
                    raise ExpressionError("a range of characters that ends before it begins")
                ranges.append((found, last))
            else:
                singles.add(found)
        self.at += 1

        def among(char: str) -> bool:
            known = (
                char in singles
                or any(low <= char <= high for low, high in ranges)
                or any(test(char) for test in tests)
            )
            return known != negated

        return Chars(among)

    def _member(self) -> str | Chars:
        char = self._next()
        if char != "\\":
            return char
        char = self._next()
        return Chars(CLASSES[char]) if char in CLASSES else self._character(char)


# A state is a test with the number of the state that follows, or an anchor with such a number, or the numbers
# of the states that it stands for.
_State = tuple[Test | Begin | End | None, tuple[int, ...]]
ACCEPTED = 0
"""The number of the state in which all of an expression is matched."""


@dataclass(eq=False)
class _Place:
    """A set of states that a text leads to, with what is known of the texts that go on from there."""

    states: frozenset[int]
    steps: dict[str, _Place] = field(default_factory=dict[str, "_Place"])
    """The place after one more character."""
    final: bool | None = None
    """Whether the text may end here; None where nobody has asked."""


@dataclass(eq=False)
class _Automaton:
    """An expression as states; the sets of states that texts lead to are made once and kept."""

    states: list[_State] = field(default_factory=lambda: [(None, ())])
    start: int = ACCEPTED
    _places: dict[frozenset[int], _Place] = field(default_factory=dict[frozenset[int], _Place])

    @classmethod
    def of(cls, items: Sequence[Item], room: int) -> _Automaton:
        """Raises ExpressionError where it needs more than `room` states."""
        made = cls()
        made.start = made._sequence(items, ACCEPTED, room)
        return made

    def matches(self, text: str, spend: Callable[[int], None]) -> bool:
        """Whether the expression matches the whole text. `spend` is told of each step."""
        place = self._first
        spend(len(text))
        for char in text:
            after = place.steps.get(char)
            if after is None:
                spend(COLD * (1 + len(place.states)))
                after = place.steps[char] = self._after(place, char)
            place = after
            if not place.states:
                return False
        if place.final is None:
            spend(COLD * len(place.states))
            whole = self._closed(tuple(place.states), begin=not text, end=True)
            if not text:
                return ACCEPTED in whole
            place.final = ACCEPTED in whole
        return place.final

    @cached_property
    def _first(self) -> _Place:
        return self._place(self._closed((self.start,), begin=True, end=False))

    def _after(self, place: _Place, char: str) -> _Place:
        moved = [
            after[0]
            for test, after in (self.states[number] for number in place.states)
            if callable(test) and test(char)
        ]
        return self._place(self._closed(moved, begin=False, end=False))

    def _place(self, states: frozenset[int]) -> _Place:
        return self._places.setdefault(states, _Place(states))

    def _closed(self, numbers: Sequence[int], *, begin: bool, end: bool) -> frozenset[int]:
        """The states that these stand for, at the begin or the end of the text."""
        found: set[int] = set()
        ahead = list(numbers)
        while ahead:
            number = ahead.pop()
            if number in found:
                continue
            found.add(number)
            test, after = self.states[number]
            if test is None or (isinstance(test, Begin) and begin) or (isinstance(test, End) and end):
                ahead += after
        return frozenset(found)

    def _add(self, test: Test | Begin | End | None, after: tuple[int, ...], room: int) -> int:
        if len(self.states) >= room:
            raise ExpressionError(f"more than {MOST_STATES} states")
        self.states.append((test, after))
        return len(self.states) - 1

    def _sequence(self, items: Sequence[Item], after: int, room: int) -> int:
        for item in reversed(items):
            after = self._item(item, after, room)
        return after

    def _item(self, item: Item, after: int, room: int) -> int:
        """The first of the states that match `item` and then go on to the state `after`."""
        if isinstance(item, Group):
            firsts = tuple(self._sequence(items, after, room) for items in item.alternatives)
            return self._add(None, firsts, room)
        if isinstance(item, Repeat):
            return self._repeat(item, after, room)
        if isinstance(item, Chars):
            return self._add(item.test, (after,), room)
        return self._add(item.__eq__ if isinstance(item, str) else item, (after,), room)

    def _repeat(self, repeat: Repeat, after: int, room: int) -> int:
        if repeat.most is None:
            loop = self._add(None, (), room)
            first = self._item(repeat.item, loop, room)
            self.states[loop] = (None, (first, after))
            after = loop
        else:
            done = after
            for _ in range(repeat.most - repeat.least):
                after = self._add(None, (self._item(repeat.item, after, room), done), room)
        for _ in range(repeat.least):
            after = self._item(repeat.item, after, room)
        return after


PREFIX: tuple[Item, ...] = (Repeat(Group(((Repeat(ANY, 0, None), "."),)), 0, 1),)
"""`(.*\\.)?`, which PEFT puts before an expression that may match the end of a path."""

SIMPLE = re.compile(r"(\^?)((?:\\[^a-zA-Z0-9]|[^\\()\[\]{}*+?|^$])+)\$?")
"""An expression of characters and dots alone, perhaps between anchors, as nearly all are.

Groups: the anchor at the begin, and the characters."""
CHARACTER = re.compile(r"\\?.", re.DOTALL)
"""One character of such an expression, with the backslash before it."""

_Node = dict[str, Any]
WHOLE, AFTER_DOT, DOT = "whole", "after a dot", "any"
"""Keys of a node of the trie beside characters: the number of the expression that matches a whole path, that
of the one that also matches the end of a path after a dot, and the node after any character."""


class Expressions:
    """The expressions of one field, in their order.

    By PEFT's rule an expression must match a whole path, or its end after a dot. With `whole` only the first
    counts. Raises ExpressionError, which says which expression cannot be read and why.
    """

    def __init__(self, texts: Sequence[str], *, whole: bool = False) -> None:
        if sum(map(len, texts)) > MOST_TEXT:
            raise ExpressionError(f"more than {MOST_TEXT} characters in all expressions")
        self._whole = whole
        self._trie: _Node = {}
        self._automata: list[tuple[int, _Automaton]] = []
        self._found: dict[str, int | None] = {}
        self._left = MOST_WORK
        room = MOST_STATES
        parsed = 0
        for number, text in enumerate(texts):
            # Not parsed, which takes several times as long.
            simple = [SIMPLE.fullmatch(path) for path in text.split("|")]
            if all(simple):
                for match in filter(None, simple):
                    keys = [DOT if key == "." else key[-1] for key in CHARACTER.findall(match[2])]
                    self._enter(keys, number, whole=bool(match[1]))
                continue
            parsed += len(text)
            try:
                if parsed > MOST_PARSED:
                    raise ExpressionError(
                        f"more than {MOST_PARSED} characters in expressions with repetitions"
                    )
                alternatives = _Parser(text).parse().alternatives
                rest = tuple(items for items in alternatives if not self._enter_items(items, number))
                if rest:
                    made = _Automaton.of((*(() if whole else PREFIX), Group(rest)), room)
                    room -= len(made.states)
                    self._automata.append((number, made))
            except ExpressionError as error:
                raise ExpressionError(f"{error}, in {text[:200]!r}") from None

    def first(self, path: str) -> int | None:
        """The number of the first expression that matches a path; None where none does.

        Raises ExpressionError where all look-ups together have taken `MOST_WORK` steps.
        """
        if path not in self._found:
            best = self._in_trie(path)
            for number, automaton in self._automata:
                if best is not None and best <= number:
                    break
                if automaton.matches(path, self._spend):
                    best = number
                    break
            self._found[path] = best
        return self._found[path]

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise ExpressionError(f"more than {MOST_WORK} steps to match them")

    def _enter_items(self, items: tuple[Item, ...], number: int) -> bool:
        """Enter a sequence of characters and dots; False for any other one."""
        begins = bool(items) and isinstance(items[0], Begin)
        items = items[1:] if begins else items
        if items and isinstance(items[-1], End):
            items = items[:-1]
        if not items or not all(isinstance(item, str) or item is ANY for item in items):
            return False
        self._enter([item if isinstance(item, str) else DOT for item in items], number, whole=begins)
        return True

    def _enter(self, keys: Sequence[str], number: int, *, whole: bool) -> None:
        """Enter a path into the trie, from its end on."""
        node = self._trie
        for key in reversed(keys):
            node = node.setdefault(key, {})
        # An earlier expression of the same text keeps its place.
        node.setdefault(WHOLE if whole else AFTER_DOT, number)

    def _in_trie(self, path: str) -> int | None:
        found: list[int] = []
        nodes: list[_Node] = [self._trie]
        steps = 0
        for at in range(len(path) - 1, -1, -1):
            char = path[at]
            after: list[_Node] = []
            for node in nodes:
                if char in node:
                    after.append(node[char])
                if DOT in node and char != "\n":
                    after.append(node[DOT])
            nodes = after
            if not nodes:
                break
            steps += len(nodes)
            if at == 0:
                found += [node[key] for node in nodes for key in (WHOLE, AFTER_DOT) if key in node]
            elif path[at - 1] == "." and not self._whole:
                found += [node[AFTER_DOT] for node in nodes if AFTER_DOT in node]
        self._spend(steps)
        return min(found, default=None)
