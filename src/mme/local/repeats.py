"""Answers a repeated request with the answer of the first one: a client that lost the answer sends the request again.

An AWS SDK that loses a connection cannot tell whether its request was carried out, and sends it again with the same
``amz-sdk-invocation-id``. Carried out twice, CreateModel says "Cannot create already existing model", and its caller
fails although all went well. AWS has the same gap, but there a lost answer is rare; a loaded machine on which
Terraform opens a connection for every request loses one in some thousands.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mme.local.requests import access_key, signed_service

_SECONDS = 120.0
_MOST = 256
_LONGEST = 64 << 10
_READS = ("Describe", "List", "Get", "Search", "Query")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class _Answer:
    at: float
    status: str
    headers: list[tuple[str, str]]
    body: bytes


class Repeats:
    """Remembers the answers of what has been carried out. To be called by one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: OrderedDict[tuple[str, str, str], _Answer] = OrderedDict()

    def ask(self, app: Application, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The application's answer, or the one that the same request has had before."""
        key = _key(environ)
        if key is None:
            return app(environ, start_response)
        now = self._clock()
        while self._answers and next(iter(self._answers.values())).at < now - _SECONDS:
            self._answers.popitem(last=False)
        before = self._answers.get(key)
        if before is not None:
            start_response(before.status, before.headers)
            return [before.body]
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            started.append((status, headers))
            return start_response(status, headers, *more)

        answer = app(environ, start)
        body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        if started and started[-1][0].startswith("2") and len(body) <= _LONGEST:
            status, headers = started[-1]
            self._answers[key] = _Answer(now, status, list(headers), body)
            if len(self._answers) > _MOST:
                self._answers.popitem(last=False)
        return [body]


def _key(environ: dict[str, Any]) -> tuple[str, str, str] | None:
    """The sender, the SDK's id of the request, and the request itself; None for requests that may be carried out
    twice."""
    number = str(environ.get("HTTP_AMZ_SDK_INVOCATION_ID", ""))
    if not number or environ.get("REQUEST_METHOD") != "POST" or signed_service(environ) in ("s3", None):
        return None
    operation = str(environ.get("HTTP_X_AMZ_TARGET", "")).rpartition(".")[2]
    if operation.startswith(_READS):
        return None
    return access_key(environ), number, operation
