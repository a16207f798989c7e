"""Stand-ins for what the front's owners need of each other and of the system: no test of them needs a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from mme.container import memory
from mme.container.config import MiB, Settings, read
from mme.container.front.models import Invocation, Model, State, WorkerLink
from mme.container.wire import Decoder, Frame, Kind, pack


def settings(**environ: str) -> Settings:
    return read(environ)


class Clock:
    """Time that a test moves on; what is due is called on the way."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._due.append((self.now + seconds, call))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((entry for entry in self._due if entry[0] <= end), key=lambda entry: entry[0]):
            self._due.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = end


class Wire(asyncio.Transport):
    """Notes what is sent to a worker."""

    def __init__(self) -> None:
        super().__init__()
        self._decoder = Decoder()
        self.frames: list[Frame] = []
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.frames += self._decoder.feed(bytes(data))

    def abort(self) -> None:
        self.aborted = True


def model(name: str = "m", number: int = 1, mapped: int = 0, copied: int = 0, state: State = State.ACTIVE) -> Model:
    files = ((1, number, mapped),) if mapped else ()
    return Model(name, f"/{name}", f"/{name}", number, memory.Weights(mapped, copied, files), state)


def worker(of: Model, pid: int = 100, received: Callable[[WorkerLink, Frame], None] = lambda *_: None) -> WorkerLink:
    """A process of the model that is up. Needs a running loop."""
    link = WorkerLink(of, received, lambda _: None, lambda _, error: None)
    link.connection_made(Wire())
    link.pid = pid
    link.was_ready = True
    link.ready.set_result(None)
    of.worker = link
    return link


def sent(link: WorkerLink) -> list[tuple[Kind, int]]:
    """Kinds and numbers of what the front has sent to the worker."""
    return [(Kind(frame.kind), frame.id) for frame in cast(Wire, link._transport).frames]


def says(link: WorkerLink, kind: Kind, number: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
    """The worker sends a frame."""
    link.data_received(pack(kind, number, meta, body))


def frame(kind: Kind, number: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> Frame:
    return Frame(kind, number, meta or {}, body)


RESULT = {"status": 200, "type": "application/json", "times": [0.0, 0.0, 0.0, 0.0], "batch": 1, "own": 1}


class Answers:
    """Takes answers as a client would; each request must be answered once."""

    def __init__(self) -> None:
        self.status: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}

    def __call__(self, invocation: Invocation, status: int, body: bytes, kind: str, times: dict[str, Any]) -> None:
        assert invocation.id not in self.status, "answered twice"
        self.status[invocation.id] = status
        self.bodies[invocation.id] = body


class Machine:
    """A machine of ``total`` bytes with ``available`` of them, and the models on it, for admission."""

    def __init__(self, total: int = 1000 * MiB, available: int = 1000 * MiB) -> None:
        self.total = total
        self.available = available
        self.running: list[WorkerLink] = []
        self.idle_models: list[Model] = []
        self.parked: list[tuple[str, str]] = []
        self.killed: list[tuple[str, str]] = []
        self.giving: Callable[[int], list[asyncio.Future[None]]] = lambda size: []

    def give_back(self, size: int) -> list[asyncio.Future[None]]:
        return self.giving(size)

    def host(self, limit: int | None) -> memory.Host:
        return memory.Host(self.total, self.available)

    def workers(self) -> Iterable[WorkerLink]:
        return list(self.running)

    def idle(self) -> list[Model]:
        return list(self.idle_models)

    def park(self, model: Model, reason: str) -> asyncio.Future[None]:
        self.parked.append((model.name, reason))
        self.idle_models.remove(model)
        assert model.worker is not None
        self.running.remove(model.worker)
        self.available += model.estimate
        model.worker = None
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def kill(self, worker: WorkerLink, reason: str) -> None:
        self.killed.append((worker.model.name, reason))
        worker.doomed = reason

    def base_bytes(self) -> int:
        return 0
