"""Log lines as JSON objects, one a line, on standard output.

A thread writes them, so that nobody who answers requests waits for a slow reader of the log; where the reader
is slower than the lines for long, lines are dropped and counted instead of filling the memory.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
import time
from collections import deque
from typing import Any

from mme.container.text import json_bytes

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    def __init__(self, level: str = "info", fd: int = 1, bound: int = 20_000) -> None:
        self._level = LEVELS[level]
        self._fd = fd
        self._lines: deque[dict[str, Any]] = deque(maxlen=bound)
        self._wake = threading.Event()
        self._written = 0
        self._put = 0
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        if LEVELS[level] < self._level:
            return
        self._put += 1
        self._lines.append({"time": time.time(), "level": level, "event": event, **fields})
        if not self._wake.is_set():
            self._wake.set()

    def _write(self) -> None:
        while True:
            self._wake.wait()
            if not self._closed:
                time.sleep(0.02)  # let lines gather: one wake-up and one write for all of them
            self._wake.clear()
            while self._lines:
                chunk: list[bytes] = []
                while self._lines and len(chunk) < 200:
                    chunk.append(_render(self._lines.popleft()))
                self._written += len(chunk)
                dropped = self._put - self._written - len(self._lines)
                if dropped > 0:
                    self._written += dropped
                    chunk.append(_render({"time": time.time(), "level": "warning", "event": "log", "dropped": dropped}))
                _write_all(self._fd, b"".join(chunk))
            if self._closed:
                return

    def close(self) -> None:
        """Write what is left, waiting at most two seconds for the reader."""
        self._closed = True
        self._wake.set()
        self._thread.join(2)


def _render(fields: dict[str, Any]) -> bytes:
    seconds = fields["time"]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fields["time"] = f"{stamp}.{int(seconds % 1 * 1000):03d}Z"
    try:
        return json_bytes(fields, default=_plain) + b"\n"
    except Exception as error:  # whatever it holds, the next line must be written
        lost = {"time": fields["time"], "level": "error", "event": "log", "message": f"A line is lost: {_plain(error)}"}
        return json_bytes(lost) + b"\n"


def _plain(value: object) -> str:
    """A value that JSON cannot hold, as text; its own methods may fail."""
    try:
        return str(value)
    except BaseException:
        return f"a {type(value).__name__} that cannot be written"


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except InterruptedError:
            continue
        except BlockingIOError:  # whoever gave us this descriptor made it so
            select.select([], [fd], [], 1)
        except OSError:
            return  # nobody reads the log any more
