"""What libraries want done in forked processes is put off until the process is a model's own, and done in its own
children."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_process import Container

from mme.container.errors import HandlerError
from mme.container.workers import handler as handlers
from mme.container.workers import hooks
from mme.container.workers.context import Context


def test_hooks_of_some_libraries_wait_and_all_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **given: seen.append(given))
    monkeypatch.setattr(hooks, "_register", os.register_at_fork)
    monkeypatch.setattr(hooks, "_hooks", [])

    def call(module: str) -> None:
        code = "import os\nos.register_at_fork(before=None, after_in_child=print)\n"
        exec(code, {"__name__": module})

    hooks.put_off()
    for module in ("logging", "filelock._api", "random", "logging_of_others"):
        call(module)
    assert len(seen) == 2
    hooks.register()
    assert len(seen) == 4
    assert all(given == {"before": None, "after_in_child": print} for given in seen)
    call("logging")
    assert len(seen) == 5


FORKS = """
    import logging, os, signal, threading

    def model_fn(folder):
        handler, held = logging.StreamHandler(), threading.Event()

        def hold():
            handler.acquire()
            held.set()
            threading.Event().wait()

        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            handler.acquire()
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def predict_fn(data, model):
        return model
"""


def test_a_process_that_a_handler_forks_may_log(start: Any, handler: Callable[..., Path]) -> None:
    """Another thread of the handler's holds the lock, which would never be given up in the copy."""
    container: Container = start(MME_PRELOAD="logging")
    assert container.load("m", handler("m", FORKS)).status == 200, container.log()
    assert container.invoke("m").body == b"7"


@functools.lru_cache
def cached(a: Any, b: Any) -> None: ...


@functools.wraps(cached.__wrapped__)
def wrapped(*args: Any) -> None: ...


def plain(a: Any, b: Any) -> None: ...


def more(a: Any, /, b: Any, *, c: Any = None, **rest: Any) -> None: ...


def signed(*args: Any) -> None: ...


signed.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]


class Callables:
    def method(self, a: Any, b: Any) -> None: ...

    def __call__(self, a: Any, b: Any, context: Any) -> None: ...


async def asynchronous(a: Any, b: Any) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        *(plain, more, cached, wrapped, signed, asynchronous, Callables().method, Callables(), Callables, len),
        *(functools.partial(more, 1), types.MethodType(more, 1), lambda *a: None, lambda a, b, context=None: None),
        *(lambda: None, lambda a, b: None, lambda a, b, c, d: None, lambda a, *, b: None, lambda a, b, **c: None),
    ],
)
def test_what_a_plain_function_says_itself_is_what_inspect_says(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]
) -> None:
    count = handlers._positional(function)
    assert count in (None, len(inspect.signature(function).parameters))

    def bound() -> str:
        try:
            return "alone" if handlers._bind(function, 2, Context("m", "/m", None)) is function else "with context"
        except HandlerError as error:
            return str(error)

    said = bound()
    monkeypatch.setattr(handlers, "_positional", lambda function: None)
    assert bound() == said
