"""Machine code for the simulation's inner loop where numba is installed; the same functions interpreted where not.

Interpreted, a simulation gives the same answer some hundred times slower: right for a trace of 10,000 requests, too
slow for planning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

try:
    import numba
except ImportError:  # pragma: no cover - the tests run with numba
    numba = None

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILED = numba is not None


def compiled(function: Function) -> Function:
    """The function in machine code, for other compiled functions to call. It cannot be called from elsewhere."""
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def entry(function: Function) -> Function:
    """The function in machine code, to be called from anywhere; it runs free of the interpreter's lock."""
    return _compiled(function, nogil=True, no_cfunc_wrapper=True)


def _compiled(function: Function, **options: bool) -> Function:
    if numba is None:  # pragma: no cover
        return function
    options["cache"] = True  # on disk, between runs
    try:
        return cast(Function, numba.njit(error_model="numpy", _nrt=False, **options)(function))
    except RuntimeError:  # nowhere to keep it: no folder here may be written to
        options["cache"] = False
        return cast(Function, numba.njit(error_model="numpy", _nrt=False, **options)(function))
