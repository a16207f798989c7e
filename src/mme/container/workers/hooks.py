"""What libraries have Python do in each process that is forked, put off until the process is a model's own.

logging and filelock make their locks anew after a fork, since another thread of the parent may have held them. Each of
their objects lies in a page that the process shares with its parent until it is touched: together half a megabyte. Our
parent has one thread, which holds none of these locks when it forks. A handler may have several threads and fork, too,
so the hooks are registered in the model's process, for its own children.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

PUT_OFF = ("logging", "filelock")

_register = os.register_at_fork
_hooks: list[dict[str, Callable[[], Any]]] = []


def put_off() -> None:
    """In the parent, before it imports these libraries."""
    os.register_at_fork = _noted  # type: ignore[assignment]


def register() -> None:
    """In a model's process: from now on they hold."""
    os.register_at_fork = _register
    for hooks in _hooks:
        _register(**hooks)


def _noted(**hooks: Callable[[], Any]) -> None:
    module = str(sys._getframe(1).f_globals.get("__name__", ""))
    if module.partition(".")[0] in PUT_OFF:
        _hooks.append(hooks)
    else:
        _register(**hooks)
