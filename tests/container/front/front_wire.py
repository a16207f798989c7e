"""A connection of the HTTP server without sockets: what it makes of bytes, in any pieces."""

from __future__ import annotations

import asyncio
from typing import Any

from mme.container.front.budget import Budget
from mme.container.front.http import Connection, Limits, Request
from mme.container.front.turns import Turns


class Wire(asyncio.Transport):
    """A client's socket that takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent += data

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    abort = close


class Server:
    closing = False

    def __init__(self) -> None:
        self.limits = Limits(max_body=1000)
        self.budget = Budget(5000)
        self.connections: set[Connection] = set()
        self.turns = Turns()
        self.requests: list[tuple[str, str, bytes]] = []

    def handle(self, request: Request) -> None:
        self.requests.append((request.method, request.path, request.body))
        request.answer(200, b"answer")


async def fed(pieces: list[bytes], server: Server | None = None) -> tuple[Server, Wire]:
    """What a connection makes of these pieces, and of the end of the client after them."""
    server, wire = server or Server(), Wire()
    connection = Connection(server)
    connection.connection_made(wire)
    for piece in pieces:
        if wire.closed:
            break
        connection.data_received(piece)
        for _ in range(200):  # what waits for its turn
            await asyncio.sleep(0)
            if not server.turns.busy and not connection._waiting:
                break
    connection.connection_lost(None)
    assert server.budget.used == 0
    assert server.connections == set()
    return server, wire


def statuses(wire: Wire) -> list[int]:
    """Of the answers on the wire, which must be nothing but whole answers."""
    codes = []
    rest = bytes(wire.sent)
    while rest:
        head, end, rest = rest.partition(b"\r\n\r\n")
        assert end, "half an answer"
        rows = head.decode("latin-1").split("\r\n")
        assert rows[0].startswith("HTTP/1.1 ")
        codes.append(int(rows[0].split()[1]))
        length = next((int(row.split(":")[1]) for row in rows if row.lower().startswith("content-length")), 0)
        assert len(rest) >= length
        rest = rest[length:]
    return [status for status in codes if status != 100]
