"""The container's HTTP server: beside uvicorn in its place, and beside itself while clients are slow or hostile.

    python -m benchmarks.http_server [--only uvicorn|hostile] [--rounds 5] [--seconds 1.5]

Both servers have the same front behind them, with a model that does nothing, and take turns. The hostile clients are,
one kind after the other: 20 that pipeline requests and read no answer, 50 whose body of 6 MB never ends, 4 that send
bodies in chunks of one byte, and 20 with a header line that never ends. Meanwhile one client asks for /ping a
hundred times a second, and its waits are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
HANDLER = "def model_fn(d): return 1\ndef transform_fn(model, data, content_type, accept): return '[1]'\n"
BODY = b'"The house is quiet."'
CALLS = {
    "/ping": b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "a model that does nothing": b"POST /models/m/invoke HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    + b"Content-Length: %d\r\n\r\n" % len(BODY)
    + BODY,
}


# -- the servers ----------------------------------------------------------------------------------------------------


def serve_uvicorn(port: int) -> None:
    """The front with uvicorn before it, by the smallest ASGI application that keeps the contract."""
    import uvicorn
    import uvloop

    from mme.container.config import read
    from mme.container.front.http import Request
    from mme.container.front.log import Log
    from mme.container.front.routes import Front

    front = Front(read(), Log("error"))

    class Connection:
        def __init__(self) -> None:
            self.answer: asyncio.Future[tuple[int, bytes, str, str]] = asyncio.get_running_loop().create_future()

        def respond(self, request: Request, status: int, body: bytes, content_type: str, extra: str) -> None:
            if not self.answer.done():
                self.answer.set_result((status, body, content_type, extra))

    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        connection: Any = Connection()
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode()
        request = Request(connection, scope["method"], path, query, headers)
        parts = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message["body"])
            if not message.get("more_body"):
                break
        request.body = b"".join(parts)
        front.handle(request)
        if not connection.answer.done():
            gone = asyncio.ensure_future(receive())
            await asyncio.wait((connection.answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not connection.answer.done():
                if request.gone is not None:
                    request.gone()
                return
            gone.cancel()
        status, body, kind, extra = connection.answer.result()
        rows = [row.split(": ", 1) for row in extra.split("\r\n") if row]
        sent = [("content-type", kind), ("content-length", str(len(body))), *rows]
        encoded = [(name.lower().encode(), value.encode()) for name, value in sent]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        application,
        port=port,
        http="httptools",
        loop="uvloop",
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
    )

    async def run() -> None:
        await front.hub.start()
        await uvicorn.Server(config).serve()
        await front.hub.close()

    uvloop.run(run())


def call(port: int, method: str, path: str, body: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body)
        return connection.getresponse().status
    finally:
        connection.close()


@contextlib.contextmanager
def served(kind: str, port: int) -> Iterator[psutil.Process]:
    """A server that runs, with a model called m."""
    settings = {
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "40",
        "MME_ACCESS_LOG": "false",
        "MME_PRELOAD": "",
    }
    ours = [sys.executable, "-m", "mme.container"]
    command = ours if kind == "ours" else [sys.executable, "-m", "benchmarks.http_server", "--serve", str(port)]
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "code").mkdir()
            (Path(folder) / "code" / "inference.py").write_text(HANDLER)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(OSError):
                    if call(port, "GET", "/ping") == 200:
                        break
                time.sleep(0.05)
            status = call(port, "POST", "/models", json.dumps({"model_name": "m", "url": folder}))
            if status != 200:
                raise RuntimeError(f"{kind} answered LOAD with {status}")
            yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(40)


# -- the clients ----------------------------------------------------------------------------------------------------


class Caller(asyncio.Protocol):
    """Asks again as soon as it is answered, until the time is up; records how long each answer took."""

    def __init__(self, request: bytes, end: float, waits: list[float]) -> None:
        self.request, self.end, self.waits = request, end, waits
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]):
            return
        assert head.upper().startswith(b"HTTP/1.1 200"), head
        self.buffer = b""
        now = time.perf_counter()
        self.waits.append(now - self.began)
        if now < self.end:
            self.ask()
        else:
            self.transport.close()
            self.done.set_result(None)


async def drive(port: int, request: bytes, clients: int, seconds: float) -> list[float]:
    waits: list[float] = []
    loop = asyncio.get_running_loop()
    end = time.perf_counter() + seconds
    callers = [
        (await loop.create_connection(lambda: Caller(request, end, waits), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    return waits


def beside_uvicorn(rounds: int, seconds: float) -> dict[str, Any]:
    import uvloop

    figures: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    with served("ours", 18311), served("uvicorn", 18312):
        for turn in range(rounds):
            for what, request in CALLS.items():
                for clients in (1, 32):
                    for kind, port in sorted({"ours": 18311, "uvicorn": 18312}.items(), reverse=bool(turn % 2)):
                        waits = uvloop.run(drive(port, request, clients, seconds))
                        row = statistics.median(waits), len(waits) / seconds
                        figures.setdefault((what, clients, kind), []).append(row)
    table = {}
    for what in CALLS:
        for clients in (1, 32):
            both = {kind: figures[what, clients, kind] for kind in ("ours", "uvicorn")}
            row = {
                kind: {
                    "p50_us": round(statistics.median(p50 for p50, _ in rows) * 1e6),
                    "per_second": round(statistics.median(rate for _, rate in rows)),
                }
                for kind, rows in both.items()
            }
            table[f"{what}, {clients} clients"] = row
            print(f"{what}, {clients} clients: {json.dumps(row)}")
    return table


# -- slow and hostile clients ---------------------------------------------------------------------------------------


async def hostile(kind: str, port: int) -> None:
    """Repeat it until stopped; a client that is disconnected connects again."""

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    if kind == "no reading":
                        while True:
                            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n" * 500)
                            await writer.drain()
                    elif kind == "endless bodies":
                        writer.write(b"POST /models/m/invoke HTTP/1.1\r\nContent-Length: 6000000\r\n\r\n")
                        writer.write(b"x" * 5_999_000)
                        await writer.drain()
                        await asyncio.sleep(30)
                    elif kind == "tiny chunks":
                        writer.write(b"POST /models/m/invoke HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
                        while True:
                            writer.write(b"1\r\nx\r\n" * 10_000)
                            await writer.drain()
                    elif kind == "endless head":
                        writer.write(b"GET /ping HTTP/1.1\r\nX: ")
                        while True:
                            writer.write(b"y" * 65536)
                            await writer.drain()
                finally:
                    writer.close()
            await asyncio.sleep(0.1)

    counts = {"no reading": 20, "endless bodies": 50, "tiny chunks": 4, "endless head": 20, "quiet": 0}
    tasks = [asyncio.create_task(one()) for _ in range(counts[kind])]
    await asyncio.gather(*tasks, asyncio.sleep(3600))


def among_hostile(seconds: float) -> dict[str, Any]:
    table = {}
    for kind in ("quiet", "no reading", "endless bodies", "tiny chunks", "endless head"):
        with served("ours", 18313) as server:
            before = server.memory_info().rss, server.num_fds()
            command = [sys.executable, "-m", "benchmarks.http_server", "--hostile", kind, "--port", "18313"]
            attack = subprocess.Popen(command, cwd=ROOT)
            try:
                time.sleep(2)  # until it is in full swing
                waits, most = [], 0
                end = time.monotonic() + max(5.0, seconds)
                connection = http.client.HTTPConnection("127.0.0.1", 18313, timeout=60)
                while time.monotonic() < end:
                    began = time.perf_counter()
                    connection.request("GET", "/ping")
                    assert connection.getresponse().read()
                    waits.append(time.perf_counter() - began)
                    most = max(most, server.memory_info().rss)
                    time.sleep(0.01)
            finally:
                attack.kill()
                attack.wait()
            deadline = time.monotonic() + 15
            while server.num_fds() > before[1] + 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            waits.sort()
            row = {
                "p50_ms": round(waits[len(waits) // 2] * 1000, 2),
                "p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 2),
                "longest_ms": round(waits[-1] * 1000, 2),
                "grew_mb": round((most - before[0]) / 1e6, 1),
                "files_left": server.num_fds() - before[1],
            }
            table[kind] = row
            print(f"{kind}: {json.dumps(row)}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("uvicorn", "hostile"), help="only this part")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each row is measured")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hostile", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_uvicorn(options.serve)
        return
    if options.hostile:
        asyncio.run(hostile(options.hostile, options.port))
        return
    figures = {}
    if options.only != "hostile":
        figures["uvicorn"] = beside_uvicorn(options.rounds, options.seconds)
    if options.only != "uvicorn":
        figures["hostile"] = among_hostile(options.seconds)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
