"""Once in every minute of AWS: measure the instances, judge the alarms, scale."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence

from mme.local.sagemaker.minutes import Minutes


class Ticker:
    """A thread that calls functions in their order when a minute has passed, with the seconds since the epoch."""

    def __init__(self, minutes: Minutes, work: Sequence[Callable[[float], None]]) -> None:
        self._minutes = minutes
        self._work = work
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="minutes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the work at hand is done."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        number = self._minutes.number(time.time())
        while True:
            number = max(number + 1, self._minutes.number(time.time()))
            if self._over.wait(max(0.0, self._minutes.start(number) - time.time())):
                return
            for one in self._work:
                try:
                    one(time.time())
                except Exception:  # a fault of ours, or records that changed meanwhile: the next minute comes
                    traceback.print_exc()
