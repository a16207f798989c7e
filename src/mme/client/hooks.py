"""A hook around each request, for traces, metrics and logs. ``mme.client.telemetry`` has one for OpenTelemetry.

A hook is called with a ``Call`` and gives a context manager; the request, its repetitions included, is made within it.
When the block ends, the ``Call`` holds the outcome:

    @contextlib.contextmanager
    def on_request(call):
        yield
        print(call.model, call.target, call.seconds, call.tries, call.error)

    Endpoint("my-endpoint", on_request=on_request)

Requests that run at the same time call the hook from different threads. What a hook raises is logged, and changes
nothing about the prediction.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mme.client.endpoint import Answer

_log = logging.getLogger("mme.client")


@dataclass
class Call:
    """One request. The fields below ``inputs`` are set once it has ended."""

    endpoint: str
    model: str  # the name that was asked for, or the target where an exact one was
    target: str
    sent: int  # bytes of the body
    content_type: str
    inputs: range | None  # the places of the inputs that it carries, where the input was a list
    seconds: float = 0.0  # all tries and the pauses between them
    tries: int = 0  # of an answer; 0 where none came
    received: int = 0  # bytes of the answer
    variant: str = ""  # the production variant that answered
    error: Exception | None = None


Hook = Callable[[Call], AbstractContextManager[object]]


def watched(hook: Hook, call: Call, do: Callable[[], Answer]) -> Answer:
    """``do()`` within the hook's context manager; returns and raises what ``do`` does, whatever the hook does."""
    around: AbstractContextManager[object] | None = None
    try:
        around = hook(call)
        around.__enter__()
    except Exception:
        around = None
        _log.exception("the hook on_request failed")
    start = time.perf_counter()
    try:
        answer = do()
    except Exception as error:
        call.error = error
        raise
    else:
        call.tries, call.received, call.variant = answer.tries, len(answer.body), answer.variant
        return answer
    finally:
        call.seconds = time.perf_counter() - start
        if around is not None:
            try:
                around.__exit__(None, None, None)
            except Exception:
                _log.exception("the hook on_request failed")
