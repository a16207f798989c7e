"""Reads tar archives that may come from anyone, and puts on disk only what is certainly harmless.

Python's tarfile trusts what it reads in places (a header may claim gigabytes of extended attributes, which
are read into memory; links are followed by later members), so headers are walked here one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from isal import igzip, isal_zlib

from mme.errors import ArchiveError
from mme.folder import is_safe

BLOCK = 512
CHUNK = 1 << 20
MAX_PATH = 2048  # bytes; SageMaker puts a path of its own before it, and Linux takes 4096 in all
MAX_DEPTH = 128  # folders in a path
MAX_NAMES = 16 << 20  # bytes of all names together, the folders that they imply included
MAX_EXTENDED = 64 << 10  # bytes of extended header for one member: a path and a size need a few hundred
MAX_RECORDS = 1_000_000  # in all extended headers together
MAX_FILES = 100_000  # members, their extended headers and the folders that they imply
MAX_BYTES = 512 << 30
MAX_END = 4 << 20  # bytes behind the end of the tar: what tar pads its last record with

# Deflate makes at most 1032 bytes of one (RFC 1951: 258 bytes for two bits). A gzip file that claims more lies.
MAX_RATIO = 1040

# What the decompressors raise for a stream that is cut or changed.
# igzip raises OverflowError for a header without an end.
_BROKEN: tuple[type[Exception], ...] = (
    EOFError,
    OverflowError,
    zlib.error,
    gzip.BadGzipFile,
    cast(Any, isal_zlib.error),
)


# What the system says when there is no room for more: the disk, the quota or the largest size of a file is reached.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoom(ArchiveError):
    """What an archive holds does not fit on the disk. The archive itself may be fine."""


class Member:
    """One file or folder of an archive; ``read`` hands out its bytes once, before the next member is asked for."""

    def __init__(self, path: str, size: int, is_folder: bool, stream: Stream) -> None:
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


class Stream(Protocol):
    """What a tar is read from."""

    def read(self, size: int) -> bytes: ...


def members(stream: Stream, max_bytes: int = MAX_BYTES) -> Iterator[Member]:
    """The members of the tar in ``stream``, in order, with checked names. A file that comes twice is handed out twice:
    the last one counts, as after ``tar -r``.

    Time and memory are linear in what is read, and everything is bounded before it is kept. Raises ArchiveError for
    whatever is broken or hostile: paths that are absolute or climb, links, devices, a file where a folder is, more than
    ``max_bytes`` in all files together, more names or headers than the bounds above.
    """
    names = _Names()
    headers = _Headers()
    left = max_bytes
    while True:
        block = _exactly(stream, BLOCK, allow_end=names.count > 0)
        if block is None or not block.strip(b"\0"):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise ArchiveError(f"This is not a tar archive: {error}.", "Build or download it again.") from None
        if info.size < 0:
            raise ArchiveError(f"A member claims a size of {info.size} bytes.", "Do not use this archive.")
        names.count_one()
        if info.type in (b"x", b"g", b"L"):
            headers.take(stream, info)
            continue
        path, size = headers.apply(info)
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            kind = {b"1": "a hard link", b"2": "a link", b"6": "a pipe"}.get(
                info.type, "a device or another special file"
            )
            raise ArchiveError(f"{path!r} in the archive is {kind}.", "Only files and folders are unpacked.")
        is_folder = info.type == tarfile.DIRTYPE or info.name.endswith("/")
        if is_folder and size:
            raise ArchiveError(f"{path!r} in the archive is a folder with content.", "Do not use this archive.")
        left -= size
        if left < 0:
            raise ArchiveError(
                f"What the archive says is in it is larger than the space for it: {path!r} has {size:,} bytes.",
                f"At most {max_bytes:,} bytes may be inside.",
            )
        if not (is_folder and path == ""):
            names.claim(path, is_folder)
        member = Member(path, size, is_folder, stream)
        yield member
        for _ in member.read():
            pass
        _exactly(stream, -size % BLOCK)


class _Names:
    """The names that an archive has used. Their number and length are checked before a name is stored."""

    def __init__(self) -> None:
        self.count = 0
        self._bytes = 0
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def count_one(self) -> None:
        self.count += 1
        if self.count > MAX_FILES:
            raise ArchiveError(f"The archive has more than {MAX_FILES:,} members.", "Do not use this archive.")

    def claim(self, path: str, is_folder: bool) -> None:
        if not is_safe(path):
            raise ArchiveError(f"{path!r} in the archive is not a path inside it.", "Do not use this archive.")
        if path.count("/") >= MAX_DEPTH:
            raise ArchiveError(
                f"A path of the archive is deeper than {MAX_DEPTH} folders: {path[:100]!r}…", "Do not use this archive."
            )
        if path in (self._folders if not is_folder else self._files):
            raise ArchiveError(
                f"{path!r} is in the archive twice, as a file and as a folder.", "Do not use this archive."
            )
        parent = path.rpartition("/")[0]
        while parent and parent not in self._folders:  # whose parents are known if it is
            if parent in self._files:
                raise ArchiveError(
                    f"{parent!r} is in the archive twice, as a file and as a folder.", "Do not use this archive."
                )
            self.count_one()
            self._keep(parent, self._folders)
            parent = parent.rpartition("/")[0]
        self._keep(path, self._folders if is_folder else self._files)

    def _keep(self, path: str, names: set[str]) -> None:
        self._bytes += len(path)
        if self._bytes > MAX_NAMES:
            raise ArchiveError("The names in the archive are too long together.", "Do not use this archive.")
        names.add(path)


class _Headers:
    """The extended headers before one member: at most one of each kind, of which path and size are kept."""

    def __init__(self) -> None:
        self._records = 0
        self._reset()

    def _reset(self) -> None:
        self._kinds: set[bytes] = set()
        self._path: str | None = None
        self._size: str | None = None
        self._sparse = False

    def take(self, stream: Stream, info: tarfile.TarInfo) -> None:
        if info.type in self._kinds:
            raise ArchiveError(
                "A member of the archive has two extended headers of a kind.", "Do not use this archive."
            )
        self._kinds.add(info.type)
        if info.size > MAX_EXTENDED:
            raise ArchiveError("An extended header of the archive is too large.", "Do not use this archive.")
        data = _exactly(stream, info.size) or b""
        _exactly(stream, -info.size % BLOCK)
        if info.type == b"L":
            self._set_path(data.rstrip(b"\0"))
        else:
            before = self._path, self._size, self._sparse
            self._parse(data.rstrip(b"\0"))
            # For other readers a global header's path or size is that of every member that follows.
            if info.type == b"g" and before != (self._path, self._size, self._sparse):
                raise ArchiveError(
                    "An extended header of the archive gives all its members one path or size.",
                    "Do not use this archive.",
                )

    def _parse(self, data: bytes) -> None:
        """Records of "LENGTH KEY=VALUE\\n", where LENGTH counts the whole record (POSIX.1-2001, pax)."""
        at = 0
        while at < len(data):
            self._records += 1
            space = data.find(b" ", at, at + 8)
            digits = data[at:space] if space > at else b""
            length = int(digits) if digits.isdigit() else 0
            equals = data.find(b"=", space, at + length)
            if equals < 0 or length <= 0 or at + length > len(data) or self._records > MAX_RECORDS:
                raise ArchiveError("An extended header of the archive is broken.", "Do not use this archive.")
            key = data[space + 1 : equals]
            value = data[equals + 1 : at + length].removesuffix(b"\n")
            if key == b"path":
                self._set_path(value)
            elif key == b"size":
                self._size = value[:32].decode("ascii", "replace")
            elif key.startswith(b"GNU.sparse"):
                self._sparse = True
            at += length

    def _set_path(self, path: bytes) -> None:
        if len(path) > MAX_PATH:
            raise ArchiveError(f"A path of the archive is longer than {MAX_PATH:,} bytes.", "Do not use this archive.")
        self._path = path.decode("utf-8", "surrogateescape")

    def apply(self, info: tarfile.TarInfo) -> tuple[str, int]:
        """The path and the size in bytes of the member that these headers came before."""
        path = info.name if self._path is None else self._path
        claimed, sparse = self._size, self._sparse
        self._reset()
        while path.startswith("./"):
            path = path[2:].lstrip("/")
        path = "" if path == "." else path.rstrip("/") if path != "/" else path
        size = info.size if claimed is None else int(claimed) if claimed.isascii() and claimed.isdigit() else -1
        if size < 0:
            raise ArchiveError(f"{path!r} claims a size that is not a number.", "Do not use this archive.")
        if sparse or info.type == b"S":
            raise ArchiveError(f"{path!r} is a sparse file.", "Pack it without tar's --sparse.")
        return path, size


def _exactly(stream: Stream, size: int, allow_end: bool = False) -> bytes | None:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            if allow_end and not data:
                return None
            raise ArchiveError("The archive is cut short.", "Build or download it again.")
        data += more
    return data


class _Inflated:
    """The tar inside a gzip file. Raises ArchiveError for a broken file at every read."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = igzip.open(path, "rb")

    def __enter__(self) -> _Inflated:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except _BROKEN as error:
            raise ArchiveError(f"It is not a whole gzip file: {error}.", "Build or download it again.") from None


