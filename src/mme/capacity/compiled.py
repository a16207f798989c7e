"""Machine code for the simulation's inner loop where numba is installed; the same functions interpreted where not.

Interpreted, a simulation gives the same answer some hundred times slower: right for a trace of 10,000 requests, too
slow for planning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

try:
    import numba
except ImportError:  # pragma: no cover - the tests run with numba
    numba = None

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILED = numba is not None
PACKAGE = Path(__file__).parent


def compiled(function: Function) -> Function:
    """The function in machine code, for other compiled functions to call. It cannot be called from elsewhere."""
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def entry(function: Function) -> Function:
    """The function in machine code, to be called from anywhere; it runs free of the interpreter's lock."""
    return _compiled(function, nogil=True, no_cfunc_wrapper=True)


def cache_folder() -> Path:
    """The folder for the machine code, named after all sources of this package.

    numba itself looks at the file of the outermost function alone, and would go on with old code of the functions that
    it calls from other files.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.glob("*.py")):
        digest.update(path.read_bytes())
    name = f"numba-{digest.hexdigest()[:16]}"
    if os.access(PACKAGE, os.W_OK):
        return PACKAGE / "__pycache__" / name
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mme" / name


_FOLDER = str(cache_folder()) if COMPILED else ""


def _compiled(function: Function, **options: bool) -> Function:
    if numba is None:  # pragma: no cover
        return function
    before = numba.config.CACHE_DIR
    # numba reads it when a function is decorated; other packages' functions keep their own folder.
    numba.config.CACHE_DIR = _FOLDER
    try:
        # No reference counts: nothing in there makes an array, and counting took most of the time.
        return cast(Function, numba.njit(error_model="numpy", _nrt=False, cache=True, **options)(function))
    except RuntimeError:  # no folder for the machine code can be written to
        return cast(Function, numba.njit(error_model="numpy", _nrt=False, **options)(function))
    finally:
        numba.config.CACHE_DIR = before
