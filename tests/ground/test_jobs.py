"""Several jobs at a time: in bounded room, in order, each with its own end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mme import jobs
from mme.errors import MmeError, ReleaseError
from mme.jobs import Job, Stopped


def test_results_come_in_the_order_of_the_jobs() -> None:
    first_may_end = threading.Event()

    def slow() -> int:
        assert first_may_end.wait(30)
        return 0

    def quick() -> int:
        first_may_end.set()
        return 1

    assert jobs.run([Job(slow), Job(quick), Job(lambda: 2)], 2, threading.Event()) == [0, 1, 2]


def test_no_more_room_is_taken_than_there_is() -> None:
    lock = threading.Lock()
    taken = most = 0

    def job(weight: int) -> Callable[[], None]:
        def do() -> None:
            nonlocal taken, most
            with lock:
                taken += weight
                most = max(most, taken)
            threading.Event().wait(0.005)
            with lock:
                taken -= weight

        return do

    weights = [1, 2, 5, 1, 1, 3, 9, 1, 2] * 4
    jobs.run([Job(job(min(weight, 5)), weight) for weight in weights], 5, threading.Event())
    assert most == 5


def test_one_that_fails_does_not_stop_the_others() -> None:
    problem = ReleaseError("no")

    def fail() -> int:
        raise problem

    assert jobs.run([Job(fail), Job(lambda: 1), Job(fail), Job(lambda: 2)], 2, threading.Event()) == [
        problem,
        1,
        problem,
        2,
    ]


def test_after_an_error_that_concerns_all_no_more_are_tried() -> None:
    tried: list[int] = []

    def fail(number: int) -> Callable[[], None]:
        def do() -> None:
            tried.append(number)
            raise ReleaseError("expired")

        return do

    results = jobs.run([Job(fail(number)) for number in range(20)], 2, threading.Event(), lambda error: True)
    assert len(tried) < 5
    assert sum(isinstance(result, MmeError) for result in results) == len(tried)
    assert results[-1] is None


def test_a_fault_stops_those_at_work_and_comes_out() -> None:
    stop = threading.Event()
    ended: list[str] = []
    at_work = threading.Event()

    def long() -> None:
        at_work.set()
        try:
            while True:
                jobs.check(stop)
                stop.wait(30)
        except Stopped:
            ended.append("long")
            raise

    def broken() -> None:
        assert at_work.wait(30)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        jobs.run([Job(long), Job(broken), Job(lambda: ended.append("never"))], 2, stop)
    assert ended == ["long"]
