"""HTTP/1.1 on asyncio: parses requests, hands them to one function, writes answers.

It knows nothing of models. Requests on one connection are answered in order; a connection that closes while its request
is worked on cancels that request.

Whatever arrives is bounded in size and time:

- a head (and a trailer) is counted as it arrives, and refused with 431 above MAX_HEAD bytes;
- a body is counted as it arrives, against ``max_body`` (413) and against the budget of all bodies (503);
- a request has to keep coming: nothing for ``stall_seconds``, or not complete within ``request_seconds``, is a 408.
  Where the budget is short, requests that have paused for longer than SLOW_SECONDS are refused first;
- connections are counted, too: above ``max_connections``, one that has been quiet for SLOW_SECONDS and has no request
  in work is closed for a new one; where there is none, the new one is answered 503;
- a client that does not read its answers gets no further requests worked on, and is cut off after the same times;
- data that takes long to parse (pipelined requests, tiny chunks) is parsed for TURN_SECONDS at a time, one connection
  after the other, and other connections are served in between. Connections that go on like this get a quarter of the
  time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from mme.container.errors import ServingError, error_body
from mme.container.front import framing, heads
from mme.container.front.budget import Budget
from mme.container.front.turns import PATIENT_SECONDS, Turns

MAX_HEAD = 64 * 1024
IDLE_SECONDS = 75.0
SLOW_SECONDS = 1.0
LINGER_SECONDS = 2.0  # to read a refusal in
TURN_SECONDS = 0.001
SLICE = 8 * 1024  # bytes parsed at once
SPARE = 256 * 1024
SPARE_CONNECTIONS = 64  # beyond max_connections, for refusals


@dataclass(frozen=True)
class Limits:
    """Sizes are bytes. ``look_seconds`` is how often connections are looked at for the other times."""

    max_body: int
    max_connections: int = 10_000
    stall_seconds: float = 10.0
    request_seconds: float = 60.0
    look_seconds: float = 1.0


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

    def answer(self, status: int, body: bytes = b"", content_type: str = heads.JSON_TYPE, extra: str = "") -> None:
        """Send the answer. ``extra`` is further header lines, each with its line end. Later calls do nothing."""
        if not self.answered:
            self.answered = True
            self.gone = None
            self._connection.respond(self, status, body, content_type, extra)


class Server(Protocol):
    """What a connection needs of the server."""

    limits: Limits
    budget: Budget
    connections: set[Connection]
    turns: Turns

    @property
    def closing(self) -> bool: ...

    def handle(self, request: Request) -> None: ...


async def look_after(server: Server) -> None:
    """End what has stalled or is idle, for as long as this runs."""
    while True:
        await asyncio.sleep(server.limits.look_seconds)
        now = time.monotonic()
        for connection in list(server.connections):
            connection.look(now)


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._repeated: dict[str, list[str]] = {}  # values of headers that come in several lines
        self._head_read = False
        self._head_size = 0
        self._body = bytearray()
        self._in_message = False
        self._messages = 0  # that began in the piece which is parsed now
        self._progress = False  # whether that piece held anything of a body
        self._begun = False  # whether a request of that piece has been begun; all further ones wait for a turn
        self._silent = 0  # bytes since the request began, or since its body's last byte
        self._held = 0  # bytes of the budget: of the body that arrives, and of requests that wait behind another
        self._refusal: tuple[int, str, str] | None = None
        self._refused = False
        self._spare = SPARE  # bytes that may still come after a refusal
        self._current: Request | None = None
        self._waiting: deque[Request] = deque()
        self._rest = b""  # arrived and not parsed yet
        self._queued = False  # for a turn to parse it
        self._spent = 0.0  # seconds of turns since nothing was left to do
        self._reading = True
        self._unsent = 0  # bytes of answers that the client does not take; counted in the budget
        self._last = time.monotonic()  # when something arrived, was answered, or was taken by the client
        self._began = 0.0  # when the request that arrives began, or the client stopped reading

    # -- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        connections, most = self._server.connections, self._server.limits.max_connections
        crowded = len(connections) >= most and not self._make_place()
        connections.add(self)
        if len(connections) > most + SPARE_CONNECTIONS:  # too many refusals are open to send another one
            self._abort()
        elif crowded:
            self._refuse(503, "ServiceUnavailableException", f"{most} connections are open; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.budget.give(self._held + self._unsent)
        self._held = self._unsent = 0
        self._transport = None
        self._rest = b""
        self._body = bytearray()
        self._waiting.clear()
        current, self._current = self._current, None
        if current is not None and not current.answered:
            current.answered = True
            if current.gone is not None:
                current.gone()

    def data_received(self, data: bytes) -> None:
        self._last = time.monotonic()
        if self._refused:
            self._spare -= len(data)
            if self._spare < 0:  # whoever goes on like this does not read the refusal
                self._abort()
            return
        if self._refusal:
            return
        costly = len(data) > SLICE and (self._server.turns.busy or self._spent > PATIENT_SECONDS)
        if self._rest or self._queued or costly:
            self._rest += data
            self._arrange()
        else:
            self._feed(data)

    def pause_writing(self) -> None:
        if self._transport is not None and not self._unsent:
            self._unsent = max(1, self._transport.get_write_buffer_size())
            self._server.budget.force(self._unsent)
            self._last = self._began = time.monotonic()

    def resume_writing(self) -> None:
        self._server.budget.give(self._unsent)
        self._unsent = 0
        self._last = time.monotonic()
        self._arrange()

    def look(self, now: float) -> None:
        """End what takes too long. Called now and then."""
        limits = self._server.limits
        if self._transport is None or self._refused:
            return
        if self._unsent:
            size = max(1, self._transport.get_write_buffer_size())
            if size < self._unsent:
                self._server.budget.give(self._unsent - size)
                self._unsent, self._last = size, now
            if now - self._last > limits.stall_seconds or now - self._began > limits.request_seconds:
                self._transport.abort()
        elif self._in_message and self._reading:
            if now - self._last > limits.stall_seconds or now - self._began > limits.request_seconds:
                self._refuse(408, "RequestTimeoutException", "The request did not arrive in time")
        elif self._current is None and now - self._last > IDLE_SECONDS:
            self._close()

    def _make_place(self) -> bool:
        """There are as many connections as may be. True if the longest quiet one without work was ended."""
        others = [other for other in self._server.connections if other._quiet()]
        quietest = min(others, key=lambda other: other._last, default=None)
        if quietest is None or time.monotonic() - quietest._last < SLOW_SECONDS:
            return False
        quietest._abort()
        # asyncio says that it is lost only in the next turn of the loop.
        self._server.connections.discard(quietest)
        return True

    def _quiet(self) -> bool:
        return self._current is None and not (self._waiting or self._rest or self._queued or self._unsent)

    def give_way(self, now: float) -> bool:
        """Another connection needs room. True if this one, which has been slow, has freed some."""
        if now - self._last < SLOW_SECONDS or self._transport is None:
            return False
        if self._unsent:
            self._server.budget.give(self._unsent)
            self._unsent = 0
            self._transport.abort()
            return True
        if self._body and self._reading:
            self._refuse(408, "RequestTimeoutException", "The request came too slowly, and others needed the room")
            return True
        return False

    # -- parsing ------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        """Parse what has arrived, piece by piece, as long as more of it is of use now."""
        began = time.monotonic()
        at = 0
        while at < len(data) and not (self._refused or self._refusal) and self._open():
            if self._waiting or self._unsent or (at and time.monotonic() - began > TURN_SECONDS):
                self._rest = data[at:]
                break
            piece = data if len(data) <= SLICE else data[at : at + SLICE]
            at += len(piece)
            self._parse(piece)
        self._arrange(long=time.monotonic() - began > TURN_SECONDS)

    def go_on(self) -> float:
        """It is this connection's turn: begin what waits behind an answer, or parse what has arrived. Returns the
        seconds that it took."""
        began = time.monotonic()
        self._turn(began + TURN_SECONDS)
        took = time.monotonic() - began
        self._spent += took
        return took

    def _turn(self, end: float) -> None:
        while self._free() and self._waiting:
            self._begin(self._waiting.popleft())
            if time.monotonic() > end:
                break
        self._queued = False
        if self._free() and self._refusal and not self._waiting:
            refusal, self._refusal = self._refusal, None
            self._refuse(*refusal)
        elif self._rest and not self._waiting and not self._unsent and self._open():
            data, self._rest = self._rest, b""
            self._feed(data)
            return
        self._arrange()

    def _free(self) -> bool:
        """Whether another request may begin."""
        return self._current is None and not self._unsent and self._open()

    def _open(self) -> bool:
        """Whether the connection goes on. If not, data behind its last request is ignored."""
        return self._transport is not None and not self._transport.is_closing()

    def _arrange(self, long: bool = False) -> None:
        """Read on, or stop reading; ask for a turn where there is something to parse."""
        if self._transport is None:
            return
        blocked = bool(self._waiting) or self._unsent > 0
        answer = self._free() and (self._waiting or self._refusal)
        if (answer or ((self._rest or long) and not blocked)) and not self._queued:
            self._queued = True
            self._server.turns.add(self, self._spent)
        if not (self._queued or self._rest or self._waiting or self._in_message):
            self._spent = 0.0
        reading = not (blocked or self._rest or self._queued) or self._refused
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._began = self._last = time.monotonic()
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _parse(self, piece: bytes) -> None:
        apart = not self._in_message  # whatever is in the piece belongs to what begins in it
        self._messages, self._progress, self._begun = 0, False, False
        size = len(piece)
        try:
            while piece:
                try:
                    self._parser.feed_data(piece)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    piece = self._without_upgrade() + piece[upgrade.args[0] or len(piece) :]
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, ServingError):
                raise
            self._refuse(cause.status, cause.kind, cause.message)
        except httptools.HttpParserError as error:
            self._refuse(400, "BadRequestException", f"This is not an HTTP request: {error}")
        if self._progress or not self._in_message:
            self._silent = 0
        elif not self._messages:
            self._silent += size
        else:
            self._silent = size if apart and self._messages == 1 else 0
        if self._silent > MAX_HEAD and not self._refused:
            self._refuse(431, "BadRequestException", f"The headers are larger than {MAX_HEAD} bytes")

    def _without_upgrade(self) -> bytes:
        """The head that has just been parsed, without its offer to speak another protocol (``Upgrade: h2c``), and a new
        parser to read it and what follows: the old one takes what follows for that protocol."""
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        if method == b"CONNECT":
            return b""
        rows = [b"%s %s HTTP/%s" % (method, self._url, version)]
        for name, value in self._headers.items():
            if name == "connection":
                value = ", ".join(token for token in value.split(",") if token.strip().lower() != "upgrade")
            if name != "upgrade":
                rows.append(f"{name}: {value}".encode("latin-1"))
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*rows, b"", b""])

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._repeated = {}
        self._head_read = False
        self._head_size = 0
        self._in_message = True
        self._messages += 1
        self._began = self._last

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        if self._head_read:
            return  # a trailer: nobody here reads any, and none may pass for a header (RFC 9110, 6.5.1)
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key not in self._headers:
            self._headers[key] = text
        else:
            self._repeated.setdefault(key, [self._headers[key]]).append(text)

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD:
            raise ServingError(431, "BadRequestException", f"The headers are larger than {MAX_HEAD} bytes")

    def on_headers_complete(self) -> None:
        self._head_read = True
        for name, values in self._repeated.items():
            self._headers[name] = framing.joined(name, values)
        if self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT":
            return  # it is parsed once more, without that
        version = self._parser.get_http_version()
        framing.check(version, self._headers)
        length = self._headers.get("content-length", "0")
        size = int(length) if length.isascii() and length.isdigit() else 0
        if size > self._server.limits.max_body:
            raise self._too_large()
        if size and not self._server.budget.fits(size):
            self._make_room(size)
        owed = self._current is not None or self._waiting
        if framing.continues(version, self._headers) and self._transport is not None and not owed:
            self._transport.write(heads.CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._progress = True
        size = len(body)
        if len(self._body) + size > self._server.limits.max_body:
            raise self._too_large()
        if not self._server.budget.take(size):
            self._make_room(size)
            self._server.budget.force(size)
        self._held += size
        self._body += body

    def _make_room(self, size: int) -> None:
        """Have slow clients give way, the slowest first. Raises 503 if that does not make room for so many bytes."""
        budget = self._server.budget
        now = time.monotonic()
        others = iter(sorted(self._server.connections - {self}, key=lambda connection: connection._last))
        while not budget.fits(size) and (other := next(others, None)) is not None:
            other.give_way(now)
        if not budget.fits(size):
            raise ServingError(
                503, "ServiceUnavailableException", "Too much request data waits in the container; try again later"
            )

    def _too_large(self) -> ServingError:
        return ServingError(
            413, "RequestTooLargeException", f"The request's body is larger than {self._server.limits.max_body} bytes"
        )

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT":
            return  # it is parsed once more, without that
        method = self._parser.get_method().decode("latin-1")
        path, _, query = self._url.decode("latin-1").partition("?")
        if path[:7].lower() == "http://" and method != "CONNECT":  # as proxies are asked; RFC 9112, 3.2.2
            path = "/" + path[7:].partition("/")[2]
        request = Request(self, method, path, query, self._headers)
        request.body = bytes(self._body)
        request.keep_alive = self._parser.should_keep_alive() and method != "CONNECT"
        self._body = bytearray()
        self._in_message = False
        if self._begun or self._waiting or not self._free():
            self._waiting.append(request)
        else:
            self._begun = True
            self._begin(request)

    # -- answering ----------------------------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        self._current = request
        self._held -= len(request.body)
        self._server.budget.give(len(request.body))  # the handler counts it from here on
        self._server.handle(request)

    def respond(self, request: Request, status: int, body: bytes, content_type: str, extra: str) -> None:
        if self._transport is None or request is not self._current:
            return
        keep = request.keep_alive and not self._server.closing
        head = heads.head(status, len(body), content_type, extra, keep_alive=keep)
        if request.method == "HEAD" or status in heads.WITHOUT_BODY:
            body = b""
        self._last = time.monotonic()
        self._current = None
        if len(body) < 65536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        if not keep:
            self._waiting.clear()
            self._transport.close()
        elif self._waiting or self._refusal:
            self._arrange()

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answer what could not be parsed or is too large, then close: the rest of the stream is of no use."""
        if self._transport is None or self._transport.is_closing() or self._refused:
            return
        self._rest = b""
        self._held -= len(self._body)
        self._server.budget.give(len(self._body))
        self._body = bytearray()
        if self._current is not None or self._waiting:  # answers to earlier requests come first
            self._refusal = (status, kind, message)
            self._arrange()
            return
        self._refused = True
        if status in (413, 503):  # most clients send all of a body before they read
            self._spare += self._server.limits.max_body
        body = error_body(status, kind, message)
        self._transport.write(heads.head(status, len(body)) + body)
        # Closing at once would reset the connection while the client still sends, and lose the answer on its way.
        with contextlib.suppress(OSError, RuntimeError):
            if self._transport.can_write_eof():
                self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._abort)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def close_if_idle(self) -> None:
        if self._current is None:
            self._close()
