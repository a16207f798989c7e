"""Which connection is parsed next, where clients send more than fits one turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

PATIENT_SECONDS = 0.02


class Turned(Protocol):
    """A connection, as its turns see it."""

    def go_on(self) -> float:
        """Do a turn's worth. Returns the seconds that it took."""


class Turns:
    """Connections with more to parse or to answer than fits one turn: one of them after each turn of the event loop.

    Those that have taken more than PATIENT_SECONDS together get a quarter of the time at most, all of them together.
    """

    def __init__(self) -> None:
        self._queue: deque[Turned] = deque()
        self._greedy: deque[Turned] = deque()
        self._next: asyncio.Handle | None = None
        self._next_greedy: asyncio.Handle | None = None
        self._pause = 0.0  # seconds between two greedy ones

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._greedy)

    def add(self, connection: Turned, spent: float) -> None:
        """Give it a turn. ``spent`` is how many seconds it has taken since there was nothing left to do for it."""
        (self._greedy if spent > PATIENT_SECONDS else self._queue).append(connection)
        self._soon()

    def _soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._next is None and self._queue:
            self._next = loop.call_soon(self._one)  # sockets are looked at before it is run
        if self._next_greedy is None and self._greedy:
            self._next_greedy = loop.call_later(self._pause, self._one_greedy)

    def _one(self) -> None:
        self._next = None
        try:
            self._queue.popleft().go_on()
        finally:
            self._soon()

    def _one_greedy(self) -> None:
        self._next_greedy = None
        try:
            self._pause = 3 * self._greedy.popleft().go_on()
        finally:
            self._soon()
