"""HTTP/1.1 on asyncio: parses requests, hands them to one function, writes answers.

It knows nothing of models. Requests on one connection are answered in order; a connection that closes while its request
is worked on cancels that request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from mme.container.errors import error_body

MAX_HEAD = 64 * 1024
IDLE_SECONDS = 75.0
JSON_TYPE = "application/json"
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Request:
    """One request, complete with its body. The handler answers it once, now or later, by :meth:`answer`."""

    __slots__ = ("_connection", "answered", "body", "gone", "headers", "keep_alive", "method", "path", "query")

    def __init__(self, connection: Connection, method: str, path: str, query: str, headers: dict[str, str]) -> None:
        self._connection = connection
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers  # names in lower case
        self.body = b""
        self.keep_alive = True
        self.answered = False
        self.gone: Callable[[], None] | None = None  # called if the client leaves before the answer

    def answer(self, status: int, body: bytes = b"", content_type: str = JSON_TYPE, extra: str = "") -> None:
        """Send the answer. ``extra`` is further header lines, each with its line end. Later calls do nothing."""
        if not self.answered:
            self.answered = True
            self.gone = None
            self._connection.respond(self, status, body, content_type, extra)


class Server(Protocol):
    """What a connection needs of the rest."""

    max_body: int
    connections: set[Connection]

    @property
    def closing(self) -> bool: ...

    def handle(self, request: Request) -> None: ...


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_size = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._refused = False
        self._current: Request | None = None
        self._waiting: deque[Request] = deque()
        self._paused = False
        self._idle: asyncio.TimerHandle | None = None

    # -- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._stop_idle()
        self._transport = None
        self._waiting.clear()
        if self._current is not None and not self._current.answered:
            self._current.answered = True
            if self._current.gone is not None:
                self._current.gone()
        self._current = None

    def data_received(self, data: bytes) -> None:
        self._stop_idle()
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "BadRequestException", "This server speaks HTTP/1.1 alone")
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _RefusedError):
                raise
            self._refuse(cause.status, cause.kind, cause.message)
        except httptools.HttpParserError as error:
            self._refuse(400, "BadRequestException", f"This is not an HTTP request: {error}")
        if self._current is None and not self._refused:
            self._rest()  # half a request: its sender has as long as an idle client for each further piece

    # -- httptools ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._head_size = 0
        self._chunks = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value))
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def _grow(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD:
            raise _RefusedError(431, "BadRequestException", f"The headers are larger than {MAX_HEAD} bytes")

    def on_headers_complete(self) -> None:
        length = self._headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._server.max_body:
            raise self._too_large()
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._server.max_body:
            raise self._too_large()
        self._chunks.append(body)

    def _too_large(self) -> _RefusedError:
        return _RefusedError(
            413, "RequestTooLargeException", f"The request's body is larger than {self._server.max_body} bytes"
        )

    def on_message_complete(self) -> None:
        path, _, query = self._url.decode("latin-1").partition("?")
        request = Request(self, self._parser.get_method().decode(), path, query, self._headers)
        request.body = b"".join(self._chunks)
        request.keep_alive = self._parser.should_keep_alive()
        self._chunks = []
        if self._current is not None:
            self._waiting.append(request)
            if not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
            return
        self._begin(request)

    # -- answering ----------------------------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        self._current = request
        self._server.handle(request)

    def respond(self, request: Request, status: int, body: bytes, content_type: str, extra: str) -> None:
        if self._transport is None or request is not self._current:
            return
        keep = request.keep_alive and not self._server.closing
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"
            f"Content-Type: {_clean(content_type)}\r\nContent-Length: {len(body)}\r\n{extra}"
            f"{'' if keep else 'Connection: close' + chr(13) + chr(10)}\r\n"
        ).encode("latin-1", "replace")
        if request.method == "HEAD":
            body = b""
        if len(body) < 65536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        self._current = None
        if not keep:
            self._transport.close()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._rest()

    def _next(self) -> None:
        if self._current is None and self._waiting and self._transport is not None:
            request = self._waiting.popleft()
            if not self._waiting and self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._begin(request)

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answer what could not be parsed or is too large, then close: the rest of the stream is of no use."""
        self._refused = True
        if self._transport is None or self._transport.is_closing():
            return
        if self._current is not None:  # an answer to an earlier request is still owed: close without a word
            self._transport.close()
            return
        body = error_body(status, kind, message)
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Type: {JSON_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        # Closing at once would reset the connection while the client still sends, and lose the answer on its way.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._idle = asyncio.get_running_loop().call_later(2.0, self._close)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _rest(self) -> None:
        """Nothing is going on: wait a while for the next request."""
        self._stop_idle()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._close)

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def close_if_idle(self) -> None:
        if self._current is None:
            self._close()


class _RefusedError(Exception):
    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message


def _clean(value: str) -> str:
    """A header's value without line breaks, which would let a handler's answer add headers."""
    return value.replace("\r", " ").replace("\n", " ")
