"""The folder in which the local AWS keeps its data."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

from mme.errors import UsageError

_MARKER = "mme-local"
_OURS = ("endpoints", "objects", "tmp")


class DataDir:
    """The folder that holds everything: locked while in use, and never one that the local AWS did not make."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            marker = self.path / _MARKER
            if not marker.exists() and any(self.path.iterdir()):
                raise UsageError(
                    f"The data folder {self.path} is not empty and was not made by the local AWS.",
                    "Name an empty folder, or one that does not exist yet.",
                )
            self._lock: IO[str] = marker.open("a+")
        except OSError as problem:
            raise UsageError(
                f"The data folder {self.path} cannot be used: {problem.strerror or problem}.",
                "Name a folder that you may write to.",
            ) from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise UsageError(
                f"The data folder {self.path} is in use by another local AWS{f' (process {owner})' if owner else ''}.",
                "Stop that one, or name another folder.",
            ) from problem
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self.clear()
        for name in _OURS:
            (self.path / name).mkdir()

    def clear(self) -> None:
        """Removes what a run keeps on disk; the marker stays."""
        for name in _OURS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def close(self) -> None:
        self.clear()
        self._lock.close()
