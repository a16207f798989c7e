"""Processes come and go for a reason, with a parent that is made up: nothing is forked here."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from front_parts import Answers, Wire, says

from mme.container.config import Settings, read
from mme.container.errors import ServingError
from mme.container.front.hub import Hub
from mme.container.front.log import Log
from mme.container.front.models import Model, State, WorkerLink
from mme.container.front.parent_link import Listener
from mme.container.wire import Kind, pack

READY = {"seconds": 0.01, "cpu": 0.01, "private": 1000, "shared": [], "recipes": [], "notes": {}}


class Parent:
    """Forks nothing: a test says when a process is there, what it says and how it ends."""

    def __init__(self, listener: Listener, settings: Settings, log: Log) -> None:
        self.listener = listener
        self.warm = asyncio.Event()
        self.starts = 0
        self.base_bytes = 0
        self.forks: list[WorkerLink] = []
        self.killed: list[int] = []
        self.asked = asyncio.Event()
        self.refuses: ServingError | None = None

    def start(self) -> None:
        self.starts += 1
        self.warm.set()

    async def fork(self, worker: WorkerLink) -> None:
        await asyncio.sleep(0)
        if self.refuses:
            raise self.refuses
        worker.connection_made(Wire())
        worker.pid = 100 + len(self.forks)
        self.forks.append(worker)
        self.listener.worker_forked(worker)
        self.asked.set()

    def kill(self, pid: int) -> None:
        self.killed.append(pid)
        asyncio.get_running_loop().call_soon(self.listener.worker_exited, pid, 0, 9)

    def share(self, recipe: dict[str, Any]) -> None: ...

    def unshare(self, key: str) -> None: ...

    async def close(self) -> None: ...


class Front:
    """A hub over the parent above."""

    def __init__(self, hub: Hub, parent: Parent, folder: Path) -> None:
        self.hub, self.parent, self.folder = hub, parent, folder
        self.answers = Answers()

    async def loading(self, name: str) -> tuple[asyncio.Task[None], WorkerLink]:
        """A LOAD whose process is forked and not ready yet."""
        self.parent.asked.clear()
        task = asyncio.create_task(self.hub.load(name, str(self.folder)))
        await asyncio.wait_for(self.parent.asked.wait(), 10)
        return task, self.parent.forks[-1]

    async def load(self, name: str) -> Model:
        task, worker = await self.loading(name)
        says(worker, Kind.READY, meta=READY)
        await task
        return self.hub.models[name]

    def ask(self, name: str) -> int:
        return self.hub.invoke(name, {}, b"x", self.answers).id


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """``run(work, **environ)`` runs ``work(front)``."""

    def go(work: Any, **environ: str) -> None:
        async def inside() -> None:
            made: list[Parent] = []

            def parent(listener: Listener, settings: Settings, log: Log) -> Any:
                made.append(Parent(listener, settings, log))
                return made[0]

            hub = Hub(read({"MME_DEVICE": "cpu", "MME_CPUS": "2", **environ}), Log("error"), parent)
            await hub.start()
            try:
                await asyncio.wait_for(work(Front(hub, made[0], tmp_path)), 30)
            finally:
                await hub.close()

        asyncio.run(inside())

    return go


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_a_model_that_fails_to_load_leaves_nothing(run: Any) -> None:
    async def work(front: Front) -> None:
        task, worker = await front.loading("m")
        says(worker, Kind.FAILED, meta={"status": 500, "type": "ModelLoadException", "message": "no weights"})
        with pytest.raises(ServingError, match="no weights"):
            await task
        assert front.parent.killed == [worker.pid]
        assert front.hub.models == {}
        assert list(front.hub.workers()) == []

    run(work)


@pytest.mark.parametrize("status", ["507 Forged\r\n\r\n", 200, True, None, 600])
def test_a_load_fails_with_a_status_that_http_knows(run: Any, status: object) -> None:
    async def work(front: Front) -> None:
        task, worker = await front.loading("m")
        says(worker, Kind.FAILED, meta={"status": status, "type": ["odd"], "message": {}})
        with pytest.raises(ServingError) as failed:
            await task
        assert failed.value.status == 500
        json.loads(failed.value.body())

    run(work)


def test_a_fork_that_is_refused_leaves_nothing_and_promises_nothing(run: Any) -> None:
    async def work(front: Front) -> None:
        front.parent.refuses = ServingError(507, "InsufficientMemoryException", "no process")
        for _ in range(3):
            with pytest.raises(ServingError, match="no process"):
                await front.hub.load("m", str(front.folder))
        front.parent.refuses = None
        await front.load("m")

    run(work, MME_MEMORY_LIMIT="400M", MME_MEMORY_RESERVE="280M")


def test_a_load_that_takes_too_long_is_ended(run: Any) -> None:
    async def work(front: Front) -> None:
        task, worker = await front.loading("m")
        with pytest.raises(ServingError) as late:
            await task
        assert late.value.status == 504
        assert front.parent.killed == [worker.pid]

    run(work, MME_LOAD_TIMEOUT="0.1")


def test_only_so_many_load_at_a_time(run: Any) -> None:
    async def work(front: Front) -> None:
        one, first = await front.loading("one")
        two, second = await front.loading("two")
        three = asyncio.create_task(front.hub.load("three", str(front.folder)))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert front.parent.forks == [first, second]
        front.parent.asked.clear()
        says(first, Kind.READY, meta=READY)
        await front.parent.asked.wait()
        says(second, Kind.READY, meta=READY)
        says(front.parent.forks[-1], Kind.READY, meta=READY)
        await asyncio.gather(one, two, three)

    run(work, MME_MAX_LOADS="2")


def test_unload_of_a_loading_model_waits_for_it_to_be_gone_and_does_not_poll(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(front: Front) -> None:
        task, worker = await front.loading("m")
        slept: list[float] = []
        sleep = asyncio.sleep

        async def noted(seconds: float, *rest: Any) -> Any:
            slept.append(seconds)
            return await sleep(seconds, *rest)

        monkeypatch.setattr(asyncio, "sleep", noted)
        await front.hub.unload("m")
        assert slept == []
        assert front.hub.models == {}
        assert front.parent.killed == [worker.pid]
        with pytest.raises(ServingError) as cancelled:
            await task
        assert cancelled.value.status == 503

    run(work)


def test_unload_of_a_model_that_is_ready_in_the_same_moment_unloads_it(run: Any) -> None:
    async def work(front: Front) -> None:
        task, worker = await front.loading("m")
        model = front.hub.models["m"]
        bringing_up = model.task
        assert bringing_up is not None
        says(worker, Kind.READY, meta=READY)
        await until(bringing_up.done)
        assert model.state is State.LOADING, "there is nothing left to cancel, and LOAD has not answered yet"
        await asyncio.wait_for(front.hub.unload("m"), 10)
        await task
        assert front.hub.models == {}
        assert front.parent.killed == [worker.pid]

    run(work)


def test_one_that_ends_by_itself_takes_its_model_along(run: Any) -> None:
    async def work(front: Front) -> None:
        model = await front.load("m")
        held = front.ask("m")
        assert model.worker is not None
        front.parent.listener.worker_exited(model.worker.pid, 7, 0)
        assert front.answers.status == {held: 500}
        assert b"exit code 7" in front.answers.bodies[held]
        assert front.hub.models == {}

    run(work)


def test_one_that_the_front_ends_leaves_its_model_parked_and_comes_back_for_what_waits(run: Any) -> None:
    async def work(front: Front) -> None:
        model = await front.load("m")
        assert model.worker is not None
        held, waits = front.ask("m"), front.ask("m")
        says(model.worker, Kind.STARTED, meta={"ids": [held]})
        front.parent.asked.clear()
        front.hub.kill(model.worker, "timeout")
        await front.parent.asked.wait()
        assert front.answers.status == {held: 504}
        assert model.state is State.WAKING
        says(front.parent.forks[-1], Kind.READY, meta=READY)
        await until(lambda: model.state is State.ACTIVE)
        assert list(model.worker.sent) == [waits]

    run(work)


@pytest.mark.parametrize(
    "sent",
    [
        pack(Kind.RESULT, 1, {"status": 200}),
        pack(Kind.STARTED, 0, {"ids": 7}),
        pack(Kind.MEMORY, 0, {"private": "much"}),
        struct.pack("<BQII", Kind.RESULT, 1, 0, 4 * 1024**3 - 1),
        struct.pack("<BQII", Kind.RESULT, 1, 2, 0) + b"{]",
    ],
    ids=["no times", "no list", "no number", "4 GB", "no JSON"],
)
def test_one_that_sends_what_no_worker_sends_is_ended(run: Any, sent: bytes) -> None:
    async def work(front: Front) -> None:
        model = await front.load("m")
        worker = model.worker
        assert worker is not None
        held = front.ask("m")
        worker.started.add(held)
        worker.data_received(sent)
        await until(lambda: held in front.answers.status)
        assert front.answers.status == {held: 500}
        assert front.parent.killed == [worker.pid]
        assert model.state is State.PARKED

    run(work)


def test_when_the_parent_dies_every_model_is_parked(run: Any) -> None:
    async def work(front: Front) -> None:
        models = [await front.load(name) for name in ("one", "two")]
        front.parent.listener.parent_died()
        assert [model.state for model in models] == [State.PARKED] * 2
        assert list(front.hub.workers()) == []
        front.parent.asked.clear()
        front.ask("one")
        await front.parent.asked.wait()
        assert models[0].state is State.WAKING

    run(work)


def test_parking_ends_the_process_and_the_model_stays(run: Any) -> None:
    async def work(front: Front) -> None:
        model = await front.load("m")
        worker = model.worker
        await front.hub.park(model, "memory")
        assert worker is not None
        assert front.parent.killed == [worker.pid]
        assert (front.hub.models["m"].state, model.worker) == (State.PARKED, None)

    run(work)
