"""The single owner of all state: models, their workers, their requests, and who may compute when.

Everything here runs on the front's event loop, so that nothing needs a lock. A model is in one of five states::

    LOADING -> ACTIVE <-> PARKED      a parked model has no process; the next request forks it again (WAKING)
                 \\_______/ -> UNLOADING -> gone
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from mme.container import errors, memory
from mme.container.config import MiB, Settings
from mme.container.errors import ServingError
from mme.container.front.counters import ModelMetrics, Totals
from mme.container.front.families import Families
from mme.container.front.gpu import Gpu, Gpus
from mme.container.front.log import Log
from mme.container.front.parent_link import ParentLink, WorkerLink
from mme.container.front.weightpool import WeightPool
from mme.container.recipes import foresee
from mme.container.wire import Frame, Kind

QUANTUM = 0.02  # seconds a model may compute while others wait for a core
PATIENCE = 0.1  # seconds after which a model that does not give its core back stops being waited for
ABANDON_SECONDS = 1.0  # how long work goes on that nobody waits for any more
TICK = 0.25
GPU_CONTEXT = 600 * MiB  # what CUDA itself takes on the device for each process
BASE_PRIVATE = 64 * MiB  # a worker's private memory beside its weights, until a model has been measured


class State(Enum):
    LOADING = "loading"
    ACTIVE = "active"
    PARKED = "parked"
    WAKING = "waking"
    UNLOADING = "unloading"


@dataclass(eq=False)
class Invocation:
    """One request for a prediction, from its arrival to its answer. Times are monotonic seconds."""

    id: int
    model: Model
    headers: dict[str, str]
    body: bytes
    arrived: float
    done: Callable[[Invocation, int, bytes, str, dict[str, Any]], None]
    target: str = ""


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
    last_used: float = 0.0
    load_seconds: float = 0.0
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    metrics: ModelMetrics = field(default_factory=ModelMetrics)

    @property
    def open(self) -> int:
        """Requests that wait for an answer."""
        return len(self.queue) + (len(self.worker.sent) if self.worker else 0)

    @property
    def estimate(self) -> int:
        """Private bytes that a worker of this model takes: measured, else guessed from its files."""
        return self.private or BASE_PRIVATE + int(self.weights.copied * 1.2)


class Hub:
    """See the module's text. ``close`` ends every process that ``start`` and later calls began."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings = settings
        self.log = log
        self.models: dict[str, Model] = {}
        self.totals = Totals()
        self.parent = ParentLink(self, settings, log)
        self.families = Families(self.parent, log)
        self.pool = WeightPool()
        self.gpus = Gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if settings.device != "cpu" else None
        self.stopping = False
        self._numbers = 0
        self._ids = 0
        self._open: dict[int, Invocation] = {}  # in order of arrival
        self._queued_bytes = 0
        self._workers: dict[int, WorkerLink] = {}  # by process id
        self._starting: dict[Model, int] = {}  # bytes that loads in progress have been promised
        self._waiting: OrderedDict[WorkerLink, float] = OrderedDict()  # for a core, since when
        self._running: dict[WorkerLink, float] = {}  # holds a grant, since when
        self._loads = asyncio.Semaphore(settings.max_loads)
        self._room = asyncio.Event()  # set when a worker became idle or ended
        self._slice: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._oom_kills = memory.oom_kills()

    async def start(self) -> None:
        self.parent.start()
        self._background(self._tick())

    @property
    def healthy(self) -> bool:
        return self.parent.warm.is_set() and not self.stopping

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
        if not Path(path).is_dir():
            raise ServingError(404, "ModelNotFoundException", f"There is no folder at {url}")
        self._numbers += 1
        model = Model(name, url, path, self._numbers, last_used=time.monotonic())
        self.models[name] = model
        began = time.monotonic()
        try:
            await self._bring_up(model, asyncio.create_task(self._spawn(model, wait_for_room=False)))
        except BaseException:
            del self.models[name]
            self._let_go(model)
            self.totals.failed_loads += 1
            raise
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
                seconds=round(model.load_seconds, 4),
                shared=model.worker.shared,
                private=model.private,
                **{f"{stage}_seconds": round(seconds, 4) for stage, seconds in model.worker.loading.items()},
            )
        self._came_up(model)

    def _look_at_files(self, model: Model, alone: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
        """Note the sizes of the weights, after equal ones of loaded models have been made one; which of these recipes
        the model will have too. Runs in a thread."""
        try:
            if self.settings.share_files:
                self.totals.shared_bytes += self.pool.share(model.number, model.path)
            model.weights = memory.weights(model.path)
        except OSError as error:
            raise errors.internal(f"The files of model {model.name} cannot be read: {error}") from None
        return foresee(alone, model.path)

    async def unload(self, name: str) -> None:
        """Answer what is under way, end the worker, and return once its memory is free."""
        model = self.models.get(name)
        if model is None or model.state is State.UNLOADING:
            raise errors.not_found(name)
        if model.state is State.LOADING:
            if model.task is not None:
                model.task.cancel()
            while self.models.get(name) is model:
                await asyncio.sleep(0.01)
            return
        model.state = State.UNLOADING
        while model.open:
            model.drained.clear()
            await model.drained.wait()
        if model.task is not None:  # it was just coming back, and nobody waits for it any more
            model.task.cancel()
            await asyncio.wait([model.task])
        if model.worker is not None:
            await self._end(model.worker, "unload")
        del self.models[name]
        self._let_go(model)
        self.totals.unloads += 1

    def get(self, name: str) -> Model:
        model = self.models.get(name)
        if model is None or model.state in (State.LOADING, State.UNLOADING):
            raise errors.not_found(name)
        return model

    def page(self, after: int, size: int) -> tuple[list[Model], int | None]:
        """Loaded models in order of loading, and where the next page starts (None on the last page)."""
        found: list[Model] = []
        for model in self.models.values():
            if model.number <= after or model.state in (State.LOADING, State.UNLOADING):
                continue
            if len(found) == size:
                return found, found[-1].number
            found.append(model)
        return found, None

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
        if model.open >= self.settings.max_queue:
            self.totals.refused += 1
            raise errors.unavailable(f"{model.open} requests already wait for model {name}; try again later")
        if self._queued_bytes + len(body) > self.settings.max_queue_bytes:
            self.totals.refused += 1
            raise errors.unavailable("Too much request data waits in the container; try again later")
        self._ids += 1
        now = time.monotonic()
        invocation = Invocation(self._ids, model, headers, body, now, done, target)
        self._open[invocation.id] = invocation
        self._queued_bytes += len(body)
        model.queue[invocation.id] = invocation
        model.last_used = now
        if model.state is State.ACTIVE:
            self._push(model)
        elif model.state is State.PARKED:
            self._wake(model)
        return invocation

    def cancel(self, invocation: Invocation) -> None:
        """The client has gone: forget the request, and the work on it if nothing else is in its batch."""
        if self._close(invocation):
            self.totals.cancelled += 1
            self._drop(invocation)

    async def drain(self) -> None:
        """Take nothing new; wait until what is open is answered, at most ``drain_timeout`` seconds."""
        self.stopping = True
        deadline = time.monotonic() + self.settings.drain_timeout
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End everything. Requests that are still open get 503."""
        self.stopping = True
        for invocation in list(self._open.values()):
            self._answer_error(invocation, errors.unavailable("The container is shutting down"))
        for worker in self._workers.values():
            worker.doomed = worker.doomed or "shutdown"
        await self.parent.close()
        self.parent_died()  # and every worker with it: whoever waits for one need not wait longer
        for task in list(self._tasks):
            task.cancel()

    # -- workers ------------------------------------------------------------------------------------------------

    async def _bring_up(self, model: Model, task: asyncio.Task[None]) -> None:
        """Wait for a model's worker, at most ``load_timeout``. On an error or a cancellation nothing of it is left."""
        model.task = task
        try:
            await asyncio.wait([task], timeout=self.settings.load_timeout)
            late = not task.done()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            model.task = None
            if task.done() and not task.cancelled():
                task.exception()  # looked at, even where the caller has left
        if task.cancelled():
            if late:
                seconds = self.settings.load_timeout
                raise errors.timed_out(f"Model {model.name} did not load within {seconds:g} seconds")
            raise errors.unavailable(f"Loading of model {model.name} was cancelled")
        task.result()

    async def _spawn(self, model: Model, wait_for_room: bool) -> None:
        """Fork a worker for the model and wait until it is ready."""
        async with self._loads:
            if model.state is State.LOADING:
                recipes = await asyncio.to_thread(self._look_at_files, model, self.families.alone())
                self.families.expected(model.number, recipes)
            await self.parent.warm.wait()
            await self._make_room(model, wait_for_room)
            worker = WorkerLink(self, model)
            worker.gpu = await self._make_room_on_gpu(model, wait_for_room)
            model.worker = worker
            forking = asyncio.ensure_future(self.parent.fork(worker))
            try:
                await asyncio.shield(forking)
                await asyncio.shield(worker.ready)
            except BaseException:
                undo = self._background(self._undo(worker, forking))
                while not undo.done():  # whoever cancels again and again does not get less cleaning up
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.shield(undo)
                if worker.doomed == "memory":
                    raise errors.out_of_memory(
                        f"Model {model.name} took more memory while it loaded than is free. Unload a model not in use"
                    ) from None
                raise
            finally:
                self._starting.pop(model, None)
            model.private = max(model.private, worker.private)

    async def _undo(self, worker: WorkerLink, forking: asyncio.Future[None]) -> None:
        """Leave nothing of a worker whose start has failed or is no longer wanted."""
        worker.doomed = worker.doomed or "load"
        with contextlib.suppress(ServingError):
            await forking
        if worker.pid:
            await self._end(worker, "load")
        worker.close()
        if worker.model.worker is worker:
            worker.model.worker = None

    async def _end(self, worker: WorkerLink, reason: str) -> None:
        """Kill a worker and wait until the system has taken its memory back."""
        if worker.doomed is None:
            worker.doomed = reason
        if not worker.exited.done():
            self.parent.kill(worker.pid)
        await asyncio.shield(worker.exited)

    def _wake(self, model: Model) -> None:
        """Bring a model without a process back for the requests in its queue; one that is being unloaded, too."""
        if model.state is not State.UNLOADING:
            model.state = State.WAKING
        model.task = asyncio.create_task(self._spawn(model, wait_for_room=True))
        self._background(self._waken(model, model.task))

    async def _waken(self, model: Model, task: asyncio.Task[None]) -> None:
        began = time.monotonic()
        try:
            await self._bring_up(model, task)
        except ServingError as error:
            for invocation in list(model.queue.values()):
                self._answer_error(invocation, error)
            if model.state is State.WAKING:
                model.state = State.PARKED
                if error.status not in (503, 507):  # it cannot come back: let the platform load it anew
                    self._forget(model)
            return
        model.metrics.wakes += 1
        self.totals.wakes += 1
        self.totals.wake_seconds.add(time.monotonic() - began)
        self._came_up(model)

    def _came_up(self, model: Model) -> None:
        """The model's process is ready, unless it has ended again in the same moment."""
        if model.state is not State.UNLOADING:
            model.state = State.ACTIVE if model.worker is not None else State.PARKED
        if model.worker is not None:
            self._push(model)
        elif model.queue and not self.stopping:
            self._wake(model)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _park(self, model: Model, reason: str) -> asyncio.Task[None]:
        """End the process of an idle model; it stays loaded."""
        worker = model.worker
        assert worker is not None
        model.state = State.PARKED
        worker.doomed = "park"
        model.metrics.parks += 1
        self.totals.parks += 1
        self.log("debug", "park", model=model.name, reason=reason)
        return self._background(self._end(worker, "park"))

    def _forget(self, model: Model) -> None:
        """The model is gone by itself: the next request for it gets 404, and the platform loads it again."""
        if self.models.get(model.name) is model and model.state is not State.UNLOADING:
            del self.models[model.name]
            self._let_go(model)

    def _let_go(self, model: Model) -> None:
        self.families.left(model.number)
        self.pool.forget(model.number)

    def worker_forked(self, worker: WorkerLink) -> None:
        """The parent says that a worker's process runs."""
        self._workers[worker.pid] = worker

    def worker_exited(self, pid: int, code: int, by_signal: int) -> None:
        """The parent says that a process has ended."""
        worker = self._workers.pop(pid, None)
        if worker is not None:
            kills = memory.oom_kills()
            starved = by_signal == 9 and kills > self._oom_kills
            self._oom_kills = kills
            self._ended(worker, code, by_signal, starved)

    def parent_died(self) -> None:
        """Every worker has died with the parent. What was loaded stays loaded, parked; requests under way fail."""
        for worker in list(self._workers.values()):
            worker.doomed = worker.doomed or "parent"
            self._ended(worker, 0, 9, starved=False)
        self._workers.clear()
        self.families.forget()

    def _ended(self, worker: WorkerLink, code: int, by_signal: int, starved: bool) -> None:
        model = worker.model
        self._running.pop(worker, None)
        self._waiting.pop(worker, None)
        worker.close()
        why = f"signal {by_signal}" if by_signal else f"exit code {code}"
        current = model.worker is worker  # a parked model may have a new one already
        if current:
            model.worker = None
        if not worker.ready.done():
            told = (
                errors.unavailable("The container is shutting down")
                if self.stopping
                else errors.out_of_memory(f"The kernel ended model {model.name} while it loaded: out of memory")
                if starved
                else errors.internal(f"The process of model {model.name} ended while it loaded ({why})")
            )
            worker.ready.set_exception(told)
            worker.ready.exception()  # mark it as looked at: a cancelled load has nobody to look
        elif worker.doomed is None:
            self.totals.died += 1
            self.log("error", "model process ended", model=model.name, pid=worker.pid, why=why, out_of_memory=starved)
        self._settle(worker, starved, why)
        if not (current and worker.was_ready):
            pass
        elif worker.doomed is None:
            for invocation in list(model.queue.values()):
                self._answer_error(invocation, errors.internal(f"The process of model {model.name} ended ({why})"))
            self._forget(model)
        elif model.state in (State.ACTIVE, State.PARKED, State.UNLOADING):
            if model.state is State.ACTIVE:
                model.state = State.PARKED
            if model.queue and model.task is None and not self.stopping:
                self._wake(model)
        if not worker.exited.done():
            worker.exited.set_result(None)
        self._drained(model)
        self._room.set()
        self._schedule()

    def _settle(self, worker: WorkerLink, starved: bool, why: str) -> None:
        """Answer the requests that an ended worker held; those it had not begun go back to the queue."""
        model = worker.model
        if worker.doomed == "timeout":
            told = errors.timed_out(
                f"Model {model.name} did not answer within {self.settings.invoke_timeout:g} seconds"
            )
        elif starved or worker.doomed == "memory":
            told = errors.out_of_memory(f"Model {model.name} was ended: the container's memory ran out")
        else:
            told = errors.internal(f"The process of model {model.name} ended while it worked on the request ({why})")
        lost: list[Invocation] = []
        again: dict[int, Invocation] = {}
        for invocation in worker.sent.values():
            begun = invocation.id in worker.started or (not worker.started and worker.doomed == "timeout")
            if begun or worker.doomed is None:
                lost.append(invocation)
            else:
                again[invocation.id] = invocation
        # Those that can still be answered go back first: an unload must not find the model without requests.
        model.queue = {**again, **model.queue}
        worker.sent.clear()
        worker.started.clear()
        for invocation in lost:
            self._answer_error(invocation, told)

    # -- memory -------------------------------------------------------------------------------------------------

    def _free(self) -> tuple[int, int, int]:
        """(bytes that the container may use in all, bytes that it could take now, bytes to keep free)."""
        host = memory.host(self.settings.memory_limit)
        reserve = self.settings.memory_reserve
        if reserve is None:
            reserve = memory.default_reserve(host.total)
        available = host.available
        if self.settings.memory_limit is not None:  # a limit of our own, that the system does not watch
            used = sum(worker.memory_now() for worker in self._workers.values())
            available = min(available, max(0, host.total - used - self.parent.base_bytes))
        return host.total, available, reserve

    def _budget(self) -> tuple[int, int]:
        """(bytes that could be taken now, bytes of working set that may still be planned for)."""
        total, available, reserve = self._free()
        promised = sum(self._starting.values())
        private = promised
        files: dict[tuple[int, int, int], int] = {}
        for worker in self._workers.values():
            if worker.model not in self._starting:
                private += worker.model.estimate
            for key in worker.model.weights.files:
                files[key] = key[2]
        planned = private + sum(files.values()) + self.parent.base_bytes
        return available - promised - reserve, total - planned - reserve

    async def _make_room(self, model: Model, wait: bool) -> None:
        """Promise memory to a load: park idle models for it, the longest idle first; 507 if that is not enough."""
        resident = {key for worker in self._workers.values() for key in worker.model.weights.files}
        fresh = sum(key[2] for key in model.weights.files if key not in resident)
        need = model.estimate
        while True:
            self._room.clear()
            now, planned = self._budget()
            if now >= need and planned >= need + fresh:
                self._starting[model] = need
                return
            victims = self._idle(model)
            if victims:
                # A few at once, so that a burst of wake-ups does not wait for one ending each.
                await asyncio.gather(*(self._park(victim, "memory") for victim in victims[:4]))
            elif wait and any(worker.sent for worker in self._workers.values()):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._room.wait(), 1.0)
            else:
                self.totals.no_memory += 1
                short = max(need - now, need + fresh - planned)
                raise errors.out_of_memory(
                    f"Model {model.name} needs about {(need + fresh) // MiB} MiB; {-(-short // MiB)} MiB too few are "
                    "free. Unload a model that is not in use"
                )

    async def _make_room_on_gpu(self, model: Model, wait: bool) -> str | None:
        """The GPU for a new worker: the one with most memory free, once enough is. None where there is no GPU."""
        gpus = self.gpus.look() if self.gpus is not None else []
        if not gpus:
            if self.settings.device == "cuda":
                raise errors.internal("MME_DEVICE is cuda, but no GPU can be seen here")
            return None
        need = GPU_CONTEXT + int((model.weights.mapped + model.weights.copied) * 1.2)
        while True:
            self._room.clear()
            best = max(self.gpus.look() if self.gpus is not None else gpus, key=self._gpu_free)
            if self._gpu_free(best) >= need:
                return best.name
            victims = [victim for victim in self._idle(model) if victim.worker and victim.worker.gpu == best.name]
            if victims:
                await self._park(victims[0], "gpu memory")
            elif wait and any(worker.sent for worker in self._workers.values()):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._room.wait(), 1.0)
            else:
                self.totals.no_memory += 1
                raise errors.out_of_memory(
                    f"Model {model.name} needs about {need // MiB} MiB of GPU memory; at most "
                    f"{max(0, self._gpu_free(best)) // MiB} MiB are free on one GPU. Unload a model that is not in use"
                )

    def _gpu_free(self, gpu: Gpu) -> int:
        """What is free on a GPU less what loads in progress are about to take."""
        coming = [
            worker.model.weights
            for worker in self._workers.values()
            if worker.gpu == gpu.name and not worker.ready.done()
        ]
        return gpu.free - sum(GPU_CONTEXT + weights.mapped + weights.copied for weights in coming)

    def _idle(self, apart_from: Model | None = None) -> list[Model]:
        """Active models without requests, the longest idle first."""
        idle = [
            model
            for model in self.models.values()
            if model.state is State.ACTIVE
            and model.open == 0
            and model.worker is not None
            and model is not apart_from
            and model.worker not in self._running
        ]
        return sorted(idle, key=lambda model: model.last_used)

    # -- requests -----------------------------------------------------------------------------------------------

    def _push(self, model: Model) -> None:
        """Send what is queued to the model's worker, and ask for a core for it."""
        worker = model.worker
        if worker is None or not worker.was_ready or worker.doomed or not model.queue:
            return
        for invocation in model.queue.values():
            worker.sent[invocation.id] = invocation
            worker.send(Kind.REQUEST, invocation.id, invocation.headers, invocation.body)
        model.queue.clear()
        self._want(worker)

    def frame(self, worker: WorkerLink, frame: Frame) -> None:
        """Something arrived from a worker."""
        worker.heard = time.monotonic()
        if frame.kind == Kind.RESULT:
            worker.started.discard(frame.id)
            invocation = worker.sent.pop(frame.id, None)
            if invocation is not None and self._close(invocation):
                self._succeed(invocation, frame)
        elif frame.kind == Kind.STARTED:
            worker.started = set(frame.meta["ids"])
            worker.batch += 1
            self.totals.batches += bool(worker.started)
            self._abandon_if_unwanted(worker)
        elif frame.kind == Kind.RELEASED:
            self._released(worker)
        elif frame.kind == Kind.MEMORY:
            worker.measured(frame.meta["private"])
            worker.model.private = worker.private
        elif frame.kind == Kind.READY and not worker.ready.done():
            worker.was_ready = True
            worker.measured(frame.meta["private"])
            worker.loading = {"handler": frame.meta["seconds"], "cpu": frame.meta["cpu"]}
            worker.shared = frame.meta["shared"]
            self.families.joined(worker.model.number, worker.model.path, frame.meta["recipes"])
            worker.ready.set_result(None)
        elif frame.kind == Kind.FAILED and not worker.ready.done():
            meta = frame.meta
            worker.ready.set_exception(
                ServingError(meta["status"], meta["type"], f"Model {worker.model.name}: {meta['message']}")
            )

    def _succeed(self, invocation: Invocation, frame: Frame) -> None:
        model = invocation.model
        now = time.monotonic()
        model.last_used = now
        meta = frame.meta
        began, decoded, predicted, encoded = meta["times"]
        stages = {
            "queue": max(0.0, began - invocation.arrived),
            "decode": decoded - began,
            "predict": predicted - decoded,
            "encode": encoded - predicted,
            "total": now - invocation.arrived,
        }
        self.totals.observe(stages, meta["status"], meta["batch"])
        model.metrics.observe(stages, meta["status"], meta["batch"], meta["own"])
        invocation.done(invocation, meta["status"], frame.body, meta["type"], {**stages, "batch": meta["batch"]})
        self._drained(model)

    def _answer_error(self, invocation: Invocation, error: ServingError) -> None:
        """Answer a request with an error, wherever it stands."""
        if not self._close(invocation):
            return
        self._drop(invocation)
        stages = {"total": time.monotonic() - invocation.arrived}
        self.totals.observe(stages, error.status, 0)
        invocation.model.metrics.observe(stages, error.status, 0, 0)
        invocation.done(invocation, error.status, error.body(), "application/json", stages)

    def _close(self, invocation: Invocation) -> bool:
        """Take a request off the books. False if it was off already."""
        if self._open.pop(invocation.id, None) is None:
            return False
        self._queued_bytes -= len(invocation.body)
        return True

    def _drop(self, invocation: Invocation) -> None:
        """Take a closed request out of its queue or its worker."""
        model = invocation.model
        worker = model.worker
        model.queue.pop(invocation.id, None)
        if worker is not None and worker.sent.pop(invocation.id, None) is not None:
            worker.send(Kind.CANCEL, invocation.id)
            self._abandon_if_unwanted(worker)
        self._drained(model)

    def _abandon_if_unwanted(self, worker: WorkerLink) -> None:
        """Where nobody waits for what a worker computes, end it after a moment: a fork is cheaper than the work."""
        if worker.started and not any(number in worker.sent for number in worker.started):
            delay = max(ABANDON_SECONDS, 2 * worker.model.load_seconds)
            asyncio.get_running_loop().call_later(delay, self._abandon, worker, worker.batch)

    def _abandon(self, worker: WorkerLink, batch: int) -> None:
        if worker.batch == batch and worker.started and not any(number in worker.sent for number in worker.started):
            self._kill(worker, "abandoned")

    def _kill(self, worker: WorkerLink, reason: str) -> None:
        """End a worker that misbehaves. Its model stays loaded, parked."""
        if worker.doomed is None and not worker.exited.done():
            worker.doomed = reason
            self.totals.killed += 1
            self.log("warning", "worker killed", model=worker.model.name, pid=worker.pid, reason=reason)
            self.parent.kill(worker.pid)

    def _drained(self, model: Model) -> None:
        if model.open == 0:
            self._room.set()
            if model.state is State.UNLOADING:
                model.drained.set()

    # -- who computes -------------------------------------------------------------------------------------------

    def _want(self, worker: WorkerLink) -> None:
        """The worker has requests: give it a core now or as soon as its turn comes."""
        if worker in self._running or worker in self._waiting:
            return
        self._waiting[worker] = time.monotonic()
        self._schedule()

    def _released(self, worker: WorkerLink) -> None:
        self._running.pop(worker, None)
        worker.started.clear()
        worker.threads = 0
        worker.yielding = False
        if worker.sent and worker.doomed is None:
            self._waiting[worker] = time.monotonic()
        self._schedule()

    def _schedule(self) -> None:
        now = time.monotonic()
        # A model that has held its core for long (a slow handler, a long text) is not waited for: the system then
        # shares the cores between it and the others.
        slow = sum(1 for since in self._running.values() if now - since > PATIENCE) if self._waiting else 0
        changed = False
        while self._waiting and len(self._running) - slow < self.settings.cpus:
            worker, _ = self._waiting.popitem(last=False)
            if worker.doomed is None and worker.sent:
                self._running[worker] = now
                worker.heard = now
                changed = True
        if changed or not self._waiting:
            self._share()
        if self._waiting:
            for worker, since in self._running.items():
                if not worker.yielding and now - since >= QUANTUM:
                    worker.yielding = True
                    worker.send(Kind.YIELD)
            if self._slice is None:
                self._slice = asyncio.get_running_loop().call_later(QUANTUM, self._next_slice)

    def _next_slice(self) -> None:
        self._slice = None
        if self._waiting:
            self._schedule()

    def _share(self) -> None:
        """Divide the cores between the models that compute now."""
        if not self._running:
            return
        threads = max(1, self.settings.cpus // len(self._running))
        for worker in self._running:
            if worker.threads != threads and not worker.yielding:
                worker.threads = threads
                worker.send(Kind.GRANT, threads)

    # -- the clock ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self._expire()
                self._guard_memory()
            except Exception as error:  # the clock must not stop
                self.log("error", "clock", message=repr(error))

    def _expire(self) -> None:
        now = time.monotonic()
        limit = self.settings.invoke_timeout
        while self._open:
            invocation = next(iter(self._open.values()))
            if now - invocation.arrived < limit:
                break
            name = invocation.model.name
            self._answer_error(invocation, errors.timed_out(f"Model {name} did not answer within {limit:g} seconds"))
        for worker in list(self._running):
            if now - worker.heard > limit:
                self._kill(worker, "timeout")
        if self.settings.park_after:
            for model in self._idle():
                if now - model.last_used < self.settings.park_after:
                    break
                self._park(model, "idle")

    def _guard_memory(self) -> None:
        """When memory is about to end, end a worker of ours before the kernel ends one of its choice."""
        if not self._workers:
            return
        _, available, reserve = self._free()
        if available >= reserve // 2:
            return
        idle = self._idle()
        if idle:
            for model in idle[: max(1, len(idle) // 4)]:
                self._park(model, "memory")
            return
        loading = [worker for worker in self._workers.values() if not worker.ready.done() and worker.doomed is None]
        candidates = loading or [worker for worker in self._workers.values() if worker.doomed is None]
        if candidates:
            fattest = max(candidates, key=WorkerLink.memory_now)
            self.totals.no_memory += 1
            self._kill(fattest, "memory")
