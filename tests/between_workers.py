"""What the workers of one test run, which are processes, must not do at the same time."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Within the block, no other process of this user is inside a block of this name."""
    with (Path(tempfile.gettempdir()) / f"mme-tests-{os.getuid()}-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def installed(name: str, requirements: Sequence[str]) -> Path:
    """A folder of .cache with these packages alone, installed once. It appears whole or not at all.

    Skips the test where they cannot be installed, but fails it where CI is set.
    """
    folder = ROOT / ".cache" / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    with locked(folder.name):
        if folder.is_dir():
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(partial), *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 and "CI" not in os.environ:
            pytest.skip(f"{name} could not be installed into {folder}: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, done.stderr
        partial.rename(folder)
    return folder
