"""Several jobs at a time, as many as there is room for; one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Generic, TypeVar

from mme.errors import MmeError

T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """What to do, and how much room it takes (1 or more) while it is done."""

    do: Callable[[], T]
    weight: int = 1


class Stopped(BaseException):
    """Raised in a job by ``check``: the run is over, and the job's result is not wanted any more."""


def check(stop: Event) -> None:
    """Raise Stopped when the run is over. Long jobs call this now and then, so that an interrupt need not wait."""
    if stop.is_set():
        raise Stopped


def run(
    jobs: Sequence[Job[T]], room: int, stop: Event, concerns_all: Callable[[MmeError], bool] = lambda error: False
) -> list[T | MmeError | None]:
    """Do the jobs in their order, in threads, with at most ``room`` taken at a time.

    Gives each job's result or its error; None for those that were not tried, because an error that ``concerns_all``
    came before. Any other exception, and an interrupt of this thread, sets ``stop``, waits for what is being done,
    and goes on.
    """
    results: list[T | MmeError | None] = [None] * len(jobs)
    running: dict[Future[T], int] = {}
    free, give_up = room, False

    def settle() -> None:
        nonlocal free, give_up
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            index = running.pop(future)
            free += min(jobs[index].weight, room)
            try:
                results[index] = future.result()
            except MmeError as error:
                results[index] = error
                give_up = give_up or concerns_all(error)

    with ThreadPoolExecutor(room) as pool:
        try:
            for index, job in enumerate(jobs):
                while free < min(job.weight, room):
                    settle()
                if give_up:
                    break
                free -= min(job.weight, room)
                running[pool.submit(job.do)] = index
            while running:
                settle()
        except BaseException:
            stop.set()
            raise
    return results
