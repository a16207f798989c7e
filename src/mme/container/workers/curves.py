"""Delays the import of scikit-learn, which transformers imports where it is installed, until it is used.

``transformers.generation`` takes one function of it, ``sklearn.metrics.roc_curve``, for the threshold that assisted
generation adapts as it goes. That import brings pandas and scipy with it: three quarters of a second of each start and
50 MB. (Our image has no scikit-learn.)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

WHO_IMPORTS_IT = "transformers.generation.candidate_generator"


def import_generation() -> None:
    """Import what of transformers takes ``roc_curve`` so that scikit-learn is imported when that is first called.

    To be called while the process has one thread. Raises ImportError as the import itself would.
    """
    with _later("sklearn", "metrics"):
        importlib.import_module(WHO_IMPORTS_IT)


@contextlib.contextmanager
def _later(package: str, module: str) -> Iterator[None]:
    """Within the block, functions that are imported from ``package.module`` import it when they are called."""
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None:
        yield
        return
    full = f"{package}.{module}"
    outer, inner = types.ModuleType(package), types.ModuleType(full)
    outer.__spec__ = spec  # torch asks where it lies
    outer.__dict__[module] = inner
    inner.__dict__["__getattr__"] = lambda name: _Function(full, name)
    sys.modules.update({package: outer, full: inner})
    try:
        yield
    finally:
        for name, stand_in in ((package, outer), (full, inner)):
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


class _Function:
    """A function of a module that is imported at the first call."""

    def __init__(self, module: str, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        self._place = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = self._place
        return getattr(importlib.import_module(module), name)(*args, **kwargs)
