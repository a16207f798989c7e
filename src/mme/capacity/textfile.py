"""Opens files of text, compressed with gzip or not: traces and logs are large, and logs are rotated."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TextIO, cast

from mme.errors import UsageError


@contextlib.contextmanager
def opened(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """The text in UTF-8, with or without a mark at its beginning. ``errors``: what to do with bytes that are no text.

    Raises UsageError where the file cannot be read, is a ZIP archive or damaged; UnicodeDecodeError is the caller's.
    """
    try:
        with path.open("rb") as raw:
            begins = raw.peek(4)[:4]
            if begins == b"PK\x03\x04":
                raise UsageError(f"{path} is a ZIP archive.", "Unpack it; a file may be compressed with gzip.")
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if begins[:2] == b"\x1f\x8b" else raw)
            with io.TextIOWrapper(stream, encoding="utf-8-sig", errors=errors, newline="") as text:
                yield text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is damaged: {error}.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
