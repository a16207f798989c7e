"""The clients of serving.py, in a process of their own, and processes that keep the machine busy beside them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._servers import ROOT, Server


class _Client(asyncio.Protocol):
    """One request after the other until a time, each to a path drawn by Zipf's law: the first twice as often as the
    second. It does as little as possible, for it takes processor time from the servers."""

    def __init__(self, paths: list[str], bodies: list[bytes], until: float, number: int, seconds: list[float]) -> None:
        self._paths, self._bodies, self._until, self._seconds = paths, bodies, until, seconds
        self._choice = random.Random(number)
        self._odds = [1 / (rank + 1) for rank in range(len(paths))]
        self._number = number
        self._path = ""
        self._began = 0.0
        self._heard = bytearray()
        self._size = 0  # of the whole answer, once its head is there
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        if time.perf_counter() >= self._until:
            self._transport.close()
            self.ended.set_result(None)
            return
        body = self._bodies[self._number % len(self._bodies)]
        self._number += 1
        self._path = self._paths[0] if len(self._paths) == 1 else self._choice.choices(self._paths, self._odds)[0]
        self._began = time.perf_counter()
        self._transport.write(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (self._path.encode(), len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if not self._size:
            end = self._heard.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._heard[:end]).lower()
            length = re.search(rb"content-length: *(\d+)", head)
            if b" 200 " not in head.partition(b"\r\n")[0] or length is None:
                self._fail(f"{self._path} answered {head.partition(bytes([13]))[0].decode('latin-1')}")
                return
            self._size = end + 4 + int(length[1])
        if len(self._heard) >= self._size:
            self._seconds.append(time.perf_counter() - self._began)
            del self._heard[: self._size]
            self._size = 0
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"{self._path}: the connection was closed ({error})")

    def _fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(SystemExit(why))


class _Platform:
    """What SageMaker does in front of a container whose models do not all fit: a model that is asked for and not there
    is loaded, once the least recently used one that nobody waits for has been unloaded."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._port = plan["port"]
        self._folders: dict[str, str] = plan["folders"]  # of each model
        self._room = int(plan["room"])  # models at a time
        self._here: dict[str, None] = dict.fromkeys(plan["here"])  # least recently used first
        self._moving: dict[str, threading.Event] = {}  # those that are being loaded or unloaded
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()

    def ask(self, connection: http.client.HTTPConnection, model: str, body: bytes) -> None:
        """One request; returns once it is answered. Raises SystemExit where it is not."""
        self._bring(connection, model)
        try:
            self._call(connection, "POST", f"/models/{model}/invoke", body)
        finally:
            with self._lock:
                self._users[model] -= 1

    def _bring(self, connection: http.client.HTTPConnection, model: str) -> None:
        while True:
            with self._lock:
                moving = self._moving.get(model)
                if model in self._here:
                    self._here[model] = self._here.pop(model)
                    self._users[model] = self._users.get(model, 0) + 1
                    return
                if moving is None:
                    free = len(self._here) + len(self._moving) < self._room
                    victim = None if free else next((name for name in self._here if not self._users.get(name)), None)
                    if free or victim:
                        self._moving[model] = threading.Event()
                    if victim:
                        del self._here[victim]
                        self._moving[victim] = threading.Event()
            if moving is not None:
                moving.wait()
            elif victim or free:
                self._move(connection, model, victim)
            else:  # every model that is there is in use
                time.sleep(0.005)

    def _move(self, connection: http.client.HTTPConnection, model: str, victim: str | None) -> None:
        """Load a model after unloading another one. Requests that wait for either of them check again afterwards."""
        loaded = False
        try:
            if victim:
                try:
                    self._call(connection, "DELETE", f"/models/{victim}")
                finally:
                    self._moved(victim, here=False)
            load = json.dumps({"model_name": model, "url": self._folders[model]}).encode()
            self._call(connection, "POST", "/models", load)
            loaded = True
        finally:
            self._moved(model, here=loaded)

    def _moved(self, model: str, here: bool) -> None:
        with self._lock:
            if here:
                self._here[model] = None
            self._moving.pop(model).set()

    def _call(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"") -> None:
        connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method} {path} answered {answer.status}: {text[:200]!r}")


