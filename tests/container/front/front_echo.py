"""The HTTP server with a handler that echoes, and a client that says exactly what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mme.container.front.budget import Budget
from mme.container.front.http import Connection, Limits, Request, look_after
from mme.container.front.turns import Turns

MiB = 1024 * 1024


class Echo:
    """Answers with the request's method, path and length of body; /hold when it is told to, /big with as much."""

    closing = False

    def __init__(self, limits: Limits, budget: int) -> None:
        self.limits = limits
        self.budget = Budget(budget)
        self.connections: set[Connection] = set()
        self.turns = Turns()
        self.handled: list[str] = []
        self.held: list[Request] = []
        self.gone = 0
        self.port = 0

    def handle(self, request: Request) -> None:
        self.handled.append(request.path)
        if request.path == "/hold":
            request.gone = self._gone
            self.held.append(request)
        elif request.path.startswith("/big/"):
            request.answer(200, b"x" * int(request.path.removeprefix("/big/")), "application/octet-stream")
        elif request.path.startswith("/status/"):
            request.answer(int(request.path.removeprefix("/status/")), b"body")
        else:
            request.answer(200, json.dumps([request.method, request.path, len(request.body)]).encode())

    def _gone(self) -> None:
        self.gone += 1


@asynccontextmanager
async def serving(budget: int = 256 * MiB, **limits: Any) -> AsyncIterator[Echo]:
    echo = Echo(Limits(**{"max_body": 8 * MiB, "stall_seconds": 0.5, "look_seconds": 0.05, **limits}), budget)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(echo), "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    looking = asyncio.create_task(look_after(echo))
    try:
        yield echo
    finally:
        looking.cancel()
        server.close()
        for connection in list(echo.connections):
            connection._abort()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, echo: Echo) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", echo.port))

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, bytes]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        rows = head.decode("latin-1").split("\r\n")
        status = int(rows[0].split()[1])
        headers = dict(row.lower().split(": ", 1) for row in rows[1:] if row)
        return status, await self.reader.readexactly(int(headers.get("content-length", "0")))

    async def ended(self) -> bytes:
        """Whatever else comes until the server closes."""
        try:
            return await asyncio.wait_for(self.reader.read(), 20)
        except ConnectionError:
            return b""


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def quick(echo: Echo, times: int = 20) -> None:
    """Another client, who gets its answers meanwhile."""
    client = await Client.connect(echo)
    for _ in range(times):
        client.say(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer())[0] == 200
        await asyncio.sleep(0.01)
    client.writer.close()
