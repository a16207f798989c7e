"""A cache of answers for some seconds; each is made once for all callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = 0.0
    value: Any = None


class Cache:
    """Callers that ask for an answer that is being made wait for it. At most MOST are stored."""

    MOST = 500

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Any, _Entry] = {}

    def get(self, key: Any, seconds: float, make: Callable[[], T]) -> T:
        """The answer for the key, made anew where the last one is older than ``seconds``. Raises what ``make`` does,
        and then stores nothing."""
        with self._lock:
            if key not in self._entries and len(self._entries) >= self.MOST:
                self._entries.pop(next(iter(self._entries)))
            entry = self._entries.setdefault(key, _Entry())
        with entry.lock:
            if time.monotonic() >= entry.until:
                entry.value = make()
                entry.until = time.monotonic() + seconds
            return cast(T, entry.value)