def reading(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[Member]:
    """The members of the archive at ``path``; errors name the file. See ``members``."""
    try:
        # A claimed size is compared with what a file of this length can hold, before space is set aside for it.
        most = min(max_bytes, path.stat().st_size * MAX_RATIO)
        with _Inflated(path) as stream:
            for member in members(stream, most):
                yield _Named(path, member)
            # To the end, so that the checksum of the whole is compared and nothing hides behind the tar.
            left = MAX_END
            while data := stream.read(CHUNK):
                left -= len(data)
                if left < 0 or data.strip(b"\0"):
                    raise ArchiveError("Something follows the end of the tar in it.", "Build or download it again.")
    except ArchiveError as error:
        raise _named(path, error) from None
    except FileNotFoundError:
        raise ArchiveError(f"There is no archive at {path}.", "Check the path.") from None


class _Named(Member):
    """A member whose errors name the archive."""

    def __init__(self, path: Path, member: Member) -> None:
        super().__init__(member.path, member.size, member.is_folder, member._stream)
        self._member = member
        self._archive = path

    def read(self) -> Iterator[bytes]:
        try:
            yield from self._member.read()
        except ArchiveError as error:
            raise _named(self._archive, error) from None


def _named(path: Path, error: ArchiveError) -> ArchiveError:
    prefix = f"{path}: "
    return error if error.message.startswith(prefix) else ArchiveError(prefix + error.message, error.hint)


def extract(
    path: Path, dest: Path, *, max_bytes: int = MAX_BYTES, progress: Callable[[int], object] = lambda _: None
) -> None:
    """Unpack the archive at ``path`` into the folder ``dest``, which must be empty or not exist.

    ``dest`` appears complete or not at all. Files get mode 0644, folders 0755. ``progress`` is called with the bytes
    written since its last call, and may raise to give up. Raises ArchiveError for an archive that is broken or hostile
    or holds more than ``max_bytes``, NoRoom for one that does not fit on the disk.
    """
    dest = dest.absolute()
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ArchiveError(f"{dest} is not an empty folder.", "Unpack into a new one.")
    partial: Path | None = None
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".partial", dir=dest.parent))
        _extract(path, partial, max_bytes, progress)
        partial.chmod(0o755)
        partial.rename(dest)
    except UnicodeEncodeError as error:  # for example: the locale says that file names are ASCII
        raise ArchiveError(
            f"{path} holds a name that cannot be written here: {error.object!a}.",
            f"File names are {sys.getfilesystemencoding()} here; set a UTF-8 locale, as in LC_ALL=C.UTF-8.",
        ) from None
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


def _extract(path: Path, into: Path, max_bytes: int, progress: Callable[[int], object]) -> None:
    left = shutil.disk_usage(into).free
    for member in reading(path, max_bytes):
        # Names were checked, and nothing here ever makes a link, so no path can lead out of ``into``.
        target = into / member.path if member.path else into
        if member.is_folder:
            _make_folder(target)
            continue
        with contextlib.suppress(FileNotFoundError):  # the file came before: the last one counts
            left += target.stat().st_size
            target.unlink()
        left -= member.size
        if left < 0:
            raise NoRoom(
                f"{path}: what is inside is larger than the space for it.",
                f"{shutil.disk_usage(into).free:,} bytes are free.",
            )
        _make_folder(target.parent)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
            os.fchmod(descriptor, 0o644)  # whatever the umask says
            for data in member.read():
                file.write(data)
                progress(len(data))


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)
