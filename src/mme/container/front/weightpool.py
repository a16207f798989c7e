"""Identical weight files of several models become one file, so that their pages are in memory once.

A hundred versions that differ only in a head or a handler come as a hundred archives with the same weights in them. The
platform extracts each into a folder of its own. Before such a model is loaded, its file is replaced by a hard link to
the same file of a model that is loaded already: nothing is copied, and whichever folder goes first, the other keeps it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path

from mme.container.memory import MAPPED_FILES

SMALLEST = 1024 * 1024  # bytes; smaller files are not worth a look
SAMPLES = 64
BLOCK = 4096
CHUNK = 4 * 1024 * 1024


class WeightPool:
    """The weight files of the models that are loaded. Its methods block, and may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, dict[int, Path]] = {}  # by fingerprint: of which model, where

    def share(self, number: int, folder: str) -> int:
        """Link this model's weights to equal ones that are known. Returns how many bytes that saves."""
        saved = 0
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root, name)
                if path.suffix.lower() in MAPPED_FILES and not path.is_symlink():
                    with contextlib.suppress(OSError):
                        saved += self._share_file(number, path)
        return saved

    def _share_file(self, number: int, path: Path) -> int:
        size = path.stat().st_size
        if size < SMALLEST:
            return 0
        mark = fingerprint(path, size)
        with self._lock:
            others = list(self._known.setdefault(mark, {}).values())
            self._known[mark][number] = path
        for other in others[:1]:
            if not other.samefile(path) and equal(path, other):
                link = path.with_name(f".{path.name}.mme-{os.getpid()}-{number}")
                os.link(other, link)  # fails across file systems and where it is not allowed: then each keeps its own
                try:
                    link.replace(path)
                except OSError:
                    link.unlink(missing_ok=True)
                    raise
                return size
        return 0

    def forget(self, number: int) -> None:
        with self._lock:
            for key in [key for key, models in self._known.items() if number in models]:
                del self._known[key][number]
                if not self._known[key]:
                    del self._known[key]


def fingerprint(path: Path, size: int) -> str:
    """A digest of the size and of blocks from all over the file: different for files worth telling apart quickly."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek((size - BLOCK) * number // (SAMPLES - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def equal(one: Path, two: Path) -> bool:
    """Whether two files hold the same bytes, every one of them."""
    with one.open("rb", buffering=0) as left, two.open("rb", buffering=0) as right:
        while True:
            chunk = left.read(CHUNK)
            if chunk != right.read(CHUNK):
                return False
            if not chunk:
                return True
