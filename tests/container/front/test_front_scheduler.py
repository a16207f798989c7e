"""Who computes: turns, threads and patience, with models that are letters and a clock that the test moves."""

from __future__ import annotations

from front_parts import Clock

from mme.container.front.scheduler import PATIENCE, QUANTUM, Scheduler


class Cores:
    def __init__(self, count: int, spare: int = 0) -> None:
        self.clock = Clock()
        self.events: list[str] = []
        self.work: set[str] = set()
        self.scheduler: Scheduler[str] = Scheduler(count, self, self.clock, self.clock.later, spare)

    def wants_core(self, worker: str) -> bool:
        return worker in self.work

    def grant(self, worker: str, threads: int) -> None:
        self.events.append(f"{worker}:{threads}")

    def recall(self, worker: str) -> None:
        self.events.append(f"{worker}?")

    def ask(self, *workers: str) -> None:
        for worker in workers:
            self.work.add(worker)
            self.scheduler.want(worker)

    def done(self, worker: str, more: bool = False) -> None:
        if not more:
            self.work.discard(worker)
        self.scheduler.released(worker)

    def seen(self) -> list[str]:
        seen, self.events = self.events, []
        return seen


def test_one_alone_has_every_thread_at_once() -> None:
    cores = Cores(4)
    cores.ask("A")
    assert cores.seen() == ["A:4"]
    cores.done("A")
    cores.ask("A")
    assert cores.seen() == ["A:4"]


def test_the_threads_are_divided_and_come_back() -> None:
    cores = Cores(4)
    cores.ask("A", "B")
    assert cores.seen() == ["A:4", "A:2", "B:2"]
    cores.done("A")
    assert cores.seen() == ["B:4"]
    cores.ask("C", "D", "E")
    assert cores.seen() == ["B:2", "C:2", "B:1", "C:1", "D:1", "E:1"]


def test_who_waits_gets_a_turn_in_order_and_nobody_is_asked_to_stop_before_his_time() -> None:
    cores = Cores(1)
    cores.ask("A", "B", "C")
    assert cores.seen() == ["A:1"]
    cores.clock.advance(QUANTUM * 0.9)
    assert cores.seen() == []
    cores.clock.advance(QUANTUM * 0.2)
    assert cores.seen() == ["A?"]
    cores.done("A", more=True)
    assert cores.seen() == ["B:1"]
    cores.done("B")
    assert cores.seen() == ["C:1"]
    cores.done("C")
    assert cores.seen() == ["A:1"], "A had more to do, and went behind the others"


def test_nobody_is_asked_to_stop_while_nobody_waits() -> None:
    cores = Cores(1)
    cores.ask("A")
    cores.clock.advance(100)
    assert cores.seen() == ["A:1"]


def test_one_that_keeps_its_core_is_not_waited_for() -> None:
    cores = Cores(1)
    cores.ask("A", "B")
    cores.clock.advance(PATIENCE * 0.9)
    assert cores.seen() == ["A:1", "A?"]
    cores.clock.advance(PATIENCE * 0.5)
    assert cores.seen() == ["B:1"]
    cores.ask("C")
    cores.clock.advance(PATIENCE * 0.5)
    assert "C:1" not in cores.seen(), "B has only begun"
    cores.clock.advance(PATIENCE)
    assert "C:1" in cores.seen()


def test_one_that_has_computed_for_long_takes_no_core_from_the_others() -> None:
    cores = Cores(2)
    cores.ask("slow")
    cores.clock.advance(10)
    cores.ask("A", "B")
    assert cores.seen() == ["slow:2", "slow:1", "A:1", "B:1"]
    cores.ask("C")
    assert cores.seen() == ["slow?"], "A and B have both cores"


def test_asking_twice_is_asking_once() -> None:
    cores = Cores(1)
    cores.ask("A", "A", "B", "B")
    cores.done("A")
    assert cores.seen() == ["A:1", "B:1"]
    cores.done("B")
    assert cores.seen() == []
    assert list(cores.scheduler.grants()) == []


def test_who_has_nothing_to_do_any_more_loses_its_turn() -> None:
    cores = Cores(1)
    cores.ask("A", "B", "C")
    cores.work.discard("B")  # its clients have gone
    cores.done("A")
    assert cores.seen() == ["A:1", "C:1"]


def test_one_that_ends_leaves_its_core_and_its_place_in_the_queue() -> None:
    cores = Cores(1)
    cores.ask("A", "B", "C")
    cores.scheduler.ended("B")
    cores.scheduler.ended("A")
    assert cores.seen() == ["A:1", "C:1"]
    assert cores.scheduler.computes("C")
    assert not cores.scheduler.computes("A")


def test_grants_say_since_when() -> None:
    cores = Cores(1)
    began = cores.clock.now
    cores.ask("A")
    cores.clock.advance(5)
    assert list(cores.scheduler.grants()) == [("A", began)]


def test_one_more_than_there_are_cores_begins_so_that_no_core_waits_for_its_next() -> None:
    cores = Cores(2, spare=1)
    cores.ask("A", "B", "C", "D")
    assert cores.seen() == ["A:2", "A:1", "B:1", "C:1"], "D waits"
    cores.done("A")
    assert cores.seen() == ["D:1"]
    cores.done("B")
    cores.done("C")
    assert cores.seen() == ["D:2"], "alone it has every thread"


def test_the_one_more_gives_its_turn_back_like_the_others() -> None:
    cores = Cores(2, spare=1)
    cores.ask("A", "B", "C", "D")
    cores.seen()
    cores.clock.advance(QUANTUM * 1.1)
    assert cores.seen() == ["A?", "B?", "C?"]
    cores.done("C", more=True)
    assert cores.seen() == ["D:1"]
    cores.done("A")
    assert cores.seen() == ["C:1"]


def test_fewer_threads_are_divided_where_other_work_has_cores() -> None:
    cores = Cores(4)
    cores.ask("A")
    cores.scheduler.divide(3)
    assert cores.seen() == ["A:4", "A:3"]
    cores.ask("B", "C", "D")
    assert cores.seen() == ["A:1", "B:1", "C:1", "D:1"]  # as many compute at a time as before
    assert cores.scheduler.alone() == {"A", "B"}  # two had several for a moment
    assert cores.scheduler.alone() == set()
    cores.scheduler.divide(4)
    for worker in "BCD":
        cores.done(worker)
    assert cores.seen() == ["A:2", "D:2", "A:4"]
    assert cores.scheduler.alone() == {"A", "D"}
    assert cores.scheduler.alone() == {"A"}  # it goes on
    cores.done("A")
    assert cores.scheduler.alone() == {"A"}
    assert cores.scheduler.alone() == set()
