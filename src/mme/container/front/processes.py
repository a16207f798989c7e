"""The models' processes: one forked for each active model, ended for a reason, and accounted for when it ends.

The policy: a process is forked when its model is loaded (LOADING) or asked for while it has none (WAKING), at most
MME_MAX_LOADS at a time, each once admission has promised its memory. A start that fails, is cancelled or takes longer
than MME_LOAD_TIMEOUT leaves nothing behind. A process that the front ends (``doomed`` says why) leaves its model
loaded, parked; one that ends by itself takes its model with it, so that the platform loads it again. When the parent
dies, every process dies with it, and every model is parked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from mme.container import errors, memory
from mme.container.config import MiB, Settings
from mme.container.errors import ServingError
from mme.container.files import read_regular
from mme.container.front.admission import Admission
from mme.container.front.blocking import Blocking
from mme.container.front.busy import Busy
from mme.container.front.counters import Totals
from mme.container.front.families import Families
from mme.container.front.log import Log
from mme.container.front.models import Model, State, WorkerLink
from mme.container.front.parent_link import Listener, ParentLink
from mme.container.front.requests import Requests
from mme.container.front.scheduler import Scheduler
from mme.container.front.weightpool import Lease, WeightPool
from mme.container.recipes import foresee
from mme.container.wire import Frame, Kind

MANIFEST = "mme-manifest.json"  # what every archive of ours says of itself
MAX_MANIFEST = 16 * MiB
MAX_NOTE = 300  # characters of what a handler says of itself


class Processes:
    """Owns the parent, the processes by their number, and what models have in common. ``forget`` is called with a model
    that has gone by itself."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        totals: Totals,
        admission: Admission,
        requests: Requests,
        scheduler: Scheduler[WorkerLink],
        busy: Busy,
        forget: Callable[[Model], None],
        parent: Callable[[Listener, Settings, Log], ParentLink],
    ) -> None:
        self._settings = settings
        self._log = log
        self._totals = totals
        self._admission = admission
        self._requests = requests
        self._scheduler = scheduler
        self._busy = busy
        self._forget = forget
        self.parent = parent(self, settings, log)
        self._families = Families(self.parent, log)
        self._pool = WeightPool()
        self._workers: dict[int, WorkerLink] = {}  # by process id
        self._blocking = Blocking()
        self._loads = asyncio.Semaphore(settings.max_loads)
        self._tasks: set[asyncio.Task[None]] = set()
        self._oom_kills = memory.oom_kills()
        self._stopping = False

    @property
    def all(self) -> Iterable[WorkerLink]:
        return self._workers.values()

    # -- beginning ----------------------------------------------------------------------------------------------

    async def load(self, model: Model) -> None:
        """Start a new model's process. Raises ServingError; then nothing of it is left."""
        await self._bring_up(model, asyncio.create_task(self._spawn(model, wait_for_room=False)))

    def wake(self, model: Model) -> None:
        """Bring a model without a process back for the requests in its queue; one that is being unloaded, too."""
        if model.state is not State.UNLOADING:
            model.state = State.WAKING
        model.task = asyncio.create_task(self._spawn(model, wait_for_room=True))
        self.background(self._waken(model, model.task))

    def came_up(self, model: Model) -> None:
        """The model's process is ready, unless it has ended again in the same moment."""
        if model.state is not State.UNLOADING:
            model.state = State.ACTIVE if model.worker is not None else State.PARKED
        if model.worker is not None:
            self._requests.push(model)
        elif model.queue and not self._stopping:
            self.wake(model)

    async def _waken(self, model: Model, task: asyncio.Task[None]) -> None:
        began = time.monotonic()
        try:
            await self._bring_up(model, task)
        except ServingError as error:
            self._requests.fail_queued(model, error)
            if model.state is State.WAKING:
                model.state = State.PARKED
                if error.status not in (503, 507):  # it cannot come back: let the platform load it anew
                    self._forget(model)
            return
        model.metrics.wakes += 1
        self._totals.wakes += 1
        self._totals.wake_seconds.add(time.monotonic() - began)
        self.came_up(model)

    async def _bring_up(self, model: Model, task: asyncio.Task[None]) -> None:
        """Wait for a model's worker, at most ``load_timeout``. On an error or a cancellation nothing of it is left."""
        model.task = task
        try:
            await asyncio.wait([task], timeout=self._settings.load_timeout)
            late = not task.done()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            model.task = None
            if task.done() and not task.cancelled():
                task.exception()  # retrieved, even where the caller has left
        if task.cancelled():
            if late:
                seconds = self._settings.load_timeout
                raise errors.timed_out(f"Model {model.name} did not load within {seconds:g} seconds")
            raise errors.unavailable(f"Loading of model {model.name} was cancelled")
        task.result()

    async def _spawn(self, model: Model, wait_for_room: bool) -> None:
        """Fork a worker for the model and wait until it is ready."""
        if model.state is State.LOADING and not await self._blocking.run(os.path.isdir, model.path):
            raise ServingError(404, "ModelNotFoundException", f"There is no folder at {model.url}")
        async with self._loads:
            if model.state is State.LOADING:
                recipes = await self._blocking.run(self._look_at_files, model, self._families.alone())
                self._families.expected(model.number, recipes)
            await self.parent.warm.wait()
            await self._admission.promise(model, wait_for_room)
            try:
                while not await self._fork(model, wait_for_room):
                    pass
            finally:
                self._admission.keep(model)

    async def _fork(self, model: Model, wait_for_room: bool) -> bool:
        """Start a process and wait until it is ready. False if its weights were parted meanwhile: it has to be forked
        once more."""
        if model.parting is not None:
            await model.parting.wait()
        worker = WorkerLink(model, self._received, self._lost, self._broke, self._settings.max_queue_bytes)
        worker.gpu = await self._admission.place(model, wait_for_room)
        worker.checked = self._families.checked
        model.worker = worker
        forking = asyncio.ensure_future(self.parent.fork(worker))
        try:
            await asyncio.shield(forking)
            await asyncio.shield(worker.ready)
        except BaseException as raised:
            undo = self.background(self._undo(worker, forking))
            while not undo.done():  # further cancellations must not cut the clean-up short
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(undo)
            if worker.doomed == "parted" and not isinstance(raised, asyncio.CancelledError):
                return False
            if worker.doomed == "memory":
                raise errors.out_of_memory(
                    f"Model {model.name} took more memory while it loaded than is free. Unload a model not in use"
                ) from None
            raise
        model.private = max(model.private, worker.private)
        return True

    def _look_at_files(self, model: Model, alone: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
        """Note the sizes of the weights, after equal ones of loaded models have been made one; which of these recipes
        the model will have too. Runs in a thread."""
        try:
            if self._settings.share_files:
                self._totals.shared_bytes += self._pool.share(model.number, model.path)
            model.weights = memory.weights(model.path)
            model.target = _target(model.path)
        except OSError as error:
            raise errors.internal(f"The files of model {model.name} cannot be read: {error}") from None
        return foresee(alone, model.path)

    async def _undo(self, worker: WorkerLink, forking: asyncio.Future[None]) -> None:
        """Leave nothing of a worker whose start has failed or is no longer wanted."""
        worker.doomed = worker.doomed or "load"
        with contextlib.suppress(ServingError):
            await forking
        if worker.pid:
            await self.end(worker, "load")
        worker.close()
        if worker.model.worker is worker:
            worker.model.worker = None

    # -- weights that several models have --------------------------------------------------------------------------

    def part_what_is_written(self, models: Iterable[Model]) -> None:
        """See to the shared files that a handler wants to write (see weightpool.py)."""
        for lease in self._pool.broken():
            self.background(self._part(lease, [model for model in models if model.number in lease.members]))

    async def _part(self, lease: Lease, models: list[Model]) -> None:
        """End the processes of all models with this file, the one that wants to write it among them. Then each gets a
        file of its own, and comes back with what it was asked."""
        self._log("warning", "weights parted", models=[model.name for model in models])
        self._totals.parted += 1
        done = asyncio.Event()
        for model in models:
            model.parting = done
        try:
            running = [model.worker for model in models if model.worker is not None and model.worker.pid]
            await asyncio.gather(*(self.end(worker, "parted") for worker in running))
            failed = await self._blocking.run(self._pool.part, lease)
            for model in models:
                if model.number in failed:
                    why = f"Model {model.name} cannot get weights of its own: {failed[model.number]}"
                    self._log("error", "weights parted", model=model.name, message=why)
                    self._requests.fail_queued(model, errors.out_of_memory(why))
                    self._forget(model)
                else:
                    with contextlib.suppress(OSError):
                        model.weights = await self._blocking.run(memory.weights, model.path)
        finally:
            for model in models:
                model.parting = None
            done.set()

    # -- ending -------------------------------------------------------------------------------------------------

    async def end(self, worker: WorkerLink, reason: str) -> None:
        """Kill a worker and wait until the system has taken its memory back."""
        if worker.doomed is None:
            worker.doomed = reason
        if not worker.exited.done():
            self.parent.kill(worker.pid)
        await asyncio.shield(worker.exited)

    def park(self, model: Model, reason: str) -> asyncio.Task[None]:
        """End the process of an idle model; it stays loaded."""
        worker = model.worker
        if worker is None:
            raise RuntimeError(f"model {model.name} has no process to end")
        model.state = State.PARKED
        worker.doomed = "park"
        model.metrics.parks += 1
        self._totals.parks += 1
        self._log("debug", "park", model=model.name, reason=reason)
        return self.background(self.end(worker, "park"))

    def kill(self, worker: WorkerLink, reason: str) -> None:
        """End a worker that misbehaves. Its model stays loaded, parked."""
        if worker.doomed is None and not worker.exited.done():
            worker.doomed = reason
            self._totals.killed += 1
            self._log("warning", "worker killed", model=worker.model.name, pid=worker.pid, reason=reason)
            self.parent.kill(worker.pid)

    def let_go(self, model: Model) -> None:
        """The model is not loaded any more: what it had in common with others is theirs alone."""
        self._families.left(model.number)
        self._pool.forget(model.number)

    async def close(self) -> None:
        """End every process."""
        self._stopping = True
        for worker in self._workers.values():
            worker.doomed = worker.doomed or "shutdown"
        await self.parent.close()
        self.parent_died()  # and every worker with it: nothing waits for one any longer
        for task in list(self._tasks):
            task.cancel()

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that :meth:`close` cancels."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- what the workers say -----------------------------------------------------------------------------------

    def _received(self, worker: WorkerLink, frame: Frame) -> None:
        worker.heard = time.monotonic()
        if frame.kind == Kind.RESULT:
            worker.answered = True
            self._requests.result(worker, frame)
        elif frame.kind == Kind.STARTED:
            self._requests.began(worker, frame)
        elif frame.kind == Kind.RELEASED:
            worker.started.clear()
            self._scheduler.released(worker)
        elif frame.kind == Kind.MEMORY:
            worker.measured(frame.meta["private"])
            if "extra" in frame.meta:
                self._busy.said(worker, frame)
            if not worker.extra.beginning:
                worker.model.private = max(0, worker.private - worker.extra.held)
        elif frame.kind == Kind.READY and not worker.ready.done():
            worker.was_ready = True
            worker.measured(frame.meta["private"])
            worker.extra.offered = max(0, int(frame.meta.get("offered", 0)))
            worker.extra.answered = worker.model.metrics.answers.all
            worker.loading = {"handler": frame.meta["seconds"], "cpu": frame.meta["cpu"]}
            worker.shared = frame.meta["shared"]
            worker.notes = {name: text[:MAX_NOTE] for name, text in frame.meta["notes"].items()}
            if re.fullmatch(r"[0-9a-f]{16,64}", worker.notes.get("key", "")):
                self._families.compared(worker.notes["key"])
            self._families.joined(worker.model.number, worker.model.path, frame.meta["recipes"])
            worker.ready.set_result(None)
        elif frame.kind == Kind.FAILED and not worker.ready.done():
            meta = frame.meta
            status = meta["status"] if type(meta["status"]) is int and 400 <= meta["status"] <= 599 else 500
            worker.ready.set_exception(
                ServingError(status, str(meta["type"]), f"Model {worker.model.name}: {meta['message']}")
            )

    def _lost(self, worker: WorkerLink) -> None:
        """Its socket has closed. The process usually has ended, and the parent says how; where it lives on, end it."""
        if worker.pid and not worker.exited.done():
            self.parent.kill(worker.pid)

    def _broke(self, worker: WorkerLink, error: Exception) -> None:
        """It sent an invalid frame, or one that is too large."""
        self._log("error", "worker's answer refused", model=worker.model.name, pid=worker.pid, message=repr(error))
        if not worker.ready.done():
            worker.ready.set_exception(errors.internal(f"The process of model {worker.model.name} sent no sense"))
        self.kill(worker, "protocol")

    # -- what the parent says -----------------------------------------------------------------------------------

    def worker_forked(self, worker: WorkerLink) -> None:
        self._workers[worker.pid] = worker
        worker.began()
        if worker.model.parting is not None:  # it was on its way when its weights had to be parted
            worker.doomed = worker.doomed or "parted"
            self.parent.kill(worker.pid)

    def worker_exited(self, pid: int, code: int, by_signal: int) -> None:
        worker = self._workers.pop(pid, None)
        if worker is not None:
            kills = memory.oom_kills()
            starved = by_signal == 9 and kills > self._oom_kills
            self._oom_kills = kills
            self._ended(worker, f"signal {by_signal}" if by_signal else f"exit code {code}", starved)

    def made(self, key: str, error: str | None) -> None:
        self._families.made(key, error)

    def parent_died(self) -> None:
        """What was loaded stays loaded, parked; requests under way fail."""
        for worker in list(self._workers.values()):
            worker.doomed = worker.doomed or "parent"
            self._ended(worker, "signal 9", starved=False)
        self._workers.clear()
        self._families.forget()

    def _ended(self, worker: WorkerLink, why: str, starved: bool) -> None:
        model = worker.model
        worker.close()
        current = model.worker is worker  # a parked model may have a new one already
        if current:
            model.worker = None
        if not worker.ready.done():
            worker.ready.set_exception(self._why_not_ready(model, why, starved))
            worker.ready.exception()  # mark it as retrieved: a cancelled load has no caller to do so
        elif worker.doomed is None:
            self._totals.died += 1
            self._log("error", "model process ended", model=model.name, pid=worker.pid, why=why, out_of_memory=starved)
        self._busy.over(worker)
        self._requests.settle(worker, starved, why)
        if current and worker.was_ready:
            self._after_end(model, worker, why)
        if not worker.exited.done():
            worker.exited.set_result(None)
        self._requests.look_if_drained(model)
        self._admission.freed()
        self._scheduler.ended(worker)

    def _after_end(self, model: Model, worker: WorkerLink, why: str) -> None:
        """What becomes of a model whose process has ended."""
        if worker.doomed is None:
            self._requests.fail_queued(model, errors.internal(f"The process of model {model.name} ended ({why})"))
            self._forget(model)
        elif model.state in (State.ACTIVE, State.PARKED, State.UNLOADING):
            if model.state is State.ACTIVE:
                model.state = State.PARKED
            if model.queue and model.task is None and not self._stopping:
                self.wake(model)

    def _why_not_ready(self, model: Model, why: str, starved: bool) -> ServingError:
        if self._stopping:
            return errors.unavailable("The container is shutting down")
        if starved:
            return errors.out_of_memory(f"The kernel ended model {model.name} while it loaded: out of memory")
        return errors.internal(f"The process of model {model.name} ended while it loaded ({why})")


def _target(folder: str) -> str:
    """The target model's name, which is its archive's name, from the archive's manifest. Empty where there is no
    manifest."""
    try:
        manifest = json.loads(read_regular(Path(folder, MANIFEST), MAX_MANIFEST))
        name, digest = manifest["name"], manifest["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    if not (isinstance(name, str) and isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{12,128}", digest)):
        return ""
    return f"{name[:MAX_NOTE]}-{digest[:12]}.tar.gz"
