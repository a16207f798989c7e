"""Memory admission: a load is promised its memory before it begins, or refused with 507.

The policy: a model needs what its process was measured to take, or before that an estimate from its files, and
meanwhile what is there only while it loads. It is admitted if that is available now and if everything that is loaded,
at its estimate, fits the limit less a reserve. Where it does not fit, models that have more than they need give that
back (see busy.py), then idle ones are parked, the longest idle first. Where that is not enough, a wake-up waits as long
as anything is being computed (for that will end), and a LOAD gets 507, so that the platform unloads something. Where
memory runs short later, the same is given back, idle models are parked, then the process that takes most is ended,
before the kernel ends one of its choice: one that loads first, since its handler may do what no file says. GPUs are
treated alike, each by itself (see cards.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Protocol

from mme.container import errors, memory
from mme.container.config import MiB, Settings
from mme.container.front.cards import Cards
from mme.container.front.counters import Totals
from mme.container.front.gpu import Gpus
from mme.container.front.models import Model, WorkerLink

GIVE_BACK_SECONDS = 1.0  # how long a busy model's memory is waited for before others are parked
WATCH = 0.02  # seconds between looks while anything loads, in which a process may take some dozens of megabytes
ENDING_SECONDS = 0.25  # how long an ending process is waited for before another one is ended
PARK_AT_ONCE = 4  # so that a burst of wake-ups does not wait for one ending each


class Effects(Protocol):
    """What admission needs of the other owners."""

    def workers(self) -> Iterable[WorkerLink]:
        """Every process that runs."""

    def idle(self) -> list[Model]:
        """Models with a process and without requests, the longest idle first."""

    def give_back(self, size: int) -> list[asyncio.Future[None]]:
        """Have about so many bytes given back by models that have more than they need; done when they are free."""

    def park(self, model: Model, reason: str) -> asyncio.Future[None]:
        """End the process of an idle model, which stays loaded. Done when its memory is free."""

    def kill(self, worker: WorkerLink, reason: str) -> None: ...

    def base_bytes(self) -> int:
        """What the container's own processes take."""


class Admission:
    """Owns what is promised to loads in progress."""

    def __init__(
        self,
        settings: Settings,
        totals: Totals,
        effects: Effects,
        gpus: Gpus | None = None,
        host: Callable[[int | None], memory.Host] = memory.host,
    ) -> None:
        self._settings = settings
        self._totals = totals
        self._effects = effects
        self._cards = Cards(settings, totals, effects, gpus)
        self._host = host
        self._promised: dict[Model, int] = {}  # bytes
        self._loading = asyncio.Event()
        self._freed = asyncio.Event()

    def freed(self) -> None:
        """A worker became idle or ended: loads that wait for memory check again."""
        self._freed.set()
        self._cards.freed()

    def keep(self, model: Model) -> None:
        """The load is over. What was promised is in use now, or free again."""
        self._promised.pop(model, None)
        if not self._promised:
            self._loading.clear()
        self._cards.keep(model)

    async def promise(self, model: Model, wait: bool) -> None:
        """Promise a model its memory until :meth:`keep`. Raises 507 where there is not enough (see the module)."""
        resident = {key for worker in self._effects.workers() for key in worker.model.weights.files}
        fresh = sum(key[2] for key in model.weights.files if key not in resident)
        need = model.load_estimate
        waited: set[asyncio.Future[None]] = set()
        while True:
            self._freed.clear()
            now, planned = self._budget()
            if now >= need and planned >= need + fresh:
                self._promised[model] = need
                self._loading.set()
                return
            returning = set(self._effects.give_back(max(need - now, need + fresh - planned))) - waited
            if returning:
                waited |= returning
                await asyncio.wait(returning, timeout=GIVE_BACK_SECONDS)
                continue
            victims = [victim for victim in self._effects.idle() if victim is not model]
            if victims:
                await asyncio.gather(*(self._effects.park(victim, "memory") for victim in victims[:PARK_AT_ONCE]))
            elif not (wait and await self._some_work_ended()):
                self._totals.no_memory += 1
                short = max(need - now, need + fresh - planned)
                raise errors.out_of_memory(
                    f"Model {model.name} needs about {(need + fresh) // MiB} MiB; {-(-short // MiB)} MiB too few are "
                    "free. Unload a model that is not in use"
                )

    def room(self, size: int) -> bool:
        """Whether so many bytes are free now, and not needed for anything that is loaded."""
        return min(self._budget()) >= size

    async def place(self, model: Model, wait: bool) -> str | None:
        """The GPU for a new worker, once it has room until :meth:`keep`. None where there is no GPU. Raises 507."""
        return await self._cards.place(model, wait)

    async def watch(self) -> None:
        """While anything loads, look more often than `guard` is called. Does not end."""
        while True:
            await self._loading.wait()
            await asyncio.sleep(WATCH)
            ending = self._guard_memory()
            if ending:
                await asyncio.wait(ending, timeout=ENDING_SECONDS)

    def guard(self) -> None:
        """When memory runs out, end a worker of our choice before the kernel ends one of its choice."""
        self._cards.guard()
        self._guard_memory()

    def _guard_memory(self) -> list[asyncio.Future[None]]:
        """Make room where there is next to none. Returns what is done once there is some."""
        workers = list(self._effects.workers())
        if not workers:
            return []
        _, available, reserve = self._free()
        if available >= reserve // 2:
            return []
        if any(worker.extra.held and worker.extra.returning is None for worker in workers):
            return self._effects.give_back(reserve)
        idle = self._effects.idle()
        if idle:
            return [self._effects.park(model, "memory") for model in idle[: max(1, len(idle) // 4)]]
        loading = [worker for worker in workers if not worker.ready.done() and worker.doomed is None]
        candidates = loading or [worker for worker in workers if worker.doomed is None]
        if not candidates:
            return []
        self._totals.no_memory += 1
        victim = max(candidates, key=WorkerLink.memory_now)
        self._effects.kill(victim, "memory")
        return [victim.exited]

    async def _some_work_ended(self) -> bool:
        """Wait for a worker to become idle or to end, a second at most. False where no worker has work."""
        if not any(worker.sent for worker in self._effects.workers()):
            return False
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._freed.wait(), 1.0)
        return True

    def _free(self) -> tuple[int, int, int]:
        """(bytes that the container may use in all, bytes that it could take now, bytes to keep free)."""
        limit = self._settings.memory_limit
        host = self._host(limit)
        reserve = self._settings.memory_reserve
        if reserve is None:
            reserve = memory.default_reserve(host.total)
        available = host.available
        if limit is not None:  # a limit of our own, that the system does not watch
            used = sum(worker.memory_now() for worker in self._effects.workers())
            available = min(available, max(0, host.total - used - self._effects.base_bytes()))
        return host.total, available, reserve

    def _budget(self) -> tuple[int, int]:
        """(bytes that could be taken now, bytes of working set that may still be planned for)."""
        total, available, reserve = self._free()
        promised = sum(self._promised.values())
        beginning = sum(worker.extra.held for worker in self._effects.workers() if worker.extra.beginning)
        private = promised
        files: dict[tuple[int, int, int], int] = {}
        for worker in self._effects.workers():
            if worker.model not in self._promised:
                private += worker.model.estimate + worker.extra.held
            else:
                private += max(0, worker.memory_now() - self._promised[worker.model])
            for key in worker.model.weights.files:
                files[key] = key[2]
        planned = private + sum(files.values()) + self._effects.base_bytes()
        return available - promised - beginning - reserve, total - planned - reserve
