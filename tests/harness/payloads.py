"""Objects that run code when they are unpickled: what no reader of a stranger's file may do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def marking(folder: Path) -> Call:
    """Makes a folder when it is unpickled. The folder shows that a pickle has run code."""
    return Call(os.mkdir, str(folder))
