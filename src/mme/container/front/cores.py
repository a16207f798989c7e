"""How many threads a model that computes alone may have: as many as there are cores that other work leaves.

Threads that compute one answer wait for each other between layers, so that one whose core is shared holds up all. How
long threads that could compute had to wait for a core, the system counts (its run-queue delay), and how much of a
virtual machine's cores went to other machines (stolen time).

The policy, once a second: where threads of processes that had several waited for more than a fifth of the time that
they wanted, or as much was stolen, there is one thread less. Where a core more has been idle, there is one more. Where
none has been idle for long, one more is tried all the same, since work of low priority leaves no core idle and yet
gives way: for a quarter of a second, and again after twice the time as before where it had to wait. Where the system
counts nothing of the kind, all cores are ours.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

WAITED = 0.2  # of the time that threads wanted
ENOUGH = 0.05  # seconds that threads must have wanted in a second for that to say something
IDLE = 0.75  # of a core
PAUSE = 3.0  # seconds after a thread less until there may be one more
TRY_AFTER, TRY_AFTER_MOST = 30.0, 480.0  # seconds without an idle core
LOOK_EVERY, LOOK_WHEN_TRYING = 1.0, 0.25  # seconds
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
    """None where the system has no such figures."""
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
    """Owns ``threads``, the number of threads for a model that computes alone. ``clock`` gives seconds."""

    def __init__(
        self, cores: int, clock: Callable[[], float], look: Callable[[Collection[int]], Seen | None] = look
    ) -> None:
        self.threads = cores
        self._cores = cores
        self._clock = clock
        self._look = look
        self._last: tuple[float, Seen] | None = None
        self._counted: dict[int, tuple[float, float]] = {}  # by process id, as of the last time that it was looked at
        self._changed = clock()
        self._trying = False  # a thread more than was seen to be free
        self._tried = -math.inf
        self._try_after = TRY_AFTER

    @property
    def due(self) -> bool:
        """Whether it is time for the next look. Never with one core, of which there is nothing to divide."""
        pause = LOOK_WHEN_TRYING if self._trying else LOOK_EVERY
        return self._cores > 1 and (self._last is None or self._clock() - self._last[0] >= pause)

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
        if wanted < ENOUGH * passed:
            return False
        if waited / wanted + stolen > WAITED:
            return self.threads > 1 and self._lower(now)
        self._trying = False
        idle = (seen.idle - before[1].idle) / passed
        since = now - self._changed
        if self.threads < self._cores and since >= PAUSE and (idle >= IDLE or since >= self._try_after):
            if idle < IDLE:
                self._trying, self._tried = True, now
            self.threads += 1
            self._changed = now
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

    def _lower(self, now: float) -> bool:
        failed = now - self._tried < PAUSE
        self._try_after = min(2 * self._try_after, TRY_AFTER_MOST) if failed else TRY_AFTER
        self._trying = False
        self.threads -= 1
        self._changed = now
        return True
