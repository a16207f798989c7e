"""A folder to build in, removed afterwards even where a run was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mme.errors import ArchiveError

# --- a place to work -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A folder in ``out`` that is removed afterwards. Folders that killed runs left behind are removed first."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(".work-*"):
            _remove_if_abandoned(stale)
        folder = Path(tempfile.mkdtemp(prefix=".work-", dir=out))
    except OSError as error:
        raise ArchiveError(f"{out} cannot be written to: {error.strerror}.", "Name another with --out.") from None
    lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder / "lock", os.O_WRONLY)
    except OSError:
        return  # another run is just making it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