def _with_platform(plan: dict[str, Any], bodies: list[bytes]) -> list[float]:
    """Seconds of each request of clients who ask by Zipf's law, loading of models included."""
    platform, seconds = _Platform(plan), []
    names = list(plan["folders"])
    odds = [1 / (rank + 1) for rank in range(len(names))]
    until = time.perf_counter() + plan["seconds"]

    def client(number: int) -> None:
        choice = random.Random(7 * number)
        connection = http.client.HTTPConnection("127.0.0.1", plan["port"], timeout=300)
        while (began := time.perf_counter()) < until:
            platform.ask(connection, choice.choices(names, odds)[0], bodies[len(seconds) % len(bodies)])
            seconds.append(time.perf_counter() - began)

    with ThreadPoolExecutor(plan["clients"]) as pool:
        list(pool.map(client, range(plan["clients"])))
    return seconds


def main() -> None:
    """The load generator, in a process of its own: reads what to do as JSON, writes the seconds of each request."""
    plan = json.load(sys.stdin)
    bodies = [body.encode() for body in plan["bodies"]]
    seconds: list[float] = []

    async def run() -> None:
        until = time.perf_counter() + plan["seconds"]
        clients = [
            _Client(plan["paths"] if plan["zipf"] else [path], bodies, until, 7 * number, seconds)
            for number, path in zip(range(plan["clients"]), itertools.cycle(plan["paths"]))
        ]
        for client in clients:
            await asyncio.get_running_loop().create_connection(lambda client=client: client, "127.0.0.1", plan["port"])
        await asyncio.gather(*(client.ended for client in clients))

    try:
        from uvloop import run as runner
    except ImportError:
        runner = asyncio.run
    began = time.perf_counter()
    if plan.get("folders"):
        seconds += _with_platform(plan, bodies)
    else:
        runner(run())
    json.dump({"seconds": seconds, "elapsed": time.perf_counter() - began}, sys.stdout)


def drive(
    server: Server, models: str | list[str], bodies: list[str], clients: int, seconds: float, zipf: bool = False
) -> dict[str, Any]:
    """Clients ask one model, or several: each client its own, or (`zipf`) all of them, the first ones more often."""
    paths = [server.path(model) for model in ([models] if isinstance(models, str) else models)]
    plan = {"port": server.port, "paths": paths, "bodies": bodies, "clients": clients, "seconds": seconds, "zipf": zipf}
    return _run(server, plan)


def drive_with_platform(
    server: Server, folders: dict[str, Path], room: int, bodies: list[str], clients: int, seconds: float
) -> dict[str, Any]:
    """Clients ask models, the first ones more often, of which at most ``room`` are in memory: the others are loaded
    when they are asked for, and a request takes as long as that."""
    plan = {
        "port": server.port,
        "folders": {name: str(folder) for name, folder in folders.items()},
        "here": [name for name in reversed(folders) if name in server.loaded],
        "room": room,
        "paths": [],
        "bodies": bodies,
        "clients": clients,
        "seconds": seconds,
        "zipf": True,
    }
    answer = _run(server, plan)
    status = server.call("GET", f"/models?limit={room + 1}")[1]
    server.loaded = {model["modelName"] for model in json.loads(status)["models"]}
    return answer


def _run(server: Server, plan: dict[str, Any]) -> dict[str, Any]:
    before = server.cpu()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._serving_clients"],
        input=json.dumps(plan), text=True, capture_output=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{server.name}: {done.stderr[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["cpu"] = server.cpu() - before
    return answer


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    times = sorted(value for run in runs for value in run["seconds"])
    return {
        "per_second": round(sum(len(run["seconds"]) for run in runs) / sum(run["elapsed"] for run in runs), 1),
        # Unlike the others, this holds on a busy machine too: cores divided by it is the upper bound of the speed.
        "cpu_ms_each": round(1000 * sum(run["cpu"] for run in runs) / len(times), 2),
        "p50_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[min(len(times) - 1, int(len(times) * 0.99))] * 1000, 2),
    }


@contextlib.contextmanager
def paused(servers: Iterable[Server]) -> Iterator[None]:
    """Stops these servers within the block."""
    with contextlib.ExitStack() as pauses:
        for server in servers:
            pauses.enter_context(server.paused())
        yield


@contextlib.contextmanager
def spinners(count: int) -> Iterator[None]:
    """Runs so many processes that compute all the time, within the block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
