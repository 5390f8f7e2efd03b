# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false
"""Kernels compiled and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from numba import config, njit, types


def _digest():
    """Of this folder's code and name.

    A kernel on disk is found by its function's name and file; it is another one after a change in any
    file here, and where the package has another name, as under the host: numba imports the module by it.
    """
    digest = hashlib.sha256(__name__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def named(function):
    """Give a function the name that its kernel has on disk."""
    function.__qualname__ += f"_{_DIGEST}"
    return function


_DIGEST = _digest()


def compiled(function, stored):
    """A kernel of a value of that type, a job and a thread's number, as a boolean.

    It is kept on disk: beside its file, or in the user's cache if that is read-only. Raises RuntimeError
    where numba is told not to compile.
    """
    if config.DISABLE_JIT:
        raise RuntimeError("numba's compiler is switched off (NUMBA_DISABLE_JIT)")
    job = types.Array(types.int64, 1, "C")
    signature = types.boolean(getattr(types, stored), job, types.intp)
    with contextlib.suppress(Exception):
        # Fails without a folder that can be written, on a full disk, and on a broken file there.
        return njit(signature, nogil=True, cache=True)(function)
    return njit(signature, nogil=True)(function)
