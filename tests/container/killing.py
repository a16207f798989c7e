"""Clients that ask for several models without a pause while the container's processes are killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from container_process import Container, processes

from mme.runner.errors import ContainerError

# Answers with its model's name and what it was asked.
SOURCE = """
    import pathlib, time
    def model_fn(d): return pathlib.Path(d).name
    def predict_fn(data, model):
        time.sleep(0.002)
        return [model, data]
"""


class Clients:
    """Ask from entering the ``with`` block until leaving it; a model that has gone is loaded again, as the
    platform would.

    ``seen`` counts the answers by status. ``lost`` are the requests without an answer, ``misrouted`` those with another
    one's answer, ``wrong`` the answers that no client should see.
    """

    def __init__(self, container: Container, folders: Mapping[str, Path], count: int = 6) -> None:
        self.container, self.folders = container, folders
        self.seen: Counter[int] = Counter()
        self.lost: list[object] = []
        self.misrouted: list[object] = []
        self.wrong: list[object] = []
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        choice = random.Random(seed)
        while not self._done.is_set():
            name, number = choice.choice(list(self.folders)), choice.randrange(10**9)
            try:
                reply = self.container.invoke(name, str(number))
                with self._lock:
                    self.seen[reply.status] += 1
                if reply.status == 404:
                    if self.container.load(name, self.folders[name]).status not in (200, 409, 500, 503):
                        self.wrong.append(("LOAD", name))
                elif reply.status == 200:
                    if reply.json() != [name, number]:
                        self.misrouted.append((name, number, reply))
                elif reply.status != 500 or "signal 9" not in reply.json()["message"]:
                    self.wrong.append((name, number, reply))
            except ContainerError as error:
                self.lost.append((name, number, str(error)))


def kill_one(container: Container, name: str, choice: random.Random) -> None:
    """kill -9 to one of the container's processes of this name, if there is one."""
    victims = [pid for pid in sorted(processes(container.process.pid)) if _name(pid) == name]
    if victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(choice.choice(victims), signal.SIGKILL)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
