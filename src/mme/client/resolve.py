"""What a model's or channel's name means, remembered for seconds.

fresh (younger than ``fresh`` seconds)   answered from memory
older                                    answered from memory, and looked up again in the background
older than ``stale`` seconds             looked up first, for at most ``wait`` seconds
cannot be looked up                      answered from memory, however old, and tried again ``fresh`` seconds later
not there any more                       an error, as it would be for somebody who asks for the first time
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mme.channels import Split
from mme.errors import MmeError

FRESH_S = 5.0
STALE_S = 60.0
WAIT_S = 2.0
LOST_S = 300.0  # a look-up that has not ended by then never will: a fork took its thread away

_log = logging.getLogger("mme.client")


@dataclass
class _Lookup:
    """A look-up that is under way; ``split`` or ``error`` once ``done`` is set."""

    started: float
    done: threading.Event = field(default_factory=threading.Event)
    split: Split | None = None
    error: BaseException | None = None


@dataclass
class _Entry:
    split: Split
    read: float  # when it was looked up
    tried: float  # when it was last tried to
    failing: bool = False


class Resolver:
    """Looks names up with ``lookup``, each once at a time, whatever the number of threads that ask.

    ``lookup`` gives a name's split, or raises MmeError. An error with a cause (what boto3 raised, or a document that
    cannot be read) says nothing about the name; one without says that there is no such name.
    """

    def __init__(
        self,
        lookup: Callable[[str], Split],
        *,
        fresh: float = FRESH_S,
        stale: float = STALE_S,
        wait: float = WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._fresh = fresh
        self._stale = max(stale, fresh)
        self._wait = wait
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, _Entry] = {}
        self._under_way: dict[str, _Lookup] = {}

    def split(self, name: str) -> Split:
        """What ``name`` means: each target with its weight. Raises MmeError when nothing is known of it."""
        entry = self._known.get(name)
        now = self._clock()
        if entry is not None and now - entry.tried < self._fresh:
            return entry.split
        with self._lock:
            entry = self._known.get(name)
            if entry is not None and now - entry.tried < self._fresh:
                return entry.split  # another thread's look-up ended meanwhile
            running = self._under_way.get(name)
            if running is None or now - running.started > LOST_S:
                running = self._under_way[name] = _Lookup(now)
                threading.Thread(
                    target=self._run, args=(name, running), name=f"mme-resolve-{name}", daemon=True
                ).start()
        if entry is not None and now - entry.read < self._stale:
            return entry.split
        if entry is not None and (entry.failing or not running.done.wait(self._wait)):
            return entry.split
        running.done.wait()
        if running.split is not None:
            return running.split
        if entry is not None and not _says_no(running.error):
            return entry.split
        assert running.error is not None
        raise running.error

    def forget(self, name: str) -> None:
        """Look ``name`` up anew the next time it is asked for."""
        with self._lock:
            self._known.pop(name, None)

    def _run(self, name: str, running: _Lookup) -> None:
        try:
            running.split = dict(self._lookup(name))
        except BaseException as error:
            running.error = error
        now = self._clock()
        with self._lock:
            if self._under_way.get(name) is running:
                del self._under_way[name]
            known = self._known.get(name)
            if running.split is not None:
                self._known[name] = _Entry(running.split, now, now)
            elif known is not None and _says_no(running.error):
                del self._known[name]
            elif known is not None:
                if not known.failing:
                    _log.warning("%s; going on with what %s meant before", running.error, name)
                known.tried, known.failing = now, True
        running.done.set()


def _says_no(error: BaseException | None) -> bool:
    """Whether the look-up succeeded, and the answer is that there is no such name."""
    return isinstance(error, MmeError) and error.__cause__ is None
