"""The content of objects: in memory when small, else in files."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
IN_MEMORY = 64 << 10
"""Bytes up to which an object is not worth a file."""


class Blob:
    """Immutable bytes in a file, or a part of them. Reading keeps no more than a chunk in memory.

    Slicing gives another Blob of the same file. A file that is removed meanwhile can still be read to its end.
    """

    def __init__(self, path: Path, offset: int, size: int, md5: str | None = None) -> None:
        self._path = path
        self.offset = offset
        self.size = size
        self.md5 = md5
        self.digests: Mapping[str, bytes] = {}
        """By the name of the algorithm, as far as they are known."""
        self.taken = False
        """Whether an object owns the file already; the next object with these bytes needs a file of its own."""

    @property
    def path(self) -> Path:
        """The file that the bytes are in."""
        return self._path

    def discard(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> OpenBlob:
        start, stop, step = part.indices(self.size)
        if step != 1:
            raise ValueError("A Blob has no steps.")
        return OpenBlob(self.path, self.offset + start, max(0, stop - start))

    def __bytes__(self) -> bytes:
        return b"".join(OpenBlob(self.path, self.offset, self.size))

    def view(self) -> OpenBlob:
        """All of it, opened for reading."""
        return OpenBlob(self.path, self.offset, self.size)

    def copy_to(self, target: BinaryIO) -> None:
        """Appends the bytes to an open file."""
        with self.path.open("rb") as source:
            source.seek(self.offset)
            left = self.size
            while left:
                data = source.read(min(CHUNK, left))
                if not data:
                    raise OSError(f"{self.path} is shorter than it was.")
                left -= len(data)
                target.write(data)


class Joined(Blob):
    """Blobs in a row as one, put into a file of their own only when somebody wants to read them. Owns the parts' files.

    Most objects that were sent in parts are never read here, and copying hundreds of megabytes takes longer than
    receiving them.
    """

    def __init__(self, parts: list[Blob | bytes], folder: Path) -> None:
        super().__init__(folder / uuid.uuid4().hex, 0, sum(len(part) for part in parts))
        self._parts = parts
        self._joining = threading.Lock()

    @property
    def path(self) -> Path:
        with self._joining:
            if self._parts:
                _join(self._parts, self._path)
                self._drop_parts()
        return self._path

    def discard(self) -> None:
        with self._joining:
            self._drop_parts()
            super().discard()

    def _drop_parts(self) -> None:
        for part in self._parts:
            if isinstance(part, Blob):
                part.discard()
        self._parts = []


class OpenBlob(Blob):
    """A Blob with its file open, so that it outlives the file's name. Iterating reads and closes it."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__(path, offset, size)
        self.taken = True
        self._file = path.open("rb")

    def __getitem__(self, part: slice) -> OpenBlob:
        start, stop, _ = part.indices(self.size)
        other = OpenBlob.__new__(OpenBlob)
        Blob.__init__(other, self.path, self.offset + start, max(0, stop - start))
        other.taken = True
        other._file = os.fdopen(os.dup(self._file.fileno()), "rb")
        return other

    def __iter__(self) -> Iterator[bytes]:
        try:
            self._file.seek(self.offset)
            left = self.size
            while left:
                data = self._file.read(min(CHUNK, left))
                if not data:
                    return
                left -= len(data)
                yield data
        finally:
            self.close()

    def close(self) -> None:
        self._file.close()

    def __bytes__(self) -> bytes:
        return b"".join(self)


@dataclass(frozen=True)
class Received:
    """A request body that arrived complete and with the right checksums."""

    value: Blob | bytes
    md5: str
    checksums: Mapping[str, str] = field(default_factory=dict)
    """By algorithm, base64."""


# -- making blobs of blobs


def own(value: Blob, folder: Path) -> Blob:
    """The Blob for an object to keep: itself when nobody owns its file, else one with the same bytes.

    For all of a file that is a hard link to it, since its content never changes.
    """
    if not value.taken:
        value.taken = True
        return value
    path = folder / uuid.uuid4().hex
    if value.offset == 0 and value.size == value.path.stat().st_size:
        with contextlib.suppress(OSError):
            os.link(value.path, path)
            return _taken(Blob(path, 0, value.size, value.md5))
    with path.open("wb") as file:
        value.copy_to(file)
    return _taken(Blob(path, 0, value.size, value.md5))


def _taken(blob: Blob) -> Blob:
    blob.taken = True
    return blob


def discard(received: Received) -> None:
    """Removes a received body that no object took."""
    if isinstance(received.value, Blob) and not received.value.taken:
        received.value.discard()


def _join(parts: list[Blob | bytes], path: Path) -> None:
    try:
        with path.open("wb") as file:
            for part in parts:
                if isinstance(part, Blob):
                    part.copy_to(file)
                else:
                    file.write(part)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def place(value: Blob | bytes, target: Path) -> None:
    """Puts the bytes at a path: as a second name of the same file where the system can."""
    if isinstance(value, Blob):
        if value.offset == 0 and value.size == value.path.stat().st_size:
            with contextlib.suppress(OSError):
                os.link(value.path, target)
                return
        with target.open("wb") as file:
            value.copy_to(file)
    else:
        target.write_bytes(value)
