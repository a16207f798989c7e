"""Extra memory for busy models, which makes them faster.

The policy: a model whose handler offers it (``busy_fn``, docs/handlers.md) gets the memory once it has answered
``MME_BUSY_ANSWERS`` requests a second on average over the last seconds, if admission has twice that memory free, and
loses it when the average falls to a sixth of that. One model at a time begins, since beginning keeps a core busy for a
moment; the model's requests go on meanwhile. The memory is given back before anything is refused, parked or ended for
lack of memory, by the models with the fewest answers first, and a model that gave it back for this reason does not get
it again for a minute.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Protocol

from mme.container.config import Settings
from mme.container.front.counters import Totals
from mme.container.front.log import Log
from mme.container.front.models import Extra, WorkerLink
from mme.container.wire import Frame, Kind

AVERAGED = 10.0  # seconds over which answers are averaged
QUIET = 1 / 6  # of MME_BUSY_ANSWERS
AGAIN_AFTER = 60.0  # seconds


class Effects(Protocol):
    """What this needs of the other owners."""

    def workers(self) -> Iterable[WorkerLink]:
        """Every process that runs."""

    def room(self, size: int) -> bool:
        """Whether so many bytes could be taken now and planned for."""

    def returned(self) -> None:
        """Memory has been given back."""


class Busy:
    """Owns the ``extra`` of each process. ``clock`` gives seconds."""

    def __init__(
        self, settings: Settings, totals: Totals, log: Log, effects: Effects, clock: Callable[[], float]
    ) -> None:
        self._answers = settings.busy_answers
        self._totals = totals
        self._log = log
        self._effects = effects
        self._clock = clock
        self._looked = clock()

    def tick(self) -> None:
        """Look at what has been answered since the last time."""
        now = self._clock()
        passed, self._looked = now - self._looked, now
        if not self._answers or passed <= 0:
            return
        weight = 1 - math.exp(-passed / AVERAGED)
        for worker in self._offering():
            extra, count = worker.extra, worker.model.metrics.answers.all
            extra.rate += weight * ((count - extra.answered) / passed - extra.rate)
            extra.answered = count
            if extra.held and not extra.returning and extra.rate < QUIET * self._answers:
                self._end(worker, "quiet")
        self._begin_next()

    def _offering(self) -> list[WorkerLink]:
        return [worker for worker in self._effects.workers() if worker.extra.offered and worker.doomed is None]

    def _begin_next(self) -> None:
        """The busiest of those that wait begins, unless another one is just beginning."""
        offering = self._offering()
        if any(worker.extra.beginning for worker in offering):
            return
        now = self._clock()
        waiting = [
            worker
            for worker in offering
            if not worker.extra.held and worker.extra.rate >= self._answers and now >= worker.extra.not_before
        ]
        for worker in sorted(waiting, key=lambda worker: -worker.extra.rate):
            if self._effects.room(2 * worker.extra.offered):
                extra = worker.extra
                extra.held, extra.beginning = extra.offered, True
                worker.send(Kind.BUSY, 1)
                return

    def give_back(self, size: int) -> list[asyncio.Future[None]]:
        """Have about ``size`` bytes given back, as far as models hold them; a future for each process that gives some
        back."""
        futures: list[asyncio.Future[None]] = []
        for worker in sorted(self._effects.workers(), key=lambda worker: worker.extra.rate):
            extra = worker.extra
            if size > 0 and extra.held and worker.doomed is None:
                size -= extra.held
                if extra.returning is None:
                    self._end(worker, "memory")
                    extra.not_before = self._clock() + AGAIN_AFTER
                assert extra.returning is not None
                futures.append(extra.returning)
        return futures

    def said(self, worker: WorkerLink, frame: Frame) -> None:
        """The worker has taken the memory or given it back, or failed to."""
        extra: Extra = worker.extra
        taken = max(0, int(frame.meta["extra"]))
        if taken and extra.beginning and extra.returning is None:
            extra.held, extra.beginning = taken, False
            self._totals.busy_begun += 1
            rate = round(extra.rate, 1)
            self._log("info", "busy", model=worker.model.name, bytes=taken, answers_per_second=rate)
            self._begin_next()
        elif not taken:
            if frame.meta.get("error"):
                extra.offered = 0  # it would fail again
                text = str(frame.meta["error"])[:300]
                self._log("warning", "busy", model=worker.model.name, message=text)
            self.over(worker)

    def over(self, worker: WorkerLink) -> None:
        """The worker has nothing beyond its need any more."""
        extra = worker.extra
        extra.held, extra.beginning = 0, False
        if extra.returning is not None:
            if not extra.returning.done():
                extra.returning.set_result(None)
            extra.returning = None
        self._effects.returned()

    def _end(self, worker: WorkerLink, reason: str) -> None:
        extra = worker.extra
        extra.returning = asyncio.get_running_loop().create_future()
        if not extra.beginning:
            self._totals.busy_ended += 1
        self._log("info", "busy over", model=worker.model.name, bytes=extra.held, reason=reason)
        worker.send(Kind.BUSY, 0)
