"""How many threads there are to divide, going by what the system counts: cores, counters and a clock of the test's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from container_process import wait_until
from front_parts import Clock

from mme.container.front import cores
from mme.container.front.cores import LOOK_WHEN_TRYING, TRY_AFTER, Cores, Seen

MODEL = 7


class System:
    """A machine of so many cores on which one process computes, all the time, with the threads that it may have."""

    def __init__(self, count: int) -> None:
        self.clock = Clock()
        self.count = count
        self.others = 0.0  # cores that other work takes wherever it can get them
        self.gives_way = False  # and only where nobody else wants them
        self.steals = 0.0  # of all cores
        self.wanted = 1.0  # of the time the process has something to compute
        self.ran = self.waited = self.idle = self.stolen = 0.0
        self.trials = 0  # looks at which there were several threads
        self.cores = Cores(count, self.clock, self.look)

    def look(self, pids: Collection[int]) -> Seen | None:
        return Seen(dict.fromkeys(pids, (self.ran, self.waited)), self.idle, self.stolen)

    def second(self, times: int = 1) -> int:
        """Let so many seconds pass; how many threads there are then."""
        for _ in range(round(times / LOOK_WHEN_TRYING)):
            want = self.cores.threads * self.wanted
            short = 0.0 if self.gives_way else max(0.0, want + self.others - self.count)
            self.waited += short / 2 * LOOK_WHEN_TRYING
            self.ran += (want - short / 2) * LOOK_WHEN_TRYING
            self.idle += max(0.0, self.count - want - self.others) * LOOK_WHEN_TRYING
            self.stolen += self.steals * self.count * LOOK_WHEN_TRYING
            self.clock.advance(LOOK_WHEN_TRYING)
            self.trials += self.cores.threads > 1
            if self.cores.due:
                self.cores.tick([MODEL])
        return self.cores.threads


def test_on_a_quiet_machine_all_cores_are_ours() -> None:
    system = System(4)
    assert [system.second() for _ in range(5)] == [4] * 5


@pytest.mark.parametrize("count", [2, 4, 16])
def test_other_work_on_every_core_leaves_one_thread_and_all_come_back_after_it(count: int) -> None:
    system = System(count)
    system.second(3)
    system.others = count
    assert system.second(count + 2) == 1
    system.others = 0
    assert system.second(4 * count + 4) == count


def test_other_work_on_one_core_of_two_leaves_one_thread_with_few_short_trials() -> None:
    system = System(2)
    system.second(3)
    system.others = 1.0
    assert system.second(4) == 1
    system.trials = 0
    for _ in range(600):
        assert system.second() == 1 or system.trials < 10
    assert 1 <= system.trials < 10
    system.others = 0.0
    assert system.second(5) == 2


def test_work_that_gives_way_keeps_nobody_from_a_thread_for_long() -> None:
    system = System(2)
    system.second(3)
    system.others = 2.0
    assert system.second(4) == 1
    system.gives_way = True
    assert system.second(int(TRY_AFTER) + 4) == 2
    assert system.second(200) == 2


def test_stolen_time_counts_as_well() -> None:
    system = System(2)
    system.second(2)
    system.steals = 0.4
    assert system.second(3) == 1


def test_who_computes_nothing_says_nothing() -> None:
    system = System(2)
    system.wanted, system.others = 0.001, 2.0
    assert system.second(10) == 2


def test_one_core_and_a_system_that_tells_nothing_change_nothing() -> None:
    assert not Cores(1, Clock()).due
    silent = Cores(4, Clock(), lambda pids: None)
    assert silent.due
    assert not silent.tick([MODEL])
    assert silent.threads == 4


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not tell")
def test_the_real_counters_are_read() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        first = cores.look([process.pid])
        assert first is not None

        def ran() -> bool:
            seen = cores.look([process.pid, os.getpid(), 2**22 + 1])
            assert seen is not None
            assert set(seen.threads) <= {process.pid, os.getpid()}  # there is no third one
            assert seen.idle >= first.idle
            assert seen.stolen >= first.stolen
            return sum(seen.threads[process.pid]) > sum(first.threads[process.pid]) + 0.05

        wait_until(ran)
    finally:
        process.kill()
        process.wait()
