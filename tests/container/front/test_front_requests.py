"""Every request is answered once, whatever its model's process does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from front_parts import RESULT, Answers, Clock, frame, model, sent, settings, worker

from mme.container import errors
from mme.container.errors import ServingError
from mme.container.front.counters import Totals
from mme.container.front.models import Model, State, WorkerLink
from mme.container.front.requests import ABANDON_SECONDS, Requests
from mme.container.wire import Kind


class Desk:
    """Requests and what they ask of the rest."""

    def __init__(self, **environ: str) -> None:
        self.clock = Clock()
        self.totals = Totals()
        self.answers = Answers()
        self.wanted: list[WorkerLink] = []
        self.killed: list[str] = []
        self.idle: list[str] = []
        self.requests = Requests(settings(**environ), self.totals, self, self.clock)

    def want(self, worker: WorkerLink) -> None:
        self.wanted.append(worker)

    def kill(self, worker: WorkerLink, reason: str) -> None:
        self.killed.append(reason)

    def became_idle(self, model: Model) -> None:
        self.idle.append(model.name)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.clock.later(seconds, call)

    def ask(self, of: Model, body: bytes = b"x") -> int:
        return self.requests.take(of, {}, body, self.answers).id


def test_a_request_waits_is_sent_and_is_answered() -> None:
    async def work() -> None:
        desk, entry = Desk(), model()
        first, second = desk.ask(entry), desk.ask(entry)
        desk.requests.push(entry)
        assert (entry.open, desk.wanted) == (2, []), "it has no process yet"
        link = worker(entry)
        desk.requests.push(entry)
        assert desk.wanted == [link]
        assert sent(link) == [(Kind.REQUEST, first), (Kind.REQUEST, second)]
        desk.requests.result(link, frame(Kind.RESULT, second, RESULT, b"two"))
        desk.requests.result(link, frame(Kind.RESULT, first, RESULT | {"status": 400}, b"one"))
        assert desk.answers.status == {first: 400, second: 200}
        assert desk.answers.bodies == {first: b"one", second: b"two"}
        assert (entry.open, desk.idle) == (0, ["m"])
        await asyncio.wait_for(desk.requests.all_answered(), 1)

    asyncio.run(work())


def test_too_many_for_one_model_and_too_many_bytes_for_all_are_refused() -> None:
    desk = Desk(MME_MAX_QUEUE="2", MME_MAX_QUEUE_BYTES="10")
    one, two = model("one"), model("two", 2)
    desk.ask(one)
    held = desk.requests.take(one, {}, b"12345", desk.answers)
    with pytest.raises(ServingError, match="2 requests already wait"):
        desk.ask(one)
    with pytest.raises(ServingError, match="Too much request data"):
        desk.ask(two, b"123456")
    desk.requests.cancel(held)
    desk.ask(two, b"123456789")
    assert desk.totals.refused == 2


def test_a_client_that_leaves_takes_its_work_along() -> None:
    async def work() -> None:
        desk, entry = Desk(), model()
        link = worker(entry)
        gone = desk.requests.take(entry, {}, b"", desk.answers)
        stays = desk.ask(entry)
        desk.requests.push(entry)
        desk.requests.began(link, frame(Kind.STARTED, meta={"ids": [gone.id, stays]}))
        desk.requests.cancel(gone)
        desk.requests.cancel(gone)
        assert sent(link)[-1] == (Kind.CANCEL, gone.id)
        desk.clock.advance(10 * ABANDON_SECONDS)
        assert desk.killed == [], "another request is in the same batch"
        desk.requests.result(link, frame(Kind.RESULT, gone.id, RESULT))
        desk.requests.result(link, frame(Kind.RESULT, stays, RESULT))
        assert desk.answers.status == {stays: 200}
        assert desk.totals.cancelled == 1

    asyncio.run(work())


def test_work_that_nobody_waits_for_is_ended_after_a_moment() -> None:
    async def work() -> None:
        desk, entry = Desk(), model()
        link = worker(entry)
        for finishes_in_time in (True, False):
            request = desk.requests.take(entry, {}, b"", desk.answers)
            desk.requests.push(entry)
            desk.requests.began(link, frame(Kind.STARTED, meta={"ids": [request.id]}))
            desk.requests.cancel(request)
            desk.clock.advance(ABANDON_SECONDS / 2)
            if finishes_in_time:
                desk.requests.result(link, frame(Kind.RESULT, request.id, RESULT))
            desk.clock.advance(ABANDON_SECONDS)
            assert desk.killed == ([] if finishes_in_time else ["abandoned"])

    asyncio.run(work())


def test_what_is_alone_when_the_core_is_given_is_begun_without_a_word() -> None:
    async def work() -> None:
        desk, entry = Desk(), model()
        link = worker(entry)
        alone = desk.requests.take(entry, {}, b"", desk.answers)
        desk.requests.push(entry)
        desk.requests.granted(link)
        assert (link.started, desk.totals.batches) == ({alone.id}, 1)
        desk.requests.granted(link)  # with another number of threads
        assert desk.totals.batches == 1
        desk.requests.cancel(alone)
        desk.clock.advance(10 * ABANDON_SECONDS)
        assert desk.killed == ["abandoned"]

        several = worker(other := model("other"))
        desk.ask(other), desk.ask(other)
        desk.requests.push(other)
        desk.requests.granted(several)
        assert several.started == set(), "which of them it begins, it says"

    asyncio.run(work())


@pytest.mark.parametrize(
    ("doomed", "starved", "begun", "waiting"),
    [
        (None, False, 500, 500),  # it ended by itself: whatever it held fails
        (None, True, 507, 507),
        ("memory", False, 507, None),
        ("timeout", False, 504, None),
        ("abandoned", False, 500, None),
        ("park", False, 500, None),
    ],
)
def test_an_ended_process_fails_what_it_had_begun_and_gives_back_the_rest(
    doomed: str | None, starved: bool, begun: int, waiting: int | None
) -> None:
    async def work() -> None:
        desk, entry = Desk(), model()
        link = worker(entry)
        first, second = desk.ask(entry), desk.ask(entry)
        desk.requests.push(entry)
        third = desk.ask(entry)
        desk.requests.began(link, frame(Kind.STARTED, meta={"ids": [first]}))
        link.doomed, entry.worker = doomed, None
        desk.requests.settle(link, starved, "signal 9")
        assert desk.answers.status == {first: begun} | ({second: waiting} if waiting else {})
        assert list(entry.queue) == ([third] if waiting else [second, third]), "in their order"

    asyncio.run(work())


def test_what_waits_too_long_is_answered_and_the_rest_is_not() -> None:
    desk, entry = Desk(SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="60"), model()
    old = desk.ask(entry)
    desk.clock.advance(30)
    young = desk.ask(entry)
    desk.clock.advance(30)
    desk.requests.expire()
    assert desk.answers.status == {old: 504}
    assert list(entry.queue) == [young]


def test_an_unload_hears_of_the_last_answer() -> None:
    desk, entry = Desk(), model()
    desk.ask(entry)
    entry.state = State.UNLOADING
    assert not entry.drained.is_set()
    desk.requests.fail_queued(entry, errors.internal("no"))
    assert entry.drained.is_set()


def test_at_the_end_every_request_is_answered() -> None:
    desk = Desk()
    asked = [desk.ask(model(name, number)) for number, name in enumerate("abc")]
    desk.requests.fail_all(errors.unavailable("The container is shutting down"))
    assert desk.answers.status == dict.fromkeys(asked, 503)
