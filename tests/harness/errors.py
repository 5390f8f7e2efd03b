"""Errors by their code and values: tests ask for these, not for sentences, which a translator may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PARTS = ("file", "place", "key", "weight")


@contextmanager
def raised(
    code: str, kind: type[BaseException] = Exception, **values: Any
) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Expect an error of a kind with this code and, among others, these values.

    `file`, `place`, `key` and `weight` are the error's own. A file is compared by the end of its path. A
    value that is a phrase is compared by its code.

    >>> with raised("E-file-absent", file="lora.safetensors"): ...
    """
    with pytest.raises(kind) as caught:
        yield caught
    has(caught.value, code, **values)


def has(error: Any, code: str, **values: Any) -> None:
    """Assert that an error has this code and, among others, these values."""
    assert getattr(error, "code", None) == code, f"{getattr(error, 'code', None)}: {error}"
    known = {**error.values, **{part: getattr(error, part) for part in PARTS if getattr(error, part)}}
    for name, expected in values.items():
        assert name in known, f"{code} has no {name}; it has {sorted(known)}: {error}"
        found = known[name]
        if isinstance(expected, str):
            found = getattr(found, "code", found)
        if name == "file" and isinstance(expected, str):
            assert str(found).endswith(expected), f"{code}: {name} is {found!r}"
            continue
        assert found == expected, f"{code}: {name} is {found!r}, not {expected!r}"
