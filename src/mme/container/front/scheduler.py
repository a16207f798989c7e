"""Which models compute: as many at a time as there are cores, each with its share of the threads; and one more while
others wait.

The policy, with one core and models A, B and C that ask in this order::

    A asks                  A computes with every thread
    B and C ask             after QUANTUM, A is asked to give the core back when its batch is done
    A gives it back         B computes; A, if it has more to do, waits behind C
    B keeps it (PATIENCE)   B is not waited for: C computes beside it, and the system divides the core

With several cores, one model more than there are cores may compute while others wait. Otherwise a core is idle from the
end of one model's work until the front's message reaches the next model, which is a sixth of the time of short answers;
so the system gives the core to the additional model.

So requests of one model are answered in batches while it is its turn, a slow model starves no other, and no model is
interrupted inside a batch. A model that computes alone has all threads; two that compute have half each. Where other
work has some of the cores there are fewer threads than cores (cores.py).

The scheduler knows nothing of processes: workers are whatever can be a key, and its effects are handed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

QUANTUM = 0.02  # seconds a model may compute while others wait for a core
PATIENCE = 0.1  # seconds after which a model that does not give its core back stops being waited for

W = TypeVar("W", bound=Hashable)
W_in = TypeVar("W_in", bound=Hashable, contravariant=True)


@dataclass
class Grant:
    """Leave to compute. ``since`` is in seconds of the scheduler's clock."""

    since: float
    threads: int = 0
    yielding: bool = False  # asked to give it back after the present batch


class Effects(Protocol[W_in]):
    """What the scheduler needs of the other owners."""

    def wants_core(self, worker: W_in) -> bool:
        """Whether it still has something to compute."""

    def grant(self, worker: W_in, threads: int) -> None:
        """Let it compute with so many threads, or go on with so many."""

    def recall(self, worker: W_in) -> None:
        """Ask it to give its grant back after the present batch."""


class Scheduler(Generic[W]):
    """``clock`` gives seconds; ``later(seconds, call)`` calls after so many of them. ``spare``: how many more than
    there are cores may compute while others wait."""

    def __init__(
        self,
        cores: int,
        effects: Effects[W],
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        spare: int = 0,
    ) -> None:
        self._cores = cores
        self._spare = spare
        self._effects = effects
        self._clock = clock
        self._later = later
        self._waiting: OrderedDict[W, None] = OrderedDict()
        self._running: dict[W, Grant] = {}
        self._slice_is_timed = False
        self._threads = cores
        self._computed: set[W] = set()

    def divide(self, threads: int) -> None:
        """From now on, so many threads are divided between those that compute."""
        if threads != self._threads:
            self._threads = threads
            self._share()

    def alone(self) -> set[W]:
        """The workers that have computed while cores were free, since the last call."""
        alone, self._computed = self._computed, set()
        self._note_alone()
        return alone

    def want(self, worker: W) -> None:
        """The worker has something to compute: give it a core now, or as soon as its turn comes."""
        if worker not in self._running and worker not in self._waiting:
            self._waiting[worker] = None
            self.schedule()

    def released(self, worker: W) -> None:
        """The worker has given its grant back. If it has more to do, its turn comes again."""
        self._running.pop(worker, None)
        if self._effects.wants_core(worker):
            self._waiting[worker] = None
        self.schedule()

    def ended(self, worker: W) -> None:
        """The worker is gone, and whatever it held is free."""
        self._running.pop(worker, None)
        self._waiting.pop(worker, None)
        self._computed.discard(worker)
        self.schedule()

    def computes(self, worker: W) -> bool:
        return worker in self._running

    def grants(self) -> Iterator[tuple[W, float]]:
        """Who computes, and since when."""
        return ((worker, grant.since) for worker, grant in list(self._running.items()))

    def schedule(self) -> None:
        now = self._clock()
        slow = sum(1 for grant in self._running.values() if now - grant.since > PATIENCE) if self._waiting else 0
        changed = False
        while self._waiting and len(self._running) - slow < self._cores + self._spare:
            worker, _ = self._waiting.popitem(last=False)
            if self._effects.wants_core(worker):
                self._running[worker] = Grant(now)
                changed = True
        if changed or not self._waiting:
            self._share()
        if self._waiting:
            for worker, grant in self._running.items():
                if not grant.yielding and now - grant.since >= QUANTUM:
                    grant.yielding = True
                    self._effects.recall(worker)
            if not self._slice_is_timed:
                self._slice_is_timed = True
                self._later(QUANTUM, self._next_slice)

    def _next_slice(self) -> None:
        self._slice_is_timed = False
        if self._waiting:
            self.schedule()

    def _share(self) -> None:
        """Divide the cores between those that compute now."""
        if not self._running:
            return
        self._note_alone()
        threads = max(1, self._threads // len(self._running))
        for worker, grant in self._running.items():
            if grant.threads != threads and not grant.yielding:
                grant.threads = threads
                self._effects.grant(worker, threads)

    def _note_alone(self) -> None:
        if self._running and self._cores // len(self._running) > 1:
            self._computed |= self._running.keys()
