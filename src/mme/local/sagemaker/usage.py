"""Processor and memory use of a container and all its processes."""

from __future__ import annotations

import time

from mme.local.processes import tree


class Usage:
    """Measures one container again and again."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._seconds: dict[tuple[int, float], float] = {}
        """Processor seconds of each process at the last measurement; process ids are reused."""

    def measure(self, pid: int) -> tuple[float, float]:
        """Processor time since the last measurement, 100 for each core, and resident memory in percent of all."""
        import psutil

        now = time.monotonic()
        seconds: dict[tuple[int, float], float] = {}
        resident = 0
        for process in tree(pid):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    seconds[process.pid, process.create_time()] = times.user + times.system
                    resident += process.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
        used = sum(total - self._seconds.get(process, 0.0) for process, total in seconds.items())
        elapsed = max(now - self._at, 0.001)
        self._at, self._seconds = now, seconds
        return max(0.0, 100.0 * used / elapsed), 100.0 * resident / psutil.virtual_memory().total
