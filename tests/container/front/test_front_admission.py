"""What may be in memory, on a machine that is made up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from front_parts import Answers, Machine, model, settings, worker

from mme.container import memory
from mme.container.config import MiB
from mme.container.errors import ServingError
from mme.container.front import admission as admission_module
from mme.container.front.admission import Admission
from mme.container.front.counters import Totals
from mme.container.front.models import BASE_PRIVATE, Invocation, Model

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def admission(machine: Machine, **environ: str) -> Admission:
    environ = {"MME_MEMORY_RESERVE": "100M", "MME_DEVICE": "cpu", **environ}
    return Admission(settings(**environ), Totals(), machine, host=machine.host)


def loaded(machine: Machine, name: str, number: int, private: int, idle: bool = True) -> Model:
    """A model whose process takes ``private`` MiB."""
    entry = model(name, number)
    entry.private = private * MiB
    machine.running.append(worker(entry, pid=number))
    machine.available -= entry.private
    if idle:
        machine.idle_models.append(entry)
    else:
        entry.worker.sent[1] = Invocation(1, entry, {}, b"", 0.0, Answers())  # type: ignore[union-attr]
    return entry


def test_what_fits_is_admitted_and_what_is_promised_cannot_be_promised_again() -> None:
    async def work() -> None:
        machine = Machine(total=1000 * MiB, available=1000 * MiB)
        owner = admission(machine)
        first, second = model("first", 1, copied=500 * MiB), model("second", 2, copied=500 * MiB)
        await owner.promise(first, wait=False)
        with pytest.raises(ServingError) as refused:
            await owner.promise(second, wait=False)
        assert refused.value.status == 507
        assert "second" in refused.value.message
        owner.keep(first)
        await owner.promise(second, wait=False)

    run(work())


def test_the_longest_idle_is_parked_first_and_no_more_than_needed() -> None:
    async def work() -> Machine:
        machine = Machine(total=2000 * MiB, available=2000 * MiB)
        for number in range(9):
            loaded(machine, f"m{number}", number, 200)
        await admission(machine).promise(model("new", 99, copied=100 * MiB), wait=False)
        return machine

    assert [name for name, _ in run(work()).parked] == ["m0", "m1", "m2", "m3"], "a few at once, then it looks again"


def test_weights_that_are_in_memory_already_are_counted_once() -> None:
    async def work() -> None:
        machine = Machine(total=1000 * MiB, available=1000 * MiB)
        first = model("first", 1, mapped=600 * MiB)
        machine.running.append(worker(first))
        same, other = model("same", 1, mapped=600 * MiB), model("other", 2, mapped=600 * MiB)
        owner = admission(machine)
        await owner.promise(same, wait=False)
        owner.keep(same)
        with pytest.raises(ServingError):
            await owner.promise(other, wait=False)

    run(work())


def test_a_load_is_refused_where_a_wake_up_waits_for_work_to_end() -> None:
    async def work() -> None:
        machine = Machine(total=700 * MiB, available=700 * MiB)
        busy = loaded(machine, "busy", 1, 500, idle=False)
        owner = admission(machine)
        new = model("new", 2, copied=200 * MiB)
        with pytest.raises(ServingError):
            await owner.promise(new, wait=False)
        waits = asyncio.ensure_future(owner.promise(new, wait=True))
        await asyncio.sleep(0)
        assert not waits.done()
        assert busy.worker is not None
        busy.worker.sent.clear()
        machine.idle_models.append(busy)
        owner.freed()
        await waits
        assert machine.parked == [("busy", "memory")]

    run(work())


def test_a_wake_up_that_nobody_makes_room_for_is_a_507() -> None:
    async def work() -> None:
        machine = Machine(total=200 * MiB, available=200 * MiB)
        with pytest.raises(ServingError) as refused:
            await admission(machine).promise(model("fat", 1, copied=900 * MiB), wait=True)
        assert refused.value.status == 507

    run(work())


def test_what_was_measured_counts_for_more_than_what_was_guessed() -> None:
    entry = model(copied=100 * MiB)
    assert entry.estimate == BASE_PRIVATE + 120 * MiB
    entry.private = 7 * MiB
    assert entry.estimate == 7 * MiB


def test_what_loading_takes_for_a_moment_is_promised_and_then_given_up() -> None:
    async def work() -> None:
        machine = Machine(total=1000 * MiB, available=1000 * MiB)
        first, second = model("first", 1), model("second", 2)
        for entry in (first, second):
            entry.weights = memory.Weights(0, 0, (), converted=100 * MiB, meanwhile=400 * MiB)
        owner = admission(machine)
        await owner.promise(first, wait=False)
        with pytest.raises(ServingError):
            await owner.promise(second, wait=False)
        machine.running.append(worker(first))
        machine.available -= 164 * MiB
        owner.keep(first)
        await owner.promise(second, wait=False)
        first.private = 20 * MiB  # as measured: to come back it needs what is there meanwhile all the same
        assert first.load_estimate == 420 * MiB

    run(work())


def test_what_a_load_has_taken_beyond_its_promise_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        machine = Machine(total=1000 * MiB, available=1000 * MiB)
        owner = admission(machine)
        first, second = model("first", 1), model("second", 2, copied=400 * MiB)
        await owner.promise(first, wait=False)
        link = worker(first)
        machine.running.append(link)
        monkeypatch.setattr(memory, "anonymous", lambda pid: 1)
        link.began()
        monkeypatch.setattr(memory, "anonymous", lambda pid: 500 * MiB)
        with pytest.raises(ServingError):
            await owner.promise(second, wait=False)

    run(work())


def test_a_load_that_takes_what_no_file_says_is_ended_before_the_next_tick_and_nothing_is_once_it_is_over() -> None:
    async def work() -> Machine:
        machine = Machine()
        owner = admission(machine)
        watch = asyncio.ensure_future(owner.watch())
        other = loaded(machine, "other", 1, 10, idle=False)
        machine.available = 0
        await asyncio.sleep(3 * admission_module.WATCH)
        assert machine.killed == [], "nothing loads: the clock's ticks see to it"
        machine.available = 900 * MiB
        entry = model("loading", 2)
        await owner.promise(entry, wait=False)
        link = worker(entry)
        link.ready = asyncio.get_running_loop().create_future()
        machine.running.append(link)
        machine.available = 40 * MiB
        while not machine.killed:
            await asyncio.sleep(admission_module.WATCH)
        link.exited.set_result(None)
        machine.running.remove(link)
        owner.keep(entry)
        await asyncio.sleep(3 * admission_module.WATCH)
        assert other.worker is not None
        assert other.worker.doomed is None
        watch.cancel()
        return machine

    assert run(work()).killed == [("loading", "memory")]


@pytest.mark.parametrize(("available", "parked"), [(60, []), (40, ["m0"])])
def test_memory_that_runs_short_is_taken_from_idle_models(available: int, parked: list[str]) -> None:
    async def work() -> Machine:
        machine = Machine()
        for number in range(4):
            loaded(machine, f"m{number}", number, 10)
        machine.available = available * MiB
        admission(machine).guard()
        return machine

    machine = run(work())
    assert [name for name, _ in machine.parked] == parked
    assert machine.killed == []


def test_where_nothing_is_idle_the_process_that_takes_most_is_ended_and_one_that_loads_first() -> None:
    async def work() -> Machine:
        machine = Machine()
        for number in range(3):
            entry = loaded(machine, f"m{number}", number, 10 * number, idle=False)
            assert entry.worker is not None
            entry.worker.private = 10 * number * MiB
        machine.available = 0
        owner = admission(machine)
        owner.guard()
        loading = loaded(machine, "loading", 9, 1, idle=False)
        assert loading.worker is not None
        loading.worker.ready = asyncio.get_running_loop().create_future()
        owner.guard()
        return machine

    assert run(work()).killed == [("m2", "memory"), ("loading", "memory")]
