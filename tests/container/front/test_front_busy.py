"""Who has memory beyond its need: while it is busy, where there is room, until somebody needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from front_parts import Clock, Machine, frame, model, sent, settings, worker

from mme.container.config import MiB
from mme.container.front.admission import Admission
from mme.container.front.busy import Busy
from mme.container.front.counters import Totals
from mme.container.front.models import WorkerLink
from mme.container.wire import Kind


class Front:
    """Busy with what it needs of the rest, on a clock of the test's."""

    def __init__(self, room: int = 10_000 * MiB) -> None:
        self.free = room
        self.running: list[WorkerLink] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.freed = 0
        self.clock = Clock()
        self.totals = Totals()
        self.busy = Busy(settings(), self.totals, self._log, self, self.clock)  # type: ignore[arg-type]

    def _log(self, level: str, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def workers(self) -> Iterable[WorkerLink]:
        return list(self.running)

    def room(self, size: int) -> bool:
        return size <= self.free

    def returned(self) -> None:
        self.freed += 1

    def add(self, name: str, offered: int = 50 * MiB) -> WorkerLink:
        link = worker(model(name, len(self.running) + 1))
        link.extra.offered = offered
        self.running.append(link)
        return link

    def answer(self, link: WorkerLink, per_second: int, seconds: float) -> None:
        """A number of answers in each second, and the clock looks four times in each."""
        for step in range(int(seconds * 4)):
            if step % 4 == 0:
                link.model.metrics.answers.all += per_second
            self.clock.advance(0.25)
            self.busy.tick()

    def says(self, link: WorkerLink, extra: int, error: str = "") -> None:
        self.busy.said(link, frame(Kind.MEMORY, meta={"private": 99, "extra": extra, "error": error}))


def run(work: Any) -> None:
    asyncio.run(work())


def test_a_model_that_answers_much_gets_it_and_gives_it_back_when_it_is_quiet() -> None:
    async def work() -> None:
        front = Front()
        busy, quiet = front.add("busy"), front.add("quiet")
        front.answer(busy, 10, 20)
        assert sent(busy) == [(Kind.BUSY, 1)]
        assert sent(quiet) == []
        assert busy.extra.held == 50 * MiB, "what it is promised is held at once"
        front.says(busy, 44 * MiB)
        assert busy.extra.held == 44 * MiB, "and then what was measured"
        assert (front.totals.busy_begun, front.totals.busy_ended) == (1, 0)
        front.answer(busy, 2, 30)
        assert sent(busy) == [(Kind.BUSY, 1)], "a little less does not take it away"
        front.answer(busy, 0, 60)
        assert sent(busy) == [(Kind.BUSY, 1), (Kind.BUSY, 0)]
        front.says(busy, 0)
        assert busy.extra.held == 0
        assert front.totals.busy_ended == 1
        assert [event for event, _ in front.events] == ["busy", "busy over"]
        assert front.events[1][1]["reason"] == "quiet"

    run(work)


def test_a_few_requests_at_once_are_not_enough() -> None:
    async def work() -> None:
        front = Front()
        link = front.add("m")
        front.answer(link, 20, 1)
        front.answer(link, 0, 20)
        assert sent(link) == []

    run(work)


def test_one_at_a_time_begins() -> None:
    async def work() -> None:
        front = Front()
        one, two = front.add("one"), front.add("two")
        for _ in range(30):
            one.model.metrics.answers.all += 20
            two.model.metrics.answers.all += 10
            front.clock.advance(1)
            front.busy.tick()
        assert (sent(one), sent(two)) == ([(Kind.BUSY, 1)], [])
        front.says(one, 50 * MiB)
        assert sent(two) == [(Kind.BUSY, 1)], "as soon as the first has it"

    run(work)


@pytest.mark.parametrize("offered", [0, 500 * MiB])
def test_nothing_is_given_where_it_brings_nothing_or_there_is_no_room_for_it_twice(offered: int) -> None:
    async def work() -> None:
        front = Front(room=900 * MiB)
        link = front.add("m", offered)
        front.answer(link, 100, 30)
        assert sent(link) == []

    run(work)


def test_what_failed_is_not_tried_again() -> None:
    async def work() -> None:
        front = Front()
        link = front.add("m")
        front.answer(link, 10, 20)
        front.says(link, 0, "Unsupported: packed weights answer otherwise")
        assert (link.extra.held, link.extra.offered) == (0, 0)
        front.answer(link, 10, 120)
        assert sent(link) == [(Kind.BUSY, 1)]
        assert "otherwise" in front.events[0][1]["message"]

    run(work)


def test_a_worker_cannot_have_what_it_was_not_given() -> None:
    """The handler has the worker's socket, and may write anything to it."""

    async def work() -> None:
        front = Front()
        link = front.add("m")
        front.says(link, -5000 * MiB)
        front.says(link, 5000 * MiB)
        assert link.extra.held == 0
        assert front.totals.busy_begun == 0

    run(work)


def test_it_is_given_back_by_those_that_answer_least_and_not_taken_again_at_once() -> None:
    async def work() -> None:
        front = Front()
        links = [front.add(name) for name in ("most", "least", "middle")]
        for link, rate in zip(links, (30.0, 10.0, 20.0), strict=True):
            link.extra.rate, link.extra.held = rate, 50 * MiB
        returning = front.busy.give_back(70 * MiB)
        assert [sent(link) for link in links] == [[], [(Kind.BUSY, 0)], [(Kind.BUSY, 0)]]
        assert front.busy.give_back(70 * MiB) == returning, "asked once, and waited for"
        assert [sent(link) for link in links] == [[], [(Kind.BUSY, 0)], [(Kind.BUSY, 0)]]
        front.says(links[1], 0)
        front.busy.over(links[2])  # its process has ended
        assert all(future.done() for future in returning)
        assert front.freed == 2
        front.answer(links[1], 10, 30)
        assert sent(links[1]) == [(Kind.BUSY, 0)]
        front.answer(links[1], 10, 40)
        assert sent(links[1]) == [(Kind.BUSY, 0), (Kind.BUSY, 1)]

    run(work)


def test_one_that_is_asked_back_while_it_begins_gives_it_back_when_it_has_it() -> None:
    async def work() -> None:
        front = Front()
        link = front.add("m")
        front.answer(link, 10, 20)
        [returning] = front.busy.give_back(1)
        front.says(link, 44 * MiB)
        assert link.extra.held == 50 * MiB
        assert not returning.done()
        front.says(link, 0)
        assert returning.done()
        assert link.extra.held == 0

    run(work)


def test_none_is_given_where_the_setting_is_zero() -> None:
    async def work() -> None:
        front = Front()
        front.busy = Busy(
            settings(MME_BUSY_ANSWERS="0"),
            front.totals,
            front._log,
            front,
            front.clock,  # type: ignore[arg-type]
        )
        link = front.add("m")
        front.answer(link, 100, 30)
        assert sent(link) == []

    run(work)


# -- admission --------------------------------------------------------------------------------------------------------


def admission(machine: Machine) -> Admission:
    return Admission(settings(MME_MEMORY_RESERVE="100M", MME_DEVICE="cpu"), Totals(), machine, host=machine.host)


def holding(machine: Machine, name: str, number: int, held: int, beginning: bool = False) -> WorkerLink:
    """A model of 100 MiB that has ``held`` MiB more, of which its system knows unless it is ``beginning``."""
    entry = model(name, number)
    entry.private = 100 * MiB
    link = worker(entry, pid=number)
    link.extra.held, link.extra.beginning = held * MiB, beginning
    machine.running.append(link)
    machine.idle_models.append(entry)
    machine.available -= (100 + (0 if beginning else held)) * MiB
    return link


def test_a_load_has_what_busy_models_have_beyond_their_need_before_anything_is_parked() -> None:
    async def work() -> None:
        machine = Machine()
        link = holding(machine, "busy", 1, held=600)
        asked: list[int] = []
        returning: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def give_back(size: int) -> list[asyncio.Future[None]]:
            asked.append(size)
            if link.extra.held:
                asyncio.get_running_loop().call_soon(done)
                return [returning]
            return []

        def done() -> None:
            if link.extra.held:
                machine.available += link.extra.held
                link.extra.held = 0
                returning.set_result(None)

        machine.giving = give_back
        new = model("new", 2)
        new.private = 400 * MiB
        await admission(machine).promise(new, wait=False)
        assert machine.parked == []
        assert asked == [200 * MiB]

    asyncio.run(work())


def test_one_that_does_not_give_it_back_in_time_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mme.container.front.admission.GIVE_BACK_SECONDS", 0.01)

    async def work() -> None:
        machine = Machine()
        holding(machine, "busy", 1, held=600)
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        machine.giving = lambda size: [never]
        new = model("new", 2)
        new.private = 300 * MiB
        machine.available += 600 * MiB  # parking gives back a model's need alone, here
        await admission(machine).promise(new, wait=False)
        assert [name for name, _ in machine.parked] == ["busy"]

    asyncio.run(work())


@pytest.mark.parametrize("beginning", [False, True])
def test_what_is_held_is_counted_from_when_it_was_promised(beginning: bool) -> None:
    async def work() -> None:
        machine = Machine()
        holding(machine, "busy", 1, held=300, beginning=beginning)
        owner = admission(machine)
        assert owner.room(500 * MiB)
        assert not owner.room(501 * MiB)

    asyncio.run(work())


def test_memory_that_runs_short_is_first_given_back_by_busy_models() -> None:
    async def work() -> None:
        machine = Machine()
        link = holding(machine, "busy", 1, held=300)
        machine.available = 40 * MiB
        asked: list[int] = []

        def give_back(size: int) -> list[asyncio.Future[None]]:
            asked.append(size)
            link.extra.returning = asyncio.get_running_loop().create_future()
            return [link.extra.returning]

        machine.giving = give_back
        owner = admission(machine)
        owner.guard()
        assert (asked, machine.parked) == ([100 * MiB], [])
        owner.guard()
        assert [name for name, _ in machine.parked] == ["busy"], "it is still short"

    asyncio.run(work())
