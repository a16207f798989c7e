"""How many threads a model that computes alone may have: as many as there are cores that other work leaves.

Threads that compute one answer wait for each other between layers, so that one whose core is shared holds up all. How
long threads that could compute had to wait for a core, the system counts (its run-queue delay), and how much of a
virtual machine's cores went to other machines (stolen time).

The policy, once a second: where threads of processes that had several waited for more than a fifth of the time that
they wanted, or as much was stolen, there is one thread less. Where a core more has been idle, there is one more; and
after a while without that, since work of low priority leaves no core idle and yet gives way. A thread more that at once
had to wait is tried again after twice the time as before. Where the system counts nothing of the kind, all cores are
ours.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

WAITED = 0.2  # of the time that threads wanted
ENOUGH = 0.05  # seconds that threads must have wanted in a second for that to say something
IDLE = 0.75  # of a core
TRY_AFTER = 30.0  # seconds without an idle core
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 120.0  # seconds
MOST = 16  # processes that are looked at in a second
_TICK = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Seen:
    """What the system has counted so far, in seconds: how long the threads of each process ran, and waited for a core;
    how long the cores of this container were idle, and were taken by other virtual machines."""

    threads: dict[int, tuple[float, float]]  # (ran, waited) by process id
    idle: float
    stolen: float


def look(pids: Collection[int]) -> Seen | None:
    """None where the system does not tell."""
    try:
        threads = {pid: _of_threads(pid) for pid in pids}
        idle = stolen = 0.0
        ours = os.sched_getaffinity(0)
        for number, counts in re.findall(r"^cpu(\d+) (.*)$", Path("/proc/stat").read_text(), re.M):
            if int(number) in ours:
                ticks = [int(word) * _TICK for word in counts.split()]
                idle, stolen = idle + ticks[3] + ticks[4], stolen + ticks[7]
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    return Seen({pid: counted for pid, counted in threads.items() if counted}, idle, stolen)


def _of_threads(pid: int) -> tuple[float, float] | None:
    """None for a process that has ended."""
    ran = waited = 0.0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
                words = (task / "schedstat").read_text().split()
                ran, waited = ran + int(words[0]) / 1e9, waited + int(words[1]) / 1e9
        return ran, waited
    return None


class Cores:
    """Owns the number: ``threads``. ``clock`` gives seconds."""

    def __init__(
        self, cores: int, clock: Callable[[], float], look: Callable[[Collection[int]], Seen | None] = look
    ) -> None:
        self.threads = cores
        self._cores = cores
        self._clock = clock
        self._look = look
        self._last: tuple[float, Seen] | None = None
        self._counted: dict[int, tuple[float, float]] = {}  # by process id, as of the last time that it was looked at
        self._not_before = 0.0
        self._changed = clock()
        self._raised = False  # by the last change
        self._pause = FIRST_PAUSE

    @property
    def due(self) -> bool:
        """Whether a second has passed since the last look. Never with one core, of which there is nothing to divide."""
        return self._cores > 1 and (self._last is None or self._clock() - self._last[0] >= 1.0)

    def tick(self, pids: Collection[int]) -> bool:
        """Look. ``pids``: processes that have computed since the last look and had several threads, or would have had
        with every core. Whether the number has changed."""
        now = self._clock()
        seen = self._look(list(islice(pids, MOST)))
        if seen is None:
            return False
        before, self._last = self._last, (now, seen)
        ran, waited = self._since(seen.threads)
        if before is None or now <= before[0]:
            return False
        passed, wanted = now - before[0], ran + waited
        stolen = (seen.stolen - before[1].stolen) / (passed * self._cores)
        enough = wanted >= ENOUGH * passed
        if self.threads > 1 and enough and waited / wanted + stolen > WAITED:
            self._lower(now)
            return True
        if self._raised and now - self._changed > LONGEST_PAUSE:  # it has been right for long
            self._pause, self._raised = FIRST_PAUSE, False
        if self.threads < self._cores and enough and now >= self._not_before and stolen <= WAITED:
            idle = (seen.idle - before[1].idle) / passed
            if idle >= IDLE or now - self._changed >= max(TRY_AFTER, self._pause):
                self.threads += 1
                self._changed, self._raised = now, True
                return True
        return False

    def _since(self, threads: dict[int, tuple[float, float]]) -> tuple[float, float]:
        """Seconds that these processes' threads ran and waited since each was looked at last: since it is looked at
        whenever it has computed, that was in the last second. One that is new says nothing yet."""
        ran = waited = 0.0
        for pid, counted in threads.items():
            known = self._counted.get(pid)
            if known is not None:
                ran, waited = ran + max(0.0, counted[0] - known[0]), waited + max(0.0, counted[1] - known[1])
        if len(self._counted) > 100 * MOST:
            self._counted.clear()
        self._counted.update(threads)
        return ran, waited

    def _lower(self, now: float) -> None:
        if self._raised and now - self._changed < 3.0:  # it was too much at once
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.threads -= 1
        self._changed, self._raised = now, False
        self._not_before = now + self._pause
