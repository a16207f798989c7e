"""What the front knows of a model, of its process and of a request: plain state, changed by its owners.

A model is in one of five states::

    LOADING -> ACTIVE <-> PARKED      a parked model has no process; the next request forks it again (WAKING)
                 \\_______/ -> UNLOADING -> gone
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from mme.container import memory
from mme.container.config import MiB
from mme.container.front.counters import ModelMetrics
from mme.container.wire import Decoder, Frame, Kind, pack

BASE_PRIVATE = 64 * MiB  # a worker's private memory beside its weights, until a model has been measured


class State(Enum):
    LOADING = "loading"
    ACTIVE = "active"
    PARKED = "parked"
    WAKING = "waking"
    UNLOADING = "unloading"


@dataclass(eq=False)
class Invocation:
    """One request for a prediction, from its arrival to its answer. ``arrived`` is in monotonic seconds."""

    id: int
    model: Model
    headers: dict[str, str]
    body: bytes
    arrived: float
    done: Callable[[Invocation, int, bytes, str, dict[str, Any]], None]
    target: str = ""
    headers_out: dict[str, str] = field(default_factory=dict)  # further headers of the answer


@dataclass(eq=False)
class Model:
    name: str
    url: str
    path: str
    number: int  # order of loading, for LIST
    weights: memory.Weights = memory.NO_WEIGHTS
    state: State = State.LOADING
    worker: WorkerLink | None = None
    queue: dict[int, Invocation] = field(default_factory=dict)  # not yet sent to a worker
    private: int = 0  # bytes, measured; 0 until then
    last_used: float = 0.0  # monotonic seconds
    load_seconds: float = 0.0
    logged: bool = False  # the access log has a call of it
    loaded: asyncio.Event = field(default_factory=asyncio.Event)  # LOAD is over, well or not
    drained: asyncio.Event = field(default_factory=asyncio.Event)  # it is being unloaded and has no request left
    task: asyncio.Task[None] | None = None  # brings its process up
    parting: asyncio.Event | None = None  # set once its weights are a file of its own; until then nothing is forked
    metrics: ModelMetrics = field(default_factory=ModelMetrics)
    target: str = ""  # the target model, as the platform's requests name it, or the archive's manifest
    called: bool = False  # a request has named it

    @property
    def open(self) -> int:
        """Requests that wait for an answer."""
        return len(self.queue) + (len(self.worker.sent) if self.worker else 0)

    @property
    def estimate(self) -> int:
        """Private bytes that a worker of this model takes: measured, else guessed from its files."""
        return self.private or BASE_PRIVATE + int(self.weights.copied * 1.2) + self.weights.converted

    @property
    def load_estimate(self) -> int:
        """The most that it takes while it loads."""
        return self.estimate + self.weights.meanwhile


@dataclass
class Extra:
    """Memory beyond a process's need, with which it is faster (see busy.py). All sizes are bytes."""

    offered: int = 0  # what its handler could use
    held: int = 0  # promised while ``beginning``, then measured
    beginning: bool = False
    returning: asyncio.Future[None] | None = None  # done once it has been given back
    rate: float = 0.0  # answers a second
    answered: int = 0
    not_before: float = 0.0  # monotonic seconds


class WorkerLink(asyncio.Protocol):
    """A model's process, and the front's end of the socket to it.

    ``received`` is called with each frame that it sends, ``lost`` when its socket has closed, and ``broke`` with the
    reason when a frame is invalid: the handler's code has the same socket, and may write anything to it.
    """

    def __init__(
        self,
        model: Model,
        received: Callable[[WorkerLink, Frame], None],
        lost: Callable[[WorkerLink], None],
        broke: Callable[[WorkerLink, Exception], None],
        largest: int | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._received = received
        self._lost = lost
        self._broke = broke
        self._decoder = Decoder(largest)
        self._transport: asyncio.Transport | None = None
        self.model = model
        self.pid = 0
        self.ready: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.was_ready = False
        self.answered = False  # at least one request
        self.gpu: str | None = None  # which one it may use
        self.doomed: str | None = None  # why the front ends it; set when it does
        self.sent: dict[int, Invocation] = {}
        self.started: set[int] = set()  # the batch that is computed now
        self.batch = 0
        self.heard = 0.0  # monotonic seconds of the last frame
        self.private = 0  # as the worker measured it last
        self._anonymous = 0  # at that time
        self.loading: dict[str, float] = {}  # seconds that loading took, by stage
        self.shared: list[str] = []  # kinds of what was made for it before the fork
        self.checked: list[str] = []  # what its handler need not compare with transformers again (see families.py)
        self.extra = Extra()
        self.notes: dict[str, str] = {}  # what its handler says of how it runs the model

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._received(self, frame)
        except Exception as error:
            self.close()
            self._broke(self, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost(self)

    @property
    def wants_core(self) -> bool:
        """Whether there is anything to compute for it."""
        return self.doomed is None and bool(self.sent)

    def began(self) -> None:
        """Its process has just been forked: what it has more from now on is its own."""
        self._anonymous = memory.anonymous(self.pid)

    def measured(self, private: int) -> None:
        """The worker says how much private memory it has."""
        self.private = int(private)
        self._anonymous = memory.anonymous(self.pid)

    def memory_now(self) -> int:
        """Private memory at this moment: as measured last, and what it has grown by since."""
        anonymous = memory.anonymous(self.pid)
        if not self._anonymous:
            self._anonymous = anonymous
        return max(0, self.private + anonymous - self._anonymous)

    def send(self, kind: Kind, number: int = 0, meta: dict[str, Any] | None = None, body: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.write(pack(kind, number, meta, body))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
