"""Reads tar archives that may come from anyone, and puts on disk only what is certainly harmless.

Python's tarfile trusts what it reads in places (a header may claim gigabytes of extended attributes, which
are read into memory; links are followed by later members), so headers are walked here one at a time.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import igzip, isal_zlib

from mme.errors import ArchiveError
from mme.folder import is_safe

BLOCK = 512
CHUNK = 1 << 20
MAX_EXTENDED = 1 << 20  # bytes of extended header for one member: a path and a size need a few hundred
MAX_FILES = 100_000
MAX_BYTES = 512 << 30

# What the decompressors raise for a stream that is cut or changed.
_BROKEN: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile, cast(Any, isal_zlib.error))


# What the system says when there is no room for more: the disk, the quota or the largest size of a file is reached.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoom(ArchiveError):
    """What an archive holds does not fit on the disk. The archive itself may be fine."""


class Member:
    """One file or folder of an archive; ``read`` hands out its bytes once, before the next member is asked for."""

    def __init__(self, path: str, size: int, is_folder: bool, stream: BinaryIO) -> None:
        self.path = path
        self.size = size
        self.is_folder = is_folder
        self.left = size
        self._stream = stream

    def read(self) -> Iterator[bytes]:
        while self.left:
            data = self._stream.read(min(CHUNK, self.left))
            if not data:
                raise ArchiveError(f"The archive ends in the middle of {self.path}.", "Build or download it again.")
            self.left -= len(data)
            yield data


def members(stream: BinaryIO) -> Iterator[Member]:
    """The members of the tar in ``stream``, in order, with checked names.

    Raises ArchiveError for whatever is broken or hostile: paths that are absolute or climb, links, devices,
    a file twice or below another file, more than 100,000 members.
    """
    files: set[str] = set()
    folders: set[str] = set()
    count = 0
    extended: dict[str, str] = {}
    while True:
        block = _exactly(stream, BLOCK, allow_end=count > 0)
        if block is None or not block.strip(b"\0"):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise ArchiveError(f"This is not a tar archive: {error}.", "Build or download it again.") from None
        if info.size < 0:
            raise ArchiveError(f"A member claims a size of {info.size} bytes.", "Do not use this archive.")
        if info.type in (b"x", b"g", b"L"):
            extended = _extended(stream, info, extended)
            continue
        path, size = _path_and_size(info, extended)
        extended = {}
        count += 1
        if count > MAX_FILES:
            raise ArchiveError(f"The archive has more than {MAX_FILES:,} members.", "Do not use this archive.")
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            kind = {b"1": "a hard link", b"2": "a link", b"6": "a pipe"}.get(info.type, "a device or something odd")
            raise ArchiveError(f"{path!r} in the archive is {kind}.", "Only files and folders are unpacked.")
        is_folder = info.type == tarfile.DIRTYPE or info.name.endswith("/")
        if is_folder and size:
            raise ArchiveError(f"{path!r} in the archive is a folder with content.", "Do not use this archive.")
        if not (is_folder and path == ""):
            _claim(path, is_folder, files, folders)
        member = Member(path, size, is_folder, stream)
        yield member
        for _ in member.read():
            pass
        _exactly(stream, -size % BLOCK)


def _claim(path: str, is_folder: bool, files: set[str], folders: set[str]) -> None:
    if not is_safe(path):
        raise ArchiveError(f"{path!r} in the archive is not a path inside it.", "Do not use this archive.")
    parents = [path[:i] for i, character in enumerate(path) if character == "/"]
    if path in files or (not is_folder and path in folders) or any(parent in files for parent in parents):
        raise ArchiveError(f"{path!r} is in the archive twice.", "Do not use this archive.")
    folders.update(parents)
    (folders if is_folder else files).add(path)


def _path_and_size(info: tarfile.TarInfo, extended: dict[str, str]) -> tuple[str, int]:
    path = extended.get("path", info.name)
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    path = "" if path == "." else path.rstrip("/") if path != "/" else path
    try:
        size = int(extended.get("size", info.size))
    except ValueError:
        size = -1
    if size < 0:
        raise ArchiveError(f"{path!r} claims a size that is no number.", "Do not use this archive.")
    if any(key.startswith("GNU.sparse") for key in extended) or info.type == b"S":
        raise ArchiveError(f"{path!r} is a sparse file.", "Pack it without tar's --sparse.")
    return path, size


def _extended(stream: BinaryIO, info: tarfile.TarInfo, before: dict[str, str]) -> dict[str, str]:
    if info.size > MAX_EXTENDED:
        raise ArchiveError("An extended header of the archive is too large.", "Do not use this archive.")
    data = _exactly(stream, info.size) or b""
    _exactly(stream, -info.size % BLOCK)
    if info.type == b"L":
        return {**before, "path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if info.type == b"g":
        return before
    found = dict(before)
    while data.strip(b"\0"):
        digits, space, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record.rstrip(b"\n").partition(b"=")
        if not space or not equals or not 0 < length <= len(data):
            raise ArchiveError("An extended header of the archive is broken.", "Do not use this archive.")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found


def _exactly(stream: BinaryIO, size: int, allow_end: bool = False) -> bytes | None:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            if allow_end and not data:
                return None
            raise ArchiveError("The archive is cut short.", "Build or download it again.")
        data += more
    return data


def open_stream(path: Path) -> BinaryIO:
    """The tar inside the gzip file at ``path``, as a stream."""
    return igzip.open(path, "rb")  # type: ignore[no-any-return]


def reading(path: Path) -> Iterator[Member]:
    """The members of the archive at ``path``; what is wrong with the file is said with its name."""
    try:
        with open_stream(path) as stream:
            yield from members(stream)
            # To the end, so that the checksum of the whole is compared and nothing hides behind the tar.
            while stream.read(CHUNK):
                pass
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error.message}", error.hint) from None
    except FileNotFoundError:
        raise ArchiveError(f"There is no archive at {path}.", "Check the path.") from None
    except _BROKEN as error:
        raise ArchiveError(f"{path} is not a whole gzip file: {error}.", "Build or download it again.") from None


def extract(path: Path, dest: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Unpack the archive at ``path`` into the folder ``dest``, which must be empty or not exist.

    ``dest`` appears whole or not at all. Files get mode 0644, folders 0755. Raises ArchiveError for an archive
    that is broken or hostile or holds more than ``max_bytes``, NoRoom for one that does not fit on the disk.
    """
    dest = dest.absolute()
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ArchiveError(f"{dest} is not an empty folder.", "Unpack into a new one.")
    partial: Path | None = None
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".partial", dir=dest.parent))
        _extract(path, partial, max_bytes)
        partial.chmod(0o755)
        partial.rename(dest)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise ArchiveError(f"There is no archive at {path}.", "Check the path.") from None
        kind = NoRoom if error.errno in FULL else ArchiveError
        raise kind(
            f"{path} cannot be unpacked into {dest}: {error.strerror or error}.", "Check the disk and the folder."
        ) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _extract(path: Path, into: Path, max_bytes: int) -> None:
    free = shutil.disk_usage(into).free
    left = min(max_bytes, free)
    for member in reading(path):
        # Names were checked, and nothing here ever makes a link, so no path can lead out of ``into``.
        target = into / member.path if member.path else into
        if member.is_folder:
            _make_folder(target)
            continue
        left -= member.size
        if left < 0:
            kind = NoRoom if free < max_bytes else ArchiveError
            raise kind(
                f"{path}: what is inside is larger than the space for it.",
                f"At most {min(max_bytes, shutil.disk_usage(into).free):,} bytes fit.",
            )
        _make_folder(target.parent)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
            os.fchmod(descriptor, 0o644)  # whatever the umask says
            for data in member.read():
                file.write(data)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)
