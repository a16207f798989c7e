"""Opening what lies in a model's folder: regular files alone. A pipe or a device there could block for ever."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # not blocking: to open a pipe would wait for its writer


def open_regular(path: str | Path) -> io.FileIO:
    """Open a file for reading, unbuffered. Raises OSError where it is anything but a regular file."""
    if not stat.S_ISREG(Path(path).stat().st_mode):  # before it is opened: to open some devices does something
        raise OSError(f"{path} is not a regular file")
    fd = os.open(path, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file")
        return io.FileIO(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_regular(path: str | Path, limit: int) -> bytes:
    """A file's content. Raises OSError where it is not a regular file, ValueError where it is larger than ``limit``."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} is larger than {limit} bytes")
        parts = []
        left = limit
        while left >= 0 and (part := file.read(min(left + 1, 1 << 20))):
            parts.append(part)
            left -= len(part)
        if left < 0:
            raise ValueError(f"{path} is larger than {limit} bytes")
        return b"".join(parts)
