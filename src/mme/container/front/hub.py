"""All state of the front, and the contract's calls on it.

Four owners have a piece each: the scheduler (who computes), admission (what may be in memory), requests (what is to be
answered) and processes (what runs). None reads another's state; the hub hands each what it needs of the others.
Everything runs on the front's event loop, so that nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from mme.container import errors, system
from mme.container.config import Settings
from mme.container.front import cards
from mme.container.front.admission import Admission
from mme.container.front.budget import Budget
from mme.container.front.busy import Busy
from mme.container.front.cores import Cores
from mme.container.front.counters import Totals
from mme.container.front.gpu import Gpus
from mme.container.front.log import Log
from mme.container.front.models import Invocation, Model, State, WorkerLink
from mme.container.front.parent_link import Listener, ParentLink
from mme.container.front.processes import Processes
from mme.container.front.requests import Requests
from mme.container.front.scheduler import Scheduler
from mme.container.wire import Kind

TICK = 0.25  # seconds
MAX_TARGET = 1024  # characters, as SageMaker bounds it


class Hub:
    """Owns the models by name. ``close`` ends every process that ``start`` and later calls began."""

    def __init__(
        self, settings: Settings, log: Log, parent: Callable[[Listener, Settings, Log], ParentLink] = ParentLink
    ) -> None:
        self.settings = settings
        self.log = log
        self.models: dict[str, Model] = {}
        self.totals = Totals()
        self.stopping = False
        self.gone: Callable[[Model], None] = lambda _: None  # called with a model that is not loaded any more
        self._numbers = 0
        gpus = Gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if settings.device != "cpu" else None
        if gpus is not None and (why := cards.unseen(gpus, system.has_gpu)):
            log("warning", "gpu", message=why)
        self._admission = Admission(settings, self.totals, self, gpus)
        self._requests = Requests(settings, self.totals, self)
        self._scheduler: Scheduler[WorkerLink] = Scheduler(
            settings.cpus, self, time.monotonic, self.later, spare=int(settings.cpus > 1)
        )
        self._cores = Cores(settings.cpus, time.monotonic)
        self._busy = Busy(settings, self.totals, log, self, time.monotonic)
        self._processes = Processes(
            *(settings, log, self.totals, self._admission, self._requests, self._scheduler, self._busy),
            self._forget,
            parent,
        )

    async def start(self) -> None:
        self.parent.start()
        self._processes.background(self._tick())
        self._processes.background(self._watch())

    @property
    def parent_starts(self) -> int:
        return self.parent.starts

    @property
    def threads(self) -> int:
        """How many threads a model that computes alone may have."""
        return self._cores.threads

    @property
    def budget(self) -> Budget:
        return self._requests.budget

    @property
    def healthy(self) -> bool:
        return self.parent.warm.is_set() and not self.stopping

    @property
    def parent(self) -> ParentLink:
        return self._processes.parent

    # -- the contract -------------------------------------------------------------------------------------------

    async def load(self, name: str, url: str) -> None:
        """Load a model and answer once it can be called. Raises ServingError; then nothing of it is left."""
        if self.stopping:
            raise errors.unavailable("The container is shutting down")
        path = url.removeprefix("file://")
        present = self.models.get(name)
        if present is not None:
            if present.state in (State.LOADING, State.UNLOADING):
                raise errors.conflict(f"Model {name} is {present.state.value} at this moment")
            raise errors.conflict(f"Model {name} is already loaded from {present.url}")
        self._numbers += 1
        model = Model(name, url, path, self._numbers, last_used=time.monotonic())
        self.models[name] = model
        began = time.monotonic()
        try:
            await self._processes.load(model)
        except BaseException:
            del self.models[name]
            self._processes.let_go(model)
            self.totals.failed_loads += 1
            raise
        finally:
            model.loaded.set()
        model.load_seconds = time.monotonic() - began
        model.metrics.loads += 1
        self.totals.loads += 1
        self.totals.load_seconds.add(model.load_seconds)
        if model.worker is not None:
            self.log(
                "info",
                "load",
                model=name,
                url=url,
                target=model.target or None,
                seconds=round(model.load_seconds, 4),
                shared=model.worker.shared,
                private=model.private,
                engine=model.worker.notes.get("engine"),
                format=model.worker.notes.get("format"),
                engine_reason=model.worker.notes.get("reason"),
                **{f"{stage}_seconds": round(seconds, 4) for stage, seconds in model.worker.loading.items()},
            )
        self._processes.came_up(model)

    async def unload(self, name: str) -> None:
        """Answer what is under way, end the worker, and return once its memory is free."""
        model = self.models.get(name)
        if model is not None and model.state is State.LOADING:
            if model.task is not None:
                model.task.cancel()
            await model.loaded.wait()
            if self.models.get(name) is not model:
                return
            # It came up in the same moment. It goes like any other.
        if model is None or model.state is State.UNLOADING:
            raise errors.not_found(name)
        model.state = State.UNLOADING
        while model.open:
            model.drained.clear()
            await model.drained.wait()
        if model.task is not None:  # it was just coming back, and nobody waits for it any more
            model.task.cancel()
            await asyncio.wait([model.task])
        if model.worker is not None:
            await self._processes.end(model.worker, "unload")
        del self.models[name]
        self._processes.let_go(model)
        self.gone(model)
        self.totals.unloads += 1

    def get(self, name: str) -> Model:
        model = self.models.get(name)
        if model is None or model.state in (State.LOADING, State.UNLOADING):
            raise errors.not_found(name)
        return model

    def page(self, after: int, size: int) -> tuple[list[Model], int | None]:
        """Loaded models in order of loading, and where the next page starts (None on the last page)."""
        page: list[Model] = []
        for model in self.models.values():
            if model.number <= after or model.state in (State.LOADING, State.UNLOADING):
                continue
            if len(page) == size:
                return page, page[-1].number
            page.append(model)
        return page, None

    def invoke(
        self,
        name: str,
        headers: dict[str, str],
        body: bytes,
        done: Callable[[Invocation, int, bytes, str, dict[str, Any]], None],
        target: str = "",
    ) -> Invocation:
        """Queue a request; ``done`` is called with its answer. Raises ServingError if it cannot be taken."""
        model = self.get(name)
        if self.stopping:
            raise errors.unavailable("The container is shutting down")
        invocation = self._requests.take(model, headers, body, done, target)
        if target and not model.called:
            model.target, model.called = target[:MAX_TARGET], True
        if model.state is State.ACTIVE:
            self._requests.push(model)
        elif model.state is State.PARKED:
            self._processes.wake(model)
        return invocation

    def cancel(self, invocation: Invocation) -> None:
        """The client has gone: forget the request, and the work on it if nothing else is in its batch."""
        self._requests.cancel(invocation)

    async def drain(self) -> None:
        """Take nothing new; wait until what is open is answered, at most ``drain_timeout`` seconds."""
        self.stopping = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._requests.all_answered(), self.settings.drain_timeout)

    async def close(self) -> None:
        """End everything. Requests that are still open get 503."""
        self.stopping = True
        self._requests.fail_all(errors.unavailable("The container is shutting down"))
        await self._processes.close()

    def _forget(self, model: Model) -> None:
        """The model's process ended by itself: the next request for it gets 404, and the platform loads it again."""
        if self.models.get(model.name) is model and model.state is not State.UNLOADING:
            del self.models[model.name]
            self._processes.let_go(model)
            self.gone(model)

    # -- what the owners need of each other ---------------------------------------------------------------------

    def workers(self) -> Iterable[WorkerLink]:
        return self._processes.all

    def idle(self) -> list[Model]:
        """Active models without requests, the longest idle first."""
        idle = [
            model
            for model in self.models.values()
            if model.state is State.ACTIVE
            and model.open == 0
            and model.worker is not None
            and not self._scheduler.computes(model.worker)
        ]
        return sorted(idle, key=lambda model: model.last_used)

    def room(self, size: int) -> bool:
        return self._admission.room(size)

    def give_back(self, size: int) -> list[asyncio.Future[None]]:
        return self._busy.give_back(size)

    def returned(self) -> None:
        self._admission.freed()

    def park(self, model: Model, reason: str) -> asyncio.Task[None]:
        return self._processes.park(model, reason)

    def kill(self, worker: WorkerLink, reason: str) -> None:
        self._processes.kill(worker, reason)

    def base_bytes(self) -> int:
        return self.parent.base_bytes

    def want(self, worker: WorkerLink) -> None:
        self._scheduler.want(worker)

    def became_idle(self, model: Model) -> None:
        self._admission.freed()

    def later(self, seconds: float, call: Callable[[], None]) -> object:
        return asyncio.get_running_loop().call_later(seconds, call)

    def wants_core(self, worker: WorkerLink) -> bool:
        return worker.wants_core

    def grant(self, worker: WorkerLink, threads: int) -> None:
        self._requests.granted(worker)
        worker.send(Kind.GRANT, threads)

    def recall(self, worker: WorkerLink) -> None:
        worker.send(Kind.YIELD)

    # -- the clock ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self._requests.expire()
                self._end_what_hangs()
                self._park_what_is_idle()
                self._admission.guard()
                self._busy.tick()
                self._share_the_cores()
                self._processes.part_what_is_written(self.models.values())
            except Exception as error:  # the clock must not stop
                self.log("error", "clock", message=repr(error))

    async def _watch(self) -> None:
        while True:
            try:
                await self._admission.watch()
            except Exception as error:  # as above
                self.log("error", "clock", message=repr(error))
                await asyncio.sleep(TICK)

    def _share_the_cores(self) -> None:
        """Divide as many threads as other work leaves cores."""
        if self._cores.due:
            changed = self._cores.tick([worker.pid for worker in self._scheduler.alone() if worker.pid])
            if changed:
                self.log("info", "threads", threads=self._cores.threads, cores=self.settings.cpus)
                self._scheduler.divide(self._cores.threads)

    def _end_what_hangs(self) -> None:
        """A worker that computes, and has not been heard of for as long as a request may take."""
        now = time.monotonic()
        for worker, since in self._scheduler.grants():
            if now - max(since, worker.heard) > self.settings.invoke_timeout:
                self._processes.kill(worker, "timeout")

    def _park_what_is_idle(self) -> None:
        if self.settings.park_after:
            now = time.monotonic()
            for model in self.idle():
                if now - model.last_used < self.settings.park_after:
                    break
                self._processes.park(model, "idle")
